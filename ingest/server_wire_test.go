package ingest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

// A wire is a bare connection to the edge, for what no client library would send.
type wire struct {
	t testing.TB
	*net.TCPConn
	r *bufio.Reader
}

func (e *testEdge) wire() *wire {
	e.t.Helper()
	c, err := net.Dial("tcp", e.addr)
	if err != nil {
		e.t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	return &wire{e.t, c.(*net.TCPConn), bufio.NewReader(c)}
}

func (w *wire) say(format string, args ...any) {
	w.t.Helper()
	if _, err := fmt.Fprintf(w, format, args...); err != nil {
		w.t.Fatal(err)
	}
}

// hear reads one answer.
func (w *wire) hear() answer {
	w.t.Helper()
	res, err := http.ReadResponse(w.r, nil)
	if err != nil {
		w.t.Fatalf("no answer: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatalf("half an answer: %v", err)
	}
	if res.Close {
		res.Header.Set("Connection", "close") // ReadResponse takes it out
	}
	return answer{res.StatusCode, res.Header, body}
}

// closed waits for the edge to hang up.
func (w *wire) closed() {
	w.t.Helper()
	if b, err := w.r.ReadByte(); err == nil {
		w.t.Fatalf("more came: %q", b)
	} else if nerr := net.Error(nil); errors.As(err, &nerr) && nerr.Timeout() {
		w.t.Fatal("the connection is still open")
	}
}

const logsHead = "POST /v1/logs HTTP/1.1\r\nHost: edge\r\nContent-Type: application/x-protobuf\r\nx-flowstate-key: %s\r\n"

// A request that is refused for what its headers say is answered before its body is read, and a client that sends all of the body first, as
// most do, reads the answer nevertheless.
func TestRefusedBeforeTheBody(t *testing.T) {
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) {
		ec.MaxRequestBytes, ec.MaxDecodedBytes = 1<<20, 1<<20
	})
	key := e.add(service(auth.Production))
	unknown, _ := auth.MintKey(auth.KindServiceAccount)
	const announced = 32 << 20
	for _, c := range []struct {
		name, key, head string
		code            int
	}{
		{"too large", key, "Content-Length: %d\r\n", 413},
		{"no such key", unknown, "Content-Length: %d\r\n", 401},
		{"an encoding nobody knows", key, "Content-Encoding: br\r\nContent-Length: %d\r\n", 415},
	} {
		// The answer comes with not a byte of the body sent but one (fasthttp waits for that).
		w := e.wire()
		w.say(logsHead+c.head+"\r\n\n", c.key, announced)
		if a := w.hear(); a.code != c.code || a.header.Get("Content-Type") != "application/x-protobuf" || a.header.Get("Connection") != "close" {
			t.Errorf("%s, before the body: %s %v", c.name, a, a.header)
		}
		// The whole body is sent before the answer is looked at.
		w = e.wire()
		w.say(logsHead+c.head+"\r\n", c.key, announced)
		chunk := make([]byte, 64<<10)
		for range announced / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				t.Fatalf("%s: the edge hung up on a client that was sending: %v", c.name, err)
			}
		}
		if a := w.hear(); a.code != c.code {
			t.Errorf("%s, after the body: %s", c.name, a)
		}
		w.closed()
	}
	// A small rest is read for the sake of the connection, which goes on.
	w := e.wire()
	w.say(logsHead+"Content-Length: 5000\r\n\r\n%s", unknown, strings.Repeat("x", 5000))
	if a := w.hear(); a.code != 401 {
		t.Errorf("%s", a)
	}
	w.say(logsHead+"Content-Length: 0\r\n\r\n", key)
	if a := w.hear(); a.code != 200 {
		t.Errorf("after a 401 on the same connection: %s", a)
	}
	// Chunks announce nothing: they are counted.
	body := bytes.NewReader(make([]byte, 2<<20))
	req, err := http.NewRequest("POST", e.url+"/v1/logs", io.NopCloser(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("x-flowstate-key", key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 413 {
		t.Errorf("chunks over the limit: %d", res.StatusCode)
	}
}

// "Expect: 100-continue": who is refused need not send the body; who is not is told to go on.
func TestExpectContinue(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	unknown, _ := auth.MintKey(auth.KindServiceAccount)
	body := marshal(t, logsRequest(logRecord("a")))
	w := e.wire()
	w.say(logsHead+"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n", key, len(body))
	if line, err := w.r.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	if _, err := w.r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	w.say("%s", body)
	if a := w.hear(); a.code != 200 {
		t.Errorf("after 100: %s", a)
	}
	for name, c := range map[string]struct {
		head string
		code int
	}{
		"no such key": {fmt.Sprintf(logsHead+"Content-Length: 1000\r\n", unknown), 401},
		"too large":   {fmt.Sprintf(logsHead+"Content-Length: 100000000\r\n", key), 413},
		"no type":     {fmt.Sprintf("POST /v1/logs HTTP/1.1\r\nHost: edge\r\nx-flowstate-key: %s\r\nContent-Length: 1000\r\n", key), 415},
	} {
		w := e.wire()
		w.say("%sExpect: 100-continue\r\n\r\n", c.head)
		a := w.hear()
		if a.code != c.code {
			t.Errorf("%s: %s", name, a)
		}
		checkStatus(t, name, a)
		if err := w.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		w.closed()
	}
	if n := e.requests("logs", "401", string(unknownKey)); n != 1 {
		t.Errorf("the refusal is counted %v times", n)
	}
	e.balanced()
}

// Clients that never come to an end are let go in time; what they held goes with them.
func TestSlowClients(t *testing.T) {
	e := startEdge(t, func(_ *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) {
		sc.HeaderTimeout, sc.BodyTimeout, sc.IdleTimeout = 300*time.Millisecond, 600*time.Millisecond, 300*time.Millisecond
	})
	key := e.add(service(auth.Production))

	w := e.wire()
	w.say("POST /v1/logs HTTP/1.1\r\nHost: ed") // half a header
	if a := w.hear(); a.code != 408 || a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("half a header: %s", a)
	}
	w.CloseWrite()
	w.closed()

	drip := e.wire() // a header line now and then does not buy time
	drip.say("POST /v1/logs HTTP/1.1\r\n")
	go func() {
		for range time.Tick(50 * time.Millisecond) {
			if _, err := io.WriteString(drip, "X: y\r\n"); err != nil {
				return
			}
		}
	}()
	if a := drip.hear(); a.code != 408 {
		t.Errorf("dripping headers: %s", a)
	}

	w = e.wire()
	w.say(logsHead+"Content-Length: 100000\r\n\r\nsome", key)
	a := w.hear()
	if a.code != 408 || a.header.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("half a body: %s", a)
	}
	checkStatus(t, "half a body", a)

	w = e.wire()
	w.say(logsHead+"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", key)
	if a := w.hear(); a.code != 408 {
		t.Errorf("half a chunk: %s", a)
	}

	w = e.wire() // kept alive, and quiet
	w.say(logsHead+"Content-Length: 0\r\n\r\n", key)
	if a := w.hear(); a.code != 200 {
		t.Errorf("%s", a)
	}
	w.closed()

	if n := e.requests("logs", "408", string(readTimeout)); n != 2 {
		t.Errorf("%v slow bodies are counted", n)
	}
	eventually(t, "nothing charged", func() bool { return e.edge.budget.used.Load() == 0 })
	e.balanced()
}

// An answer has its own time to be written: what was left of the one before, on a connection that has been quiet since, is not what counts.
func TestAnswersOnAnIdleConnection(t *testing.T) {
	e := startEdge(t, func(_ *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) { sc.writeTimeout = 500 * time.Millisecond })
	key := e.add(service(auth.Production))
	unknown, _ := auth.MintKey(auth.KindServiceAccount)
	for name, c := range map[string]struct {
		say  string
		code int
	}{
		"refused early": {fmt.Sprintf(logsHead+"Expect: 100-continue\r\nContent-Length: 1000\r\n\r\n", unknown), 401},
		"unreadable":    {"POST /v1/logs HTTP/1.1\r\nno header\r\n\r\n", 400},
		"as ever":       {fmt.Sprintf(logsHead+"Content-Length: 0\r\n\r\n", key), 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := e.wire()
			w.t = t
			w.say(logsHead+"Content-Length: 0\r\n\r\n", key)
			if a := w.hear(); a.code != 200 {
				t.Fatalf("%s", a)
			}
			time.Sleep(600 * time.Millisecond) // the deadline of that answer passes
			w.say("%s", c.say)
			if a := w.hear(); a.code != c.code {
				t.Errorf("%s", a)
			}
		})
	}
}

// What is odd on the wire, and right or wrong.
func TestWire(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	other := e.add(service(auth.Staging))
	body := marshal(t, logsRequest(logRecord("a")))
	zipped := gzipped(t, body)
	for _, c := range []struct {
		name, raw string
		code      int
		says      string
	}{
		{"chunks", fmt.Sprintf(logsHead+"Transfer-Encoding: chunked\r\n\r\n3\r\n%s\r\n%x;ext=1\r\n%s\r\n0\r\nX-Sum: x\r\n\r\n", key, body[:3], len(body)-3, body[3:]), 200, ""},
		{"an empty list of chunks", fmt.Sprintf(logsHead+"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", key), 200, ""},
		{"broken chunks", fmt.Sprintf(logsHead+"Transfer-Encoding: chunked\r\n\r\nzz\r\n%s", key, body), 400, ""},
		{"neither length nor chunks", fmt.Sprintf(logsHead+"\r\n", key), 200, ""},
		{"two lengths", fmt.Sprintf(logsHead+"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", key), 400, ""},
		{"a length below zero", fmt.Sprintf(logsHead+"Content-Length: -3\r\n\r\nabcd", key), 400, ""},
		{"not HTTP", "hello, edge\r\n\r\n", 400, ""},
		{"TLS on a plain port", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""},
		{"headers of 20 KiB", fmt.Sprintf(logsHead+"X-Long: %s\r\n\r\n", key, strings.Repeat("x", 20<<10)), 431, "16384"},
		{"a thousand headers", fmt.Sprintf(logsHead+"%s\r\n", key, strings.Repeat("X-Many: 12345678\r\n", 1000)), 431, ""},

		{"the key twice, the same", fmt.Sprintf(logsHead+"X-FLOWSTATE-KEY: %s\r\nContent-Length: %d\r\n\r\n%s", key, key, len(body), body), 200, ""},
		{"the key twice, another", fmt.Sprintf(logsHead+"X-FlowState-Key: %s\r\nContent-Length: %d\r\n\r\n%s", key, other, len(body), body), 401, "more than once"},
		{"authorization twice, another", fmt.Sprintf("GET /v1/whoami HTTP/1.1\r\nHost: e\r\nAuthorization: Bearer %s\r\nauthorization: Bearer %s\r\n\r\n", key, other), 401, "more than once"},
		{"authorization twice beside the key", fmt.Sprintf("GET /v1/whoami HTTP/1.1\r\nHost: e\r\nx-flowstate-key: %s\r\nAuthorization: Basic Og==\r\nauthorization: Bearer %s\r\n\r\n", key, other), 200, `"environment":"production"`},

		{"gzip with identity", fmt.Sprintf(logsHead+"Content-Encoding: identity, GZip\r\nContent-Length: %d\r\n\r\n%s", key, len(zipped), zipped), 200, ""},
		{"gzip, gzip", fmt.Sprintf(logsHead+"Content-Encoding: gzip, gzip\r\nContent-Length: %d\r\n\r\n%s", key, len(zipped), zipped), 415, "once"},
		{"gzip in two fields", fmt.Sprintf(logsHead+"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", key, len(zipped), zipped), 415, "once"},
		{"gzip in the second field", fmt.Sprintf(logsHead+"Content-Encoding: identity\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", key, len(zipped), zipped), 200, ""},
	} {
		w := e.wire()
		w.say("%s", c.raw)
		a := w.hear()
		if a.code != c.code || !strings.Contains(string(a.body), c.says) {
			t.Errorf("%s: %s; want %d %q", c.name, a, c.code, c.says)
		}
		if a.code == 400 || a.code == 431 {
			w.CloseWrite()
			w.closed()
		}
	}

	// Pipelined: answered in order, a refused one in the middle too.
	w := e.wire()
	w.say("%s", strings.Repeat(fmt.Sprintf(logsHead+"Content-Length: %d\r\n\r\n%s", key, len(body), body), 3)+
		fmt.Sprintf(logsHead+"Content-Length: 4\r\n\r\njunk", key)+
		fmt.Sprintf("GET /v1/whoami HTTP/1.1\r\nHost: e\r\nx-flowstate-key: %s\r\n\r\n", key))
	for i, want := range []int{200, 200, 200, 400, 200} {
		if a := w.hear(); a.code != want {
			t.Errorf("pipelined %d: %s; want %d", i, a, want)
		}
	}

	// Half-closed: the client has said all it will, and hears the answer.
	w = e.wire()
	w.say(logsHead+"Content-Length: %d\r\n\r\n%s", key, len(body), body)
	if err := w.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if a := w.hear(); a.code != 200 {
		t.Errorf("half-closed: %s", a)
	}
	w.closed()

	// Half-closed in the middle of the body.
	w = e.wire()
	w.say(logsHead+"Content-Length: %d\r\n\r\n%s", key, len(body), body[:len(body)/2])
	if err := w.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if a := w.hear(); a.code != 400 {
		t.Errorf("cut off: %s", a)
	}
	e.balanced()
}

// More connections than allowed are told so and counted; with room again the next is served.
func TestTooManyConnections(t *testing.T) {
	e := startEdge(t, func(_ *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) { sc.MaxConns = 8 })
	key := e.add(service(auth.Production))
	var held []*wire
	for range 8 {
		w := e.wire()
		w.say(logsHead+"Content-Length: 0\r\n\r\n", key)
		if a := w.hear(); a.code != 200 {
			t.Fatalf("%s", a)
		}
		held = append(held, w)
	}
	w := e.wire()
	if a := w.hear(); a.code != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("one too many: %s", a)
	}
	if e.metric("sluice_ingest_connections_refused_total", "listener", "http") != 1 || e.metric("sluice_ingest_connections", "listener", "http") != 8 {
		t.Error("the connections are not counted")
	}
	held[0].Close()
	eventually(t, "room again", func() bool {
		w := e.wire()
		fmt.Fprintf(w, logsHead+"Content-Length: 0\r\n\r\n", key) // too early, it is refused and perhaps reset
		res, err := http.ReadResponse(w.r, nil)
		return err == nil && res.StatusCode == 200
	})
}

// statusOf reads a google.rpc.Status in the encoding that the answer's type says.
func statusOf(t testing.TB, a answer) (code int32, message string) {
	t.Helper()
	var s statuspb.Status
	switch a.header.Get("Content-Type") {
	case "application/json":
		var j struct {
			Code    int32
			Message string
		}
		if err := json.Unmarshal(a.body, &j); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		return j.Code, j.Message
	case "application/x-protobuf":
		if err := proto.Unmarshal(a.body, &s); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		return s.Code, s.Message
	}
	t.Errorf("%s: content type %q", a, a.header.Get("Content-Type"))
	return 0, ""
}
