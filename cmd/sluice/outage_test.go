package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploghttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	otellog "go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// An sdkReport is what a client says of its run.
type sdkReport struct {
	Made          int      `json:"made"` // spans, and as many log records
	GivenUp       []string `json:"given_up"`
	FailedExports int      `json:"failed_exports"`
	Logged        int      `json:"logged"` // errors in the SDK's log
	First         string   `json:"first"`
}

// An outage is one run: an edge with a spool and one without on a Kafka that is killed, and clients on the SDKs.
type outage struct {
	t    *testing.T
	end  context.Context // of the sending
	wg   sync.WaitGroup
	mu   sync.Mutex
	runs map[string]sdkReport // by prefix, EDGE/CLIENT

	goLogged int // errors of Go's SDK, whose log is one for the process
}

// TestExportersRideThroughAnOutage kills Kafka while unmodified OpenTelemetry SDKs send. Behind an edge with a spool nothing is lost; without one, what is
// lost is what the SDKs gave up, and their logs say so. .ci/outage.sh runs it: SLUICE_OUTAGE is how long Kafka is away, SLUICE_OUTAGE_PYTHON a Python
// and SLUICE_OUTAGE_NODE_MODULES a folder with what testdata/exporters lists.
func TestExportersRideThroughAnOutage(t *testing.T) {
	away, err := time.ParseDuration(os.Getenv("SLUICE_OUTAGE"))
	if err != nil {
		t.Skip("SLUICE_OUTAGE is not set: .ci/outage.sh runs this")
	}
	postgres, redis, script := os.Getenv("TEST_DATABASE_URL"), os.Getenv("TEST_REDIS_URL"), os.Getenv("TEST_SERVICES_SH")
	kafka := startBrokers(t, script, 1)
	suffix := fmt.Sprintf("%x", rand.Uint64())
	url := newDatabase(t, postgres, "outage_"+suffix)
	edges := map[string]*place{}
	for _, name := range []string{"spool", "plain"} {
		p := &place{dir: t.TempDir(), servers: true, url: url, env: []string{"SLUICE_POSTGRES_URL=" + url, "SLUICE_REDIS_URL=" + redis, "SLUICE_KAFKA_BROKERS=" + kafka.addresses()}}
		for _, kind := range []string{"logs", "spans", "metrics", "signals", "signals-dlq"} {
			p.env = append(p.env, envName("topic-"+kind)+"="+name+"_"+kind)
		}
		p.must(t, nil, "migrate", "--partitions=3")
		edges[name] = p
	}
	var created struct{ Key string }
	edges["spool"].must(t, &created, "accounts", "create", "--org=acme", "--name=outage", "--environment=production", "--json")
	spooling := edges["spool"].start(t, "serve", "--roles=edge", "--spool-dir="+filepath.Join(edges["spool"].dir, "spool"))
	plain := edges["plain"].start(t, "serve", "--roles=edge")

	end, endSending := context.WithCancel(t.Context())
	o := &outage{t: t, end: end, runs: map[string]sdkReport{}}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) { o.mu.Lock(); o.goLogged++; o.mu.Unlock() }))
	for name, g := range map[string]*program{"spool": spooling, "plain": plain} {
		for _, c := range []struct{ sdk, protocol string }{
			{"python", "http/protobuf"}, {"python", "grpc"}, {"node", "http/protobuf"}, {"node", "http/json"}, {"node", "grpc"}, {"go", "http/protobuf"}, {"go", "grpc"},
		} {
			endpoint := g.Edge
			if c.protocol == "grpc" {
				endpoint = g.GRPC
			}
			prefix := name + "/" + c.sdk + " " + c.protocol
			if c.sdk == "go" {
				o.wg.Go(func() { o.goClient(prefix, endpoint, c.protocol, created.Key) })
			} else {
				o.wg.Go(func() { o.client(prefix, endpoint, c.sdk, c.protocol, created.Key) })
			}
		}
	}
	wait := func(d time.Duration) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		<-timer.C
	}
	cluster := strings.Split(kafka.addresses(), ",")
	if !until(60*time.Second, nil, func() bool { return len(o.arrived(cluster, "spool")) > 100 && len(o.arrived(cluster, "plain")) > 100 }) {
		t.Fatal("nothing arrives")
	}
	began := time.Now()
	if err := kafka.run("kill", "kafka"); err != nil {
		t.Fatal(err)
	}
	wait(away - time.Since(began))
	if err := kafka.run("start", "kafka"); err != nil {
		t.Fatal(err)
	}
	t.Logf("Kafka was away for %v", time.Since(began).Round(100*time.Millisecond))
	wait(3 * time.Second)
	endSending()
	o.wg.Wait()
	if !until(60*time.Second, spooling.exited, func() bool {
		r, err := send(t.Context(), newClient(nil), "GET", spooling.Ops+"/metrics", "")
		return err == nil && bytes.Contains(r.body, []byte("\nsluice_spool_records 0\n"))
	}) {
		t.Error("the spool does not drain")
	}
	o.check(cluster)
	for _, g := range []*program{spooling, plain} {
		g.stop(t)
		if code := g.cmd.ProcessState.ExitCode(); code != 0 {
			t.Errorf("an edge ended with status %d\n%s", code, lastLines(g.err.String(), 10))
		}
	}
}

// client runs one of testdata/exporters until the sending ends.
func (o *outage) client(prefix, endpoint, sdk, protocol, key string) {
	cmd := exec.Command(os.Getenv("SLUICE_OUTAGE_PYTHON"), filepath.Join("testdata", "exporters", "python", "outage.py"), protocol, prefix)
	if sdk == "node" {
		cmd = exec.Command("node", filepath.Join("testdata", "exporters", "node", "outage.js"), protocol, prefix)
	}
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "OTEL_") })
	cmd.Env = append(cmd.Env, "NODE_PATH="+os.Getenv("SLUICE_OUTAGE_NODE_MODULES"), "PYTHONDONTWRITEBYTECODE=1", "OTEL_EXPORTER_OTLP_ENDPOINT="+endpoint,
		"OTEL_EXPORTER_OTLP_HEADERS=x-flowstate-key="+key, "OTEL_BSP_SCHEDULE_DELAY=1000", "OTEL_BLRP_SCHEDULE_DELAY=1000")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		o.t.Errorf("%s: %v", prefix, err)
		return
	}
	ended := context.AfterFunc(o.end, func() { _ = stdin.Close() })
	defer ended()
	kill := time.AfterFunc(4*time.Minute, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
	defer kill.Stop()
	err = cmd.Wait()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var report sdkReport
	if err == nil {
		err = json.Unmarshal([]byte(lines[len(lines)-1]), &report)
	}
	if err != nil {
		o.t.Errorf("%s: %v\n%s%s", prefix, err, out.String(), errOut.String())
		return
	}
	o.report(prefix, report)
}

func (o *outage) report(prefix string, r sdkReport) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.runs[prefix] = r
}

// The exporters of Go's SDK, watched: what they give up is noted, and nothing is changed.
type (
	watchedSpans struct {
		sdktrace.SpanExporter
		gaveUp func([]string)
	}
	watchedLogs struct {
		sdklog.Exporter
		gaveUp func([]string)
	}
)

func (w watchedSpans) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := w.SpanExporter.ExportSpans(ctx, spans)
	if err != nil {
		var names []string
		for _, s := range spans {
			names = append(names, s.Name())
		}
		w.gaveUp(names)
	}
	return err
}

func (w watchedLogs) Export(ctx context.Context, records []sdklog.Record) error {
	err := w.Exporter.Export(ctx, records)
	if err != nil {
		var names []string
		for _, r := range records {
			names = append(names, r.Body().AsString())
		}
		w.gaveUp(names)
	}
	return err
}

// goClient is what the programs of testdata/exporters are, on Go's SDK.
func (o *outage) goClient(prefix, endpoint, protocol, key string) {
	headers := map[string]string{"x-flowstate-key": key}
	ctx := context.Background()
	var spans sdktrace.SpanExporter
	var logs sdklog.Exporter
	var err, logErr error
	if protocol == "grpc" {
		spans, err = otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(endpoint), otlptracegrpc.WithHeaders(headers))
		logs, logErr = otlploggrpc.New(ctx, otlploggrpc.WithEndpointURL(endpoint), otlploggrpc.WithHeaders(headers))
	} else {
		spans, err = otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(endpoint+"/v1/traces"), otlptracehttp.WithHeaders(headers))
		logs, logErr = otlploghttp.New(ctx, otlploghttp.WithEndpointURL(endpoint+"/v1/logs"), otlploghttp.WithHeaders(headers))
	}
	if err != nil || logErr != nil {
		o.t.Errorf("%s: %v %v", prefix, err, logErr)
		return
	}
	var mu sync.Mutex
	report := sdkReport{}
	gaveUp := func(names []string) {
		mu.Lock()
		defer mu.Unlock()
		report.FailedExports++
		report.GivenUp = append(report.GivenUp, names...)
	}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithBatcher(watchedSpans{spans, gaveUp}, sdktrace.WithBatchTimeout(time.Second)))
	loggers := sdklog.NewLoggerProvider(sdklog.WithProcessor(sdklog.NewBatchProcessor(watchedLogs{logs, gaveUp})))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ; o.end.Err() == nil; report.Made++ {
		_, span := tracers.Tracer("outage").Start(ctx, fmt.Sprintf("%s/span-%d", prefix, report.Made))
		span.End()
		var record otellog.Record
		record.SetBody(attribute.StringValue(fmt.Sprintf("%s/log-%d", prefix, report.Made)))
		loggers.Logger("outage").Emit(ctx, record)
		<-tick.C
	}
	last, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, shutdown := range []func(context.Context) error{tracers.Shutdown, loggers.Shutdown} {
		if err := shutdown(last); err != nil {
			otel.Handle(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	o.report(prefix, report)
}

// logs counts the copies of each log record of a topic, by its text.
func (o *outage) logs(cluster []string, topic string) map[string]int {
	l := ledgerRun{t: o.t, cluster: cluster}
	copies := map[string]int{}
	for _, r := range l.readTopic(topic) {
		var data logspb.LogsData
		if err := proto.Unmarshal(r.Value, &data); err != nil {
			o.t.Fatal(err)
		}
		for _, rl := range data.ResourceLogs {
			for _, sl := range rl.ScopeLogs {
				for _, rec := range sl.LogRecords {
					copies[rec.GetBody().GetStringValue()]++
				}
			}
		}
	}
	return copies
}

// arrived counts the copies of each record of an edge's clients in Kafka, by name.
func (o *outage) arrived(cluster []string, edge string) map[string]int {
	l := ledgerRun{t: o.t, cluster: cluster}
	copies := o.logs(cluster, edge+"_logs")
	for _, r := range l.readTopic(edge + "_spans") {
		var data tracepb.TracesData
		if err := proto.Unmarshal(r.Value, &data); err != nil {
			o.t.Fatal(err)
		}
		for _, rs := range data.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, span := range ss.Spans {
					copies[span.Name]++
				}
			}
		}
	}
	return copies
}

// check compares what the clients made with what is in Kafka and with what they gave up.
func (o *outage) check(cluster []string) {
	o.t.Helper()
	copies := map[string]int{}
	for _, edge := range []string{"spool", "plain"} {
		for name, n := range o.arrived(cluster, edge) {
			copies[name] += n
		}
	}
	if len(o.runs) != 14 {
		o.t.Errorf("%d of 14 clients have reported", len(o.runs))
	}
	goFailed := 0
	for prefix, r := range o.runs {
		goClient := strings.Contains(prefix, "/go ")
		if goClient {
			goFailed += r.FailedExports
		}
		given := map[string]bool{}
		for _, name := range r.GivenUp {
			given[name] = true
		}
		lost, unsaid, further := 0, []string(nil), 0
		for i := range r.Made {
			for _, kind := range []string{"span", "log"} {
				name := fmt.Sprintf("%s/%s-%d", prefix, kind, i)
				further += max(0, copies[name]-1)
				if copies[name] > 0 {
					continue
				}
				lost++
				if !given[name] {
					unsaid = append(unsaid, name)
				}
			}
		}
		o.t.Logf("%-26s %5d made, %4d lost, %4d further copies; %3d exports given up with %4d records, %3d errors logged %.80s",
			prefix, 2*r.Made, lost, further, r.FailedExports, len(given), r.Logged, r.First)
		if len(unsaid) > 0 {
			o.t.Errorf("%s: %d records are lost that the SDK did not give up, such as %s", prefix, len(unsaid), unsaid[0])
		}
		if !goClient && r.Logged < r.FailedExports {
			o.t.Errorf("%s: %d exports given up, %d errors logged", prefix, r.FailedExports, r.Logged)
		}
		if strings.HasPrefix(prefix, "spool/") && lost > 0 {
			o.t.Errorf("%s: %d records are lost behind a spool", prefix, lost)
		}
	}
	if o.goLogged < goFailed {
		o.t.Errorf("Go: %d exports given up, %d errors logged", goFailed, o.goLogged)
	}
	o.t.Logf("Go's SDK has logged %d errors, for %d exports given up", o.goLogged, goFailed)
}
