package load

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func serve(t *testing.T, h http.HandlerFunc) Plan {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return Plan{
		Addr: strings.TrimPrefix(srv.URL, "http://"), Path: "/v1/logs", ContentType: "text/plain", Keys: []string{"a", "b"},
		Bodies: []Body{{Bytes: []byte("hello"), Records: 3, Forward: true}, {Bytes: []byte("bye"), Records: 2}}, Connections: 4,
		Measure: 200 * time.Millisecond,
	}
}

func TestClosed(t *testing.T) {
	var served, odd atomic.Int64
	p := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if key := r.Header.Get("Authorization"); string(body) != "hello" && string(body) != "bye" || key != "Bearer a" && key != "Bearer b" {
			odd.Add(1)
		}
		served.Add(1)
	})
	p.Warm = 50 * time.Millisecond
	res, err := Run(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	if res.Requests == 0 || res.Requests >= served.Load() || res.Records < 2*res.Requests || odd.Load() > 0 || res.Broken > 0 {
		t.Errorf("%+v of %d requests, %d odd", res, served.Load(), odd.Load())
	}
	if d := res.Forward*2 - served.Load(); d < -8 || d > 8 {
		t.Errorf("%d forwarded of %d", res.Forward, served.Load())
	}
}

// A server that stalls for 100 ms is charged for all that was due meanwhile.
func TestOpenCountsFromTheDueTime(t *testing.T) {
	var n atomic.Int64
	gate := make(chan struct{})
	p := serve(t, func(http.ResponseWriter, *http.Request) {
		if n.Add(1) == 50 {
			close(gate)
			<-time.After(100 * time.Millisecond)
		}
	})
	p.Connections, p.Rate, p.Measure = 1, 500, 400*time.Millisecond
	res, err := Run(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	<-gate
	if res.Requests != 200 {
		t.Errorf("%d requests", res.Requests)
	}
	slow := 0
	for _, bar := range res.Latency.Distribution() {
		if bar.From > 20_000 {
			slow += int(bar.Count)
		}
	}
	if slow < 30 {
		t.Errorf("%d requests were seen to wait for the stall, of about 40", slow)
	}
}

func TestRefusalsAreNoSuccess(t *testing.T) {
	p := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	res, err := Run(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	if res.Requests != 0 || res.Codes[503] == 0 || res.Forward != 0 {
		t.Errorf("%+v", res)
	}
}
