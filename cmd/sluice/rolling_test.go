package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"flowstate.inc/sluice/auth"
)

// A backend is one process behind a balancer.
type backend struct {
	*edge
	ready atomic.Bool
}

// A balancer hands connections to the processes whose /readyz says that they are ready, one after the other, as load balancers do; it knows nothing
// else of them.
type balancer struct {
	mu       sync.Mutex
	backends []*backend
	next     int
	refused  []string // connections that a process refused although it was ready
	dropped  int      // connections that came while no process was ready
}

// follow asks the backends for their readiness until the test ends.
func (b *balancer) follow(ctx context.Context) {
	client := &http.Client{Timeout: time.Second}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		b.mu.Lock()
		all := append([]*backend(nil), b.backends...)
		b.mu.Unlock()
		for _, e := range all {
			res, err := client.Get(e.ops + "/readyz")
			if os.IsTimeout(err) {
				continue // a load balancer counts some of these before it believes them
			}
			if err == nil {
				res.Body.Close()
			}
			e.ready.Store(err == nil && res.StatusCode == 200)
		}
	}
}

// serve takes connections for one of the ports of the backends.
func (b *balancer) serve(t *testing.T, target func(*backend) string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go b.hand(conn, target)
		}
	}()
	return ln.Addr().String()
}

func (b *balancer) hand(conn net.Conn, target func(*backend) string) {
	defer conn.Close()
	var out net.Conn
	for range 3 {
		b.mu.Lock()
		var to *backend
		for range b.backends {
			e := b.backends[b.next%len(b.backends)]
			b.next++
			if e.ready.Load() {
				to = e
				break
			}
		}
		b.mu.Unlock()
		if to == nil {
			b.mu.Lock()
			b.dropped++
			b.mu.Unlock()
			return
		}
		var err error
		if out, err = net.DialTimeout("tcp", target(to), time.Second); err == nil {
			break
		}
		b.mu.Lock()
		b.refused = append(b.refused, err.Error())
		b.mu.Unlock()
	}
	if out == nil {
		return
	}
	defer out.Close()
	var both sync.WaitGroup
	pipe := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src)
		_ = dst.(*net.TCPConn).CloseWrite()
	}
	both.Go(func() { pipe(out, conn) })
	both.Go(func() { pipe(conn, out) })
	both.Wait()
}

// A roller is the clients of a rolling restart: what they were told is written, and each try that failed.
type roller struct {
	t     *testing.T
	ctx   context.Context
	mu    sync.Mutex
	acked []string
	tries int
	later map[string]int // tries that failed as clients retry
}

func (r *roller) note(ids []string, failure string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries++
	if failure == "" {
		r.acked = append(r.acked, ids...)
	} else {
		r.later[failure]++
	}
}

// run sends numbered records until the context ends, each until it is acknowledged.
func (r *roller) run(name string, try func(ctx context.Context, ids []string) string) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n := 0; r.ctx.Err() == nil; n++ {
		ids := []string{fmt.Sprintf("%s-%d-a", name, n), fmt.Sprintf("%s-%d-b", name, n)}
		for range 20 {
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			failure := try(ctx, ids)
			cancel()
			r.note(ids, failure)
			if failure == "" {
				break
			}
			<-tick.C
		}
		<-tick.C
	}
}

func (r *roller) http(number int, addr, key string) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	r.run(fmt.Sprintf("http-%d", number), func(ctx context.Context, ids []string) string {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/logs", bytes.NewReader(logsJSON(ids)))
		if err != nil {
			r.t.Error(err)
			return err.Error()
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Flowstate-Key", key)
		res, err := client.Do(req)
		if err != nil {
			return "connection cut"
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		switch {
		case err != nil:
			return "connection cut"
		case res.StatusCode == 200 && !bytes.Contains(body, []byte("rejected")):
			return ""
		case res.StatusCode == 503 && res.Header.Get("Retry-After") != "":
			return "503"
		}
		r.t.Errorf("%d %s", res.StatusCode, body)
		return "refused"
	})
}

func (r *roller) grpc(number int, addr, key string) {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Error(err)
		return
	}
	defer conn.Close()
	logs := collogs.NewLogsServiceClient(conn)
	r.run(fmt.Sprintf("grpc-%d", number), func(ctx context.Context, ids []string) string {
		var records []*logspb.LogRecord
		for _, id := range ids {
			records = append(records, &logspb.LogRecord{Body: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: id}}})
		}
		_, err := logs.Export(metadata.AppendToOutgoingContext(ctx, "x-flowstate-key", key), &collogs.ExportLogsServiceRequest{
			ResourceLogs: []*logspb.ResourceLogs{{ScopeLogs: []*logspb.ScopeLogs{{LogRecords: records}}}},
		})
		switch status.Code(err) {
		case codes.OK:
			return ""
		case codes.Unavailable:
			return "UNAVAILABLE"
		}
		r.t.Error(err)
		return "refused"
	})
}

// TestRollingRestart replaces three edges, one after the other, behind a load balancer and under load: no process refuses a connection while it says that it is
// ready, nothing is refused but what clients try again, nothing that was acknowledged is lost, and each process ends with status 0, not before its
// delay.
func TestRollingRestart(t *testing.T) {
	f := newFleet(t)
	const delay = time.Second
	start := func() *backend {
		e := &backend{edge: f.start("", "--roles=edge", "--drain-delay="+delay.String(), "--spool-dir="+t.TempDir())}
		if !until(30*time.Second, e.exited, func() bool {
			res, err := e.client.Get(e.ops + "/readyz")
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == 200
		}) {
			t.Fatal("the edge is not ready")
		}
		e.ready.Store(true)
		return e
	}
	var b balancer
	for range 3 {
		b.backends = append(b.backends, start())
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go b.follow(ctx)
	httpAddr := b.serve(t, func(e *backend) string { return strings.TrimPrefix(e.edge.edge, "http://") })
	grpcAddr := b.serve(t, func(e *backend) string { return e.grpc })
	_, key := f.account("rolling", auth.Limits{})
	sending, endSending := context.WithCancel(ctx)
	r := &roller{t: t, ctx: sending, later: map[string]int{}}
	var clients sync.WaitGroup
	for i := range 6 {
		clients.Go(func() { r.http(i, httpAddr, key) })
	}
	for i := range 2 {
		clients.Go(func() { r.grpc(i, grpcAddr, key) })
	}
	defer clients.Wait()
	defer endSending()
	acked := func() int {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.acked)
	}
	flows := func() {
		t.Helper()
		before := acked()
		if !until(30*time.Second, nil, func() bool { return acked() > before+200 }) {
			t.Fatal("nothing is acknowledged any more")
		}
	}
	for i := range 3 {
		flows()
		old := b.backends[i]
		fresh := start()
		b.mu.Lock()
		b.backends = append(b.backends, fresh)
		b.mu.Unlock()
		began := time.Now()
		if err := old.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if !until(time.Minute, nil, func() bool {
			select {
			case <-old.exited:
				return true
			default:
				return false
			}
		}) {
			t.Fatal("the edge does not end")
		}
		if took := time.Since(began); took < delay {
			t.Errorf("edge %d ended after %v, its delay is %v", i, took, delay)
		}
		if code := old.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("edge %d ended with status %d: %s", i, code, lastLines(old.err.String(), 20))
		}
	}
	flows()
	endSending()
	clients.Wait()
	t.Logf("%d tries, %d records acknowledged; failed and tried again: %v", r.tries, len(r.acked), r.later)
	// A keep-alive connection may be closed in the moment in which a client writes to it, once for each client and stop.
	if cut := r.later["connection cut"]; cut > 6*3 {
		t.Errorf("%d connections were cut under a request, by three stops under six clients", cut)
	}
	b.mu.Lock() // the last connections may not have ended
	defer b.mu.Unlock()
	if b.dropped > 0 {
		t.Errorf("%d connections came while no process was ready", b.dropped)
	}
	if len(b.refused) > 0 {
		t.Errorf("%d connections were refused by a process that was ready: %s", len(b.refused), b.refused[0])
	}
	o := outage{t: t}
	seen := o.logs(strings.Split(os.Getenv("TEST_KAFKA_BROKERS"), ","), f.name+"_logs")
	for _, id := range r.acked {
		if seen[id] == 0 {
			t.Errorf("%s was acknowledged and is not in Kafka", id)
		}
	}
}
