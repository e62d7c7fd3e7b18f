package ingest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
)

// With many clients that send bombs, junk and bodies that never end, each with a good key of its own, a good client's requests all pass and memory stays
// within the budget and what connections cost.
func TestHostileBodies(t *testing.T) {
	const (
		limit    = 4 << 20
		budget   = 16 << 20
		hostile  = 96
		overhead = 48 << 20 // the process, the fake Kafka, buffers of connections, the clients, which live here too
	)
	e := startEdge(t, func(ec *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) {
		ec.MaxRequestBytes, ec.MaxDecodedBytes, ec.MaxBodyBytes = limit, limit, budget
		sc.BodyTimeout = time.Second
	})
	zeros := make([]byte, 64<<20)
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(zeros); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	noSize, err := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	var zstdBomb bytes.Buffer // a stream does not say its size
	noSize.Reset(&zstdBomb)
	if _, err := noSize.ReadFrom(bytes.NewReader(zeros)); err != nil {
		t.Fatal(err)
	}
	if err := noSize.Close(); err != nil {
		t.Fatal(err)
	}
	lists := append([]byte(`{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{"histogram":{"dataPoints":[{"bucketCounts":[1`), bytes.Repeat([]byte(",1"), 1<<20)...)
	zeros = make([]byte, limit-1)
	bodies := []struct {
		name, path, head string
		body             []byte
	}{
		{"a gzip bomb", "/v1/logs", "Content-Type: application/x-protobuf\r\nContent-Encoding: gzip\r\n", zipped.Bytes()},
		{"a zstd bomb", "/v1/logs", "Content-Type: application/x-protobuf\r\nContent-Encoding: zstd\r\n", zstdBomb.Bytes()},
		{"a list that grows in protobuf", "/v1/metrics", "Content-Type: application/json\r\n", lists},
		{"junk", "/v1/traces", "Content-Type: application/x-protobuf\r\n", bytes.Repeat([]byte{0xff}, 1<<20)},
		{"junk of signals", "/v1/signals", "Content-Type: application/json\r\n", bytes.Repeat([]byte("["), 1<<20)},
		{"small signals that become large events", "/v1/signals", "Content-Type: application/x-ndjson\r\n", bytes.Repeat([]byte("{\"type\":\"a\"}\n"), 10_000)},
		{"the same as log records", "/v1/logs", "Content-Type: application/x-protobuf\r\n", marshal(t, logsRequest(slices.Repeat([]*logs.LogRecord{logRecord("flowstate.signal", str("signal.type", "a"))}, 10_000)...))},
	}

	base := liveHeap()
	ctx, stop := context.WithCancel(t.Context())
	var attackers sync.WaitGroup
	var attacks, slow atomic.Int64
	wordy := service(auth.Development) // each of its events is some 6 KiB, of a signal of 13 bytes
	wordy.Description, wordy.IntendedScope = strings.Repeat("d", 2000), strings.Repeat("s", 4000)
	for i := range hostile {
		key := e.add(wordy)
		attackers.Go(func() {
			for ctx.Err() == nil {
				c, err := net.Dial("tcp", e.addr)
				if err != nil {
					return
				}
				deadline := time.Now().Add(5 * time.Second)
				if c.SetDeadline(deadline) != nil {
					return
				}
				if i%3 == 0 { // all but the end of the largest body that is allowed
					fmt.Fprintf(c, logsHead+"Content-Length: %d\r\n\r\n", key, limit)
					_, _ = c.Write(zeros)
					slow.Add(1)
				} else {
					b := bodies[i%len(bodies)]
					fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: e\r\nConnection: close\r\nx-flowstate-key: %s\r\n%sContent-Length: %d\r\n\r\n", b.path, key, b.head, len(b.body))
					_, _ = c.Write(b.body)
				}
				_, _ = io.Copy(io.Discard, c)
				c.Close()
				attacks.Add(1)
			}
		})
	}
	eventually(t, "the attack", func() bool { return attacks.Load() > hostile/4 && slow.Load() > hostile/6 })

	good := e.add(service(auth.Production))
	body := gzipped(t, marshal(t, logsRequest(logRecord("a", str("text", "a good client's record")))))
	var peak uint64
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
		a := e.send("POST", "/v1/logs", body, "Content-Type", "application/x-protobuf", "Content-Encoding", "gzip", "x-flowstate-key", good)
		if a.code != 200 {
			t.Errorf("the good client: %s", a)
		}
		if used := e.edge.budget.used.Load(); used > budget {
			t.Errorf("%d bytes of bodies are charged, over the budget", used)
		}
		peak = max(peak, liveHeap())
	}
	stop()
	attackers.Wait()
	if peak > base+budget+overhead {
		t.Errorf("the heap went from %d MiB to %d MiB; the budget is %d MiB", base>>20, peak>>20, budget>>20)
	}
	t.Logf("%d hostile requests; heap from %d MiB to %d MiB at most; %v refused for the budget", attacks.Load(), base>>20, peak>>20, e.metric("sluice_ingest_body_refusals_total"))
	if e.metric("sluice_ingest_body_refusals_total") == 0 {
		t.Error("the budget was never reached, so this test shows nothing")
	}
	eventually(t, "nothing charged", func() bool { return e.edge.budget.used.Load() == 0 && len(e.edge.budget.shares) == 0 })
	e.balanced()
}

// liveHeap collects, and says how much was still in use: not what was allocated and dropped between the collection and the reading, which on a
// busy machine is any number.
func liveHeap() uint64 {
	runtime.GC()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	return live[0].Value.Uint64()
}

// Any body within the limits passes an idle edge with the least budget that is allowed, whatever it is wrapped in.
func TestLargestBodiesPass(t *testing.T) {
	const limit = 2 << 20
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) {
		ec.MaxRequestBytes, ec.MaxDecodedBytes, ec.MaxBodyBytes = limit, limit, 1
		ec.KafkaTimeout = 10 * time.Second
	})
	key := e.add(service(auth.Production))
	text := make([]byte, 1<<10)
	records := logsRequest()
	for i := 0; proto.Size(records) < limit-2*len(text); i++ {
		for j := range text {
			text[j] = 'a' + byte((i*31+j*j*7+j>>3)%26)
		}
		records.ResourceLogs[0].ScopeLogs[0].LogRecords = append(records.ResourceLogs[0].ScopeLogs[0].LogRecords, logRecord(fmt.Sprint("r", i), str("text", string(text))))
	}
	plain := marshal(t, records)
	for name, c := range map[string]struct {
		body []byte
		head []string
	}{
		"plain": {plain, nil},
		"gzip":  {gzipped(t, plain), []string{"Content-Encoding", "gzip"}},
		"zstd":  {zstded(t, plain), []string{"Content-Encoding", "zstd"}},
	} {
		if len(plain) > limit || len(plain) < limit*99/100 {
			t.Fatalf("%d bytes", len(plain))
		}
		a := e.send("POST", "/v1/logs", c.body, append(c.head, "Content-Type", "application/x-protobuf", "x-flowstate-key", key)...)
		if a.code != 200 {
			t.Errorf("%s: %s", name, a)
		}
	}
	e.balanced()
}

// A payload that is over the broker's limit is charged part by part: each repeats the headers that it stands under.
func TestPartsAreCharged(t *testing.T) {
	e := startEdge(t, func(ec *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) {
		ec.MaxRequestBytes, ec.MaxDecodedBytes, ec.MaxMessageBytes = 1<<20, 1<<20, 64<<10
	})
	key := e.add(service(auth.Production))
	oversize := func(header int) []byte { // each record needs a message of its own, with the header
		records := logsRequest()
		records.ResourceLogs[0].Resource = &resource.Resource{Attributes: []*common.KeyValue{str("h", strings.Repeat("h", header))}}
		for range 25 {
			records.ResourceLogs[0].ScopeLogs[0].LogRecords = append(records.ResourceLogs[0].ScopeLogs[0].LogRecords, logRecord("r", str("text", strings.Repeat("x", 33<<10))))
		}
		return marshal(t, records)
	}
	send := func(body []byte) answer {
		return e.send("POST", "/v1/logs", body, "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	}
	others := charge{budget: e.edge.budget, key: "fsk_others"} // leaves room for the body and its copy, or for the copy and as much in parts
	if err := others.take(1 << 20); err != nil {
		t.Fatal(err)
	}
	if a := send(oversize(100)); a.code != 200 {
		t.Errorf("small headers: %s", a)
	}
	if a := send(oversize(30 << 10)); a.code != 503 || e.requests("logs", "503", "overloaded") != 1 {
		t.Errorf("headers that are repeated: %s", a)
	}
	others.release()
	if a := send(oversize(30 << 10)); a.code != 200 {
		t.Errorf("the same alone: %s", a)
	}
	if n := e.edge.budget.used.Load(); n != 0 {
		t.Errorf("%d bytes stay charged", n)
	}
	e.balanced()
}

// The budget by itself: one key has its half, large bodies three quarters, small ones all of it, and everything comes back.
func TestBudget(t *testing.T) {
	const limit = 16 << 20
	b := newBudget(limit, prometheus.NewRegistry())
	held := func(key string, n int) (*charge, error) {
		c := &charge{budget: b, key: key}
		return c, c.take(n)
	}
	alone, err := held("a", 12<<20) // beyond a half, but the only one
	if err != nil {
		t.Fatal(err)
	}
	if _, err := held("a", 100<<10); !errors.Is(err, errBudget) {
		t.Error("a key went on past its half")
	}
	small, err := held("a", smallBody)
	if err != nil {
		t.Error("a small body of the same key was held back")
	}
	if _, err := held("b", 2<<20); !errors.Is(err, errBudget) {
		t.Error("a large body took the last quarter")
	}
	other, err := held("b", 1<<20)
	if err != nil {
		t.Error("a body of 1 MiB found no room in the last quarter")
	}
	for _, c := range []*charge{alone, small, other} {
		c.release()
		c.release()
	}
	if b.used.Load() != 0 || len(b.shares) != 0 {
		t.Errorf("%d bytes and %d shares are left", b.used.Load(), len(b.shares))
	}

	// Under contention nothing is lost and the limit holds.
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 500 {
				c := &charge{budget: b, key: fmt.Sprint(i % 3)}
				for k := range 6 {
					if c.take(1<<(10+2*k)) != nil {
						break
					}
					if k == 3 {
						c.give(1 << 10)
					}
				}
				if used := b.used.Load(); j%16 == 0 && used > limit {
					t.Errorf("%d bytes are charged", used)
				}
				c.release()
			}
		})
	}
	wg.Wait()
	if b.used.Load() != 0 || len(b.shares) != 0 {
		t.Errorf("%d bytes and %d shares are left", b.used.Load(), len(b.shares))
	}
}

func TestCodings(t *testing.T) {
	f := func(header string, want coding, ok bool) {
		t.Helper()
		got, err := codingOf([]byte(header))
		if (err == nil) != ok || got != want {
			t.Errorf("%q: %v %v", header, got, err)
		}
	}
	f("", codedPlain, true)
	f("identity", codedPlain, true)
	f(" GZIP ", codedGzip, true)
	f("x-gzip", codedGzip, true)
	f("zstd,identity", codedZstd, true)
	f(",gzip,", codedGzip, true)
	f("gzip,gzip", 0, false)
	f("gzip, zstd", 0, false)
	f("br", 0, false)
	f("gz ip", 0, false)
}

// zstd stays within the limit whatever its frames claim: a size that is a lie, a window over 8 MiB, many frames.
func TestZstd(t *testing.T) {
	const limit = 1 << 20
	p := newBodies(limit, limit)
	budget := newBudget(64<<20, prometheus.NewRegistry())
	content := bytes.Repeat([]byte("sluice "), 20_000)
	stream := func(b []byte, opts ...zstd.EOption) []byte {
		var out bytes.Buffer
		w, err := zstd.NewWriter(&out, opts...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.ReadFrom(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	f := func(name string, body, want []byte, wantErr error) {
		t.Helper()
		c := charge{budget: budget, key: "k"}
		defer c.release()
		sent, err := p.read(&c, bytes.NewReader(body), len(body))
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.decode(&c, codedZstd, sent)
		if wantErr != nil {
			if !errors.Is(err, wantErr) {
				t.Errorf("%s: %v, want %v", name, err, wantErr)
			}
			if c.bytes != 0 {
				t.Errorf("%s: %d bytes stay charged", name, c.bytes)
			}
			return
		}
		if err != nil || !bytes.Equal(got.b, want) {
			t.Errorf("%s: %v", name, err)
			return
		}
		if c.bytes != int64(cap(got.b)) {
			t.Errorf("%s: %d bytes are charged for %d", name, c.bytes, cap(got.b))
		}
		p.put(&c, got)
	}
	f("one block", zstded(t, content), content, nil)
	f("a stream", stream(content), content, nil)
	f("two frames", append(stream(content), zstded(t, content)...), append(bytes.Clone(content), content...), nil)
	f("nothing", zstded(t, nil), nil, nil)
	f("exactly the limit", zstded(t, make([]byte, limit)), make([]byte, limit), nil)
	f("one byte more", zstded(t, make([]byte, limit+1)), nil, errTooLarge)
	f("one byte more in a stream", stream(make([]byte, limit+1)), nil, errTooLarge)
	f("many frames", bytes.Repeat(zstded(t, content), 20), nil, errTooLarge)
	f("a wide window", stream(make([]byte, 100<<20), zstd.WithWindowSize(16<<20)), nil, zstd.ErrWindowSizeExceeded)
	f("cut off", stream(content)[:30], nil, io.ErrUnexpectedEOF)
}
