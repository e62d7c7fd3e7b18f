package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"

	"flowstate.inc/sluice/auth"
)

const grpcLogs = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"

// framedAs is a message of gRPC as it goes over the wire.
func framedAs(compressed byte, length int, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{compressed}, uint32(length)), body...)
}

// rawGRPC sends a body to the gRPC port by HTTP/2 as it is, over a connection of its own, and returns grpc-status.
func (e *testEdge) rawGRPC(key string, body io.Reader, headers ...string) (string, error) {
	var h2 http.Protocols
	h2.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: &h2, DisableCompression: true}}
	defer client.CloseIdleConnections()
	q, err := http.NewRequest("POST", "http://"+e.grpc+grpcLogs, body)
	if err != nil {
		return "", err
	}
	q.Header.Set("Content-Type", typeGRPC)
	q.Header.Set("x-flowstate-key", key)
	for i := 0; i < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	res, err := client.Do(q)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.Header.Get("Grpc-Status") + res.Trailer.Get("Grpc-Status"), err
}

// Bombs and bodies that never end cost by gRPC what they cost by HTTP.
func TestGRPCHostileBodies(t *testing.T) {
	const limit = 1 << 20
	e := startEdge(t, func(ec *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) {
		ec.MaxRequestBytes, ec.MaxDecodedBytes = limit, limit
		sc.BodyTimeout = 600 * time.Millisecond
	})
	key := e.add(service(auth.Production))
	zeros := make([]byte, 16<<20)
	for _, c := range []struct {
		name, coding string
		body         []byte
	}{
		{"a gzip bomb", "gzip", gzipped(t, zeros)},
		{"a zstd bomb", "zstd", zstded(t, zeros)},
		{"a large message", "identity", zeros[:limit+1]},
	} {
		compressed := byte(1)
		if c.coding == "identity" {
			compressed = 0
		}
		if got, err := e.rawGRPC(key, bytes.NewReader(framedAs(compressed, len(c.body), c.body)), "grpc-encoding", c.coding); err != nil || got != "8" {
			t.Errorf("%s: grpc-status %q %v", c.name, got, err)
		}
	}
	if n := e.requests("logs", "413", string(bodyTooLarge)); n != 3 {
		t.Errorf("%v are counted as too large", n)
	}

	slow, end := io.Pipe() // half a message, and the client keeps the stream open
	go func() { _, _ = end.Write(framedAs(0, 1000, make([]byte, 500))) }()
	defer end.Close()
	if got, err := e.rawGRPC(key, slow); err != nil || got != "4" {
		t.Errorf("a body that never ends: grpc-status %q %v", got, err)
	}
	if n := e.requests("logs", "408", string(readTimeout)); n != 1 {
		t.Errorf("%v slow bodies are counted", n)
	}
	eventually(t, "nothing charged", func() bool { return e.edge.budget.used.Load() == 0 })
	if err := exportBy(t, e.dial(), key); err != nil {
		t.Errorf("a good client: %v", err)
	}
	e.balanced()
}

// Connections over the limit are closed at once, and the others go on.
func TestGRPCTooManyConnections(t *testing.T) {
	e := startEdge(t, func(_ *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) { sc.MaxConns = 8 })
	key := e.add(service(auth.Production))
	var held []net.Conn
	for range 7 {
		held = append(held, e.dialGRPC())
	}
	eventually(t, "they are taken", func() bool { return e.metric("sluice_ingest_connections", "listener", "grpc") == 7 })
	conn := e.dial()
	if err := exportBy(t, conn, key); err != nil {
		t.Fatalf("the last that has room: %v", err)
	}
	over := e.dialGRPC()
	if err := over.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, over); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one too many stays open: %v", err)
	}
	if e.metric("sluice_ingest_connections_refused_total", "listener", "grpc") != 1 {
		t.Error("it is not counted")
	}
	if err := exportBy(t, conn, key); err != nil {
		t.Errorf("who is connected: %v", err)
	}
	held[0].Close()
	eventually(t, "room again", func() bool { return exportBy(t, e.dial(), key) == nil })
}

// What a connection may send before anybody knows whose it is: what the server says when it begins.
func TestGRPCReceivesLittleUnasked(t *testing.T) {
	e := startEdge(t)
	c := e.dialGRPC()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"); err != nil { // and no settings
		t.Fatal(err)
	}
	const settings, windowUpdate, initialWindow = 4, 8, 4
	stream, connection := uint32(65535), uint32(65535)
	for seen := false; !seen; {
		head := make([]byte, 9)
		if _, err := io.ReadFull(c, head); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, int(head[0])<<16|int(head[1])<<8|int(head[2]))
		if _, err := io.ReadFull(c, body); err != nil {
			t.Fatal(err)
		}
		switch head[3] {
		case settings:
			for ; len(body) >= 6; body = body[6:] {
				if binary.BigEndian.Uint16(body) == initialWindow {
					stream = binary.BigEndian.Uint32(body[2:])
				}
			}
		case windowUpdate:
			connection += binary.BigEndian.Uint32(body)
			seen = true
		}
	}
	if connection != receiveBuffer || stream != receiveBuffer/2 {
		t.Errorf("a connection may send %d bytes unasked, a stream %d", connection, stream)
	}
}

func (e *testEdge) dialGRPC() net.Conn {
	e.t.Helper()
	c, err := net.Dial("tcp", e.grpc)
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { c.Close() })
	return c
}

// exportBy sends one record by grpc-go's client.
func exportBy(t testing.TB, conn *grpc.ClientConn, key string) error {
	_, err := collogs.NewLogsServiceClient(conn).Export(withKey(t, "x-flowstate-key", key), logsRequest(logRecord("a")))
	return err
}
