package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestLedger is the promise behind a 2xx, on three real brokers: whatever was acknowledged is in Kafka at the end, although the edge was killed with -9 at random
// moments, brokers were killed, stopped and started again, and the spool was full; and what the edge says it received is the sum of what it says became
// of it. SLUICE_LEDGER_KILLS (50) makes it longer, SLUICE_LEDGER_SEED repeats the moments.
func TestLedger(t *testing.T) {
	t.Parallel()
	l := newLedgerRun(t)
	began := time.Now()
	clients := l.startClients(6)
	endFaults := l.startFaults()
	for i := range l.kills {
		e := l.startEdge(l.rng.IntN(3) == 0)
		l.pause(0, 1500*time.Millisecond)
		l.checkSums(e)
		e.kill()
		if i%10 == 9 {
			t.Logf("%v: %d kills, %d records acknowledged", time.Since(began).Round(time.Second), i+1, l.ackedCount())
		}
	}
	endFaults()

	// All brokers stand still: a file of the spool reaches the limit, and the edge goes on.
	e := l.startEdge(true)
	l.signalBrokers(syscall.SIGSTOP, 1, 2, 3)
	if !until(60*time.Second, e.exited, func() bool { return strings.Contains(e.err.String(), "file too large") }) {
		t.Errorf("no file of the spool reached its limit\n%s", e.tail())
	}
	l.checkSums(e)
	e.kill()
	l.signalBrokers(syscall.SIGCONT, 1, 2, 3)

	// All brokers stand still again: the spool fills, and then the edge says so.
	e = l.startEdge(false)
	l.signalBrokers(syscall.SIGSTOP, 1, 2, 3)
	full := l.spoolFull.Load()
	if !until(60*time.Second, e.exited, func() bool { return l.spoolFull.Load() > full }) {
		t.Errorf("no answer said that the spool is full\n%s", e.tail())
	}
	e.kill()
	l.signalBrokers(syscall.SIGCONT, 1, 2, 3)

	e = l.startEdge(false)
	if !until(60*time.Second, e.exited, func() bool { return l.acceptedSince(e) > 100 }) {
		t.Fatalf("with all brokers back the edge accepts nothing\n%s", e.tail())
	}
	clients()
	if !until(120*time.Second, e.exited, func() bool { m, err := e.metrics(); return err == nil && m["sluice_spool_records"] == 0 }) {
		t.Errorf("the spool does not drain\n%s", e.tail())
	}
	for kind, n := range l.checkSums(e) {
		if (kind == "logs" || kind == "signals") && n == 0 {
			t.Errorf("the last edge received no %s", kind)
		}
	}
	if code := e.stop(); code != 0 {
		t.Errorf("the edge stopped with status %d\n%s", code, e.tail())
	}
	l.run("spool", "verify", "--dir", l.spool)
	l.checkTopics()
	t.Logf("%v in all", time.Since(began).Round(time.Second))
}

// A ledgerRun is one run: its servers, and what its clients were told.
type ledgerRun struct {
	t       *testing.T
	kills   int
	rng     *rand.Rand // of the test's goroutine
	seed    uint64
	binary  string
	env     []string
	kafka   *brokers
	spool   string
	edge    string // address, the same for every process
	ops     string
	key     string
	topics  map[string]string // kind → name
	cluster []string

	spoolFull, refusals, broken, requests atomic.Int64
	slowest                               atomic.Int64

	mu    sync.Mutex
	acked map[string]bool
}

func newLedgerRun(t *testing.T) *ledgerRun {
	postgres, redis, script := os.Getenv("TEST_DATABASE_URL"), os.Getenv("TEST_REDIS_URL"), os.Getenv("TEST_SERVICES_SH")
	if postgres == "" || redis == "" || script == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_SERVICES_SH are required")
		}
		t.Skip("TEST_DATABASE_URL, TEST_REDIS_URL and TEST_SERVICES_SH are not set")
	}
	l := &ledgerRun{t: t, kills: 50, seed: rand.Uint64(), acked: map[string]bool{}, spool: filepath.Join(t.TempDir(), "spool"), topics: map[string]string{}}
	if s := os.Getenv("SLUICE_LEDGER_KILLS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		l.kills = n
	}
	if s := os.Getenv("SLUICE_LEDGER_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		l.seed = n
	}
	t.Logf("SLUICE_LEDGER_SEED=%d SLUICE_LEDGER_KILLS=%d", l.seed, l.kills)
	l.rng = rand.New(rand.NewPCG(l.seed, 0))
	var err error
	if l.binary, err = exec.LookPath("sluice"); err != nil {
		t.Fatal(err)
	}
	l.kafka = startBrokers(t, script, 3)
	l.cluster = strings.Split(l.kafka.addresses(), ",")
	l.edge, l.ops = freeAddr(t), freeAddr(t)
	suffix := fmt.Sprintf("%x", rand.Uint64())
	url, drop, err := makeDatabase(postgres, "ledger_"+suffix)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(drop)
	l.env = append(os.Environ(), "SLUICE_POSTGRES_URL="+url, "SLUICE_REDIS_URL="+redis, "SLUICE_KAFKA_BROKERS="+l.kafka.addresses())
	for _, kind := range []string{"logs", "spans", "metrics", "signals", "signals-dlq"} {
		l.topics[kind] = "ledger_" + kind
		l.env = append(l.env, envName("topic-"+kind)+"="+l.topics[kind])
	}
	l.run("migrate", "--partitions=3", "--replication=3")
	var created struct {
		Key string `json:"key"`
	}
	if err := json.Unmarshal(l.run("accounts", "create", "--org=acme", "--name=ledger", "--environment=production", "--json"), &created); err != nil {
		t.Fatal(err)
	}
	l.key = created.Key
	return l
}

// run runs a sluice command to its end.
func (l *ledgerRun) run(args ...string) []byte {
	l.t.Helper()
	cmd := exec.Command(l.binary, args...)
	cmd.Env = l.env
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("sluice %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut.String())
	}
	return out
}

// pause waits for a random time.
func (l *ledgerRun) pause(least, most time.Duration) {
	timer := time.NewTimer(least + time.Duration(l.rng.Int64N(int64(most-least))))
	defer timer.Stop()
	<-timer.C
}

// An edgeProcess is one life of the edge.
type edgeProcess struct {
	l *ledgerRun
	server
	acceptedBefore int
}

// startEdge starts the edge on the spool that the one before has left, and waits until it is ready; limited is with a limit on the size of its files.
func (l *ledgerRun) startEdge(limited bool) *edgeProcess {
	l.t.Helper()
	args := []string{l.binary, "serve", "--roles=edge", "--edge-addr=" + l.edge, "--grpc-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--ops-addr=" + l.ops,
		"--spool-dir=" + l.spool, "--spool-max-bytes=1000000", "--drain-delay=0s"}
	if limited {
		args = append([]string{"bash", "-c", `ulimit -f 100; exec "$@"`, "bash"}, args...)
	}
	e := &edgeProcess{l: l, server: server{cmd: exec.Command(args[0], args[1:]...), exited: make(chan struct{})}, acceptedBefore: l.ackedCount()}
	e.cmd.Env = l.env
	e.cmd.Stdout, e.cmd.Stderr = &e.out, &e.err
	if err := e.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() {
		_ = e.cmd.Wait()
		close(e.exited)
	}()
	l.t.Cleanup(func() { _ = e.cmd.Process.Kill(); <-e.exited })
	if !until(60*time.Second, e.exited, func() bool { return strings.Contains(e.err.String(), `"msg":"ready"`) }) {
		l.t.Fatalf("the edge is not ready\n%s", e.tail())
	}
	return e
}

func (e *edgeProcess) kill() {
	_ = e.cmd.Process.Kill()
	<-e.exited
	if code := e.cmd.ProcessState.ExitCode(); code != -1 {
		e.l.t.Errorf("the edge had ended by itself with status %d\n%s", code, e.tail())
	}
}

func (e *edgeProcess) stop() int {
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	if !until(60*time.Second, e.exited, func() bool { return false }) && e.cmd.ProcessState == nil {
		_ = e.cmd.Process.Kill()
		<-e.exited
	}
	return e.cmd.ProcessState.ExitCode()
}

func (e *edgeProcess) tail() string {
	s := e.err.String()
	return s[max(0, len(s)-4000):]
}

// metrics reads /metrics: every series by its name and labels.
func (e *edgeProcess) metrics() (map[string]float64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+e.l.ops+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	out := map[string]float64{}
	for _, line := range strings.Split(string(b), "\n") {
		i := strings.LastIndexByte(line, ' ')
		if strings.HasPrefix(line, "#") || i < 0 {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, err
		}
		out[line[:i]] = v
	}
	return out, nil
}

// checkSums holds the edge to "received = sum of outcomes", for each kind, and returns what it received. A scrape may fall between the two sides of one request,
// not each of many scrapes.
func (l *ledgerRun) checkSums(e *edgeProcess) map[string]float64 {
	l.t.Helper()
	var received, sums map[string]float64
	if !until(10*time.Second, e.exited, func() bool {
		m, err := e.metrics()
		if err != nil {
			return false
		}
		received, sums = map[string]float64{}, map[string]float64{}
		for series, v := range m {
			if rest, ok := strings.CutPrefix(series, `sluice_ingest_records_total{kind="`); ok {
				kind, _, _ := strings.Cut(rest, `"`)
				sums[kind] += v
			}
			if rest, ok := strings.CutPrefix(series, `sluice_ingest_records_received_total{kind="`); ok {
				kind, _, _ := strings.Cut(rest, `"`)
				received[kind] = v
			}
		}
		return len(received) > 0 && maps.Equal(received, sums)
	}) {
		l.t.Errorf("received %v, the sums of outcomes are %v\n%s", received, sums, e.tail())
	}
	return received
}

func (l *ledgerRun) ackedCount() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

func (l *ledgerRun) acceptedSince(e *edgeProcess) int { return l.ackedCount() - e.acceptedBefore }

// startClients starts clients that send until the returned function is called.
func (l *ledgerRun) startClients(n int) func() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { l.client(ctx, i) })
	}
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	l.t.Cleanup(stop)
	return stop
}

// client sends numbered records, three to a request, and again until they are acknowledged, as exporters do.
func (l *ledgerRun) client(ctx context.Context, number int) {
	client := &http.Client{Transport: &http.Transport{}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(15 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ctx.Err() == nil; n++ {
		ids := make([]string, 3)
		for i := range ids {
			ids[i] = fmt.Sprintf("rec-%02d-%06d-%d", number, n, i)
		}
		path, body := "/v1/logs", logsJSON(ids)
		if n%2 == 0 {
			path, body = "/v1/signals", signalsJSON(ids)
		}
		for try := 0; try < 40 && ctx.Err() == nil; try++ {
			if l.post(ctx, client, path, body) {
				l.mu.Lock()
				for _, id := range ids {
					l.acked[id] = true
				}
				l.mu.Unlock()
				break
			}
			wait := time.NewTimer(100 * time.Millisecond)
			select {
			case <-ctx.Done():
			case <-wait.C:
			}
			wait.Stop()
		}
		<-tick.C
	}
}

// post sends one request and says whether it was acknowledged.
func (l *ledgerRun) post(ctx context.Context, client *http.Client, path string, body []byte) bool {
	// A request that is under way when the clients end is waited for.
	req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, "http://"+l.edge+path, bytes.NewReader(body))
	if err != nil {
		l.t.Error(err)
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("x-flowstate-key", l.key)
	began := time.Now()
	res, err := client.Do(req)
	if err != nil {
		l.broken.Add(1) // killed, or not up yet
		return false
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		l.broken.Add(1)
		return false
	}
	l.requests.Add(1)
	if took := int64(time.Since(began)); took > l.slowest.Load() {
		l.slowest.Store(took)
	}
	switch {
	case res.StatusCode == 200 && (path == "/v1/signals" && bytes.Contains(answer, []byte(`"accepted":3`)) || path == "/v1/logs" && !bytes.Contains(answer, []byte("rejected"))):
		return true
	case res.StatusCode == 503 && res.Header.Get("Retry-After") != "":
		l.refusals.Add(1)
		if bytes.Contains(answer, []byte("spool of this edge is full")) {
			l.spoolFull.Add(1)
		}
	default:
		l.t.Errorf("%s: %d %s", path, res.StatusCode, answer)
	}
	return false
}

func signalsJSON(ids []string) []byte {
	var items []string
	for _, id := range ids {
		items = append(items, fmt.Sprintf(`{"type":"forecast_breach","id":%q,"details":{"padding":%q}}`, id, strings.Repeat("x", 100)))
	}
	return []byte("[" + strings.Join(items, ",") + "]")
}

func logsJSON(ids []string) []byte {
	var records []string
	for _, id := range ids {
		records = append(records, fmt.Sprintf(`{"timeUnixNano":"1700000000000000000","body":{"stringValue":%q}}`, id))
	}
	return []byte(`{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"ledger"}}]},"scopeLogs":[{"logRecords":[` +
		strings.Join(records, ",") + `]}]}]}`)
}
