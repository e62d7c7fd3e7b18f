package ingest

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"flowstate.inc/sluice/ingest/spool"
)

// keep puts messages into a spool, one call each.
func keep(t testing.TB, l *spool.Log, messages ...Message) {
	t.Helper()
	for i := range messages {
		if err := l.Append(t.Context(), []spool.Entry{entryOf(&messages[i])}); err != nil {
			t.Fatal(err)
		}
	}
}

func numbered(topic, key string, n int) []Message {
	out := make([]Message, n)
	for i := range out {
		out[i] = message(topic, key, fmt.Sprint(i))
	}
	return out
}

// What Kafka will never take moves to the quarantine, can be sent from there, and holds nobody up.
func TestDrainParksWhatKafkaRefuses(t *testing.T) {
	c := newFake(t)
	dir := t.TempDir()
	log := openSpool(t, spool.Config{Dir: dir})
	reg := prometheus.NewRegistry()
	pc := brokersOf(c)
	pc.MaxMessageBytes = 4096
	s := startSink(t, pc, SinkConfig{Spool: log, Registerer: reg})
	messages := numbered(testTopic, "k", 20)
	messages[7].Value = make([]byte, 5000)
	messages[13].Value = make([]byte, 6000)
	keep(t, log, messages...)
	startDrain(t, s)
	eventually(t, "the spool is empty", func() bool { return log.Stats().Records == 0 })
	records := read(t, c.ListenAddrs(), testTopic, 18)
	if len(records) != 18 {
		t.Errorf("%d records, want 18", len(records))
	}
	segments, err := spool.Ls(filepath.Join(dir, "quarantine"))
	if err != nil {
		t.Fatal(err)
	}
	parked := int64(0)
	for _, seg := range segments {
		parked += seg.Pending
	}
	if parked != 2 {
		t.Errorf("%d records in the quarantine, want 2", parked)
	}
	if err := spool.Each(filepath.Join(dir, "quarantine"), func(r spool.Record) error {
		if !strings.HasPrefix(r.Note, "too large for Kafka") {
			t.Errorf("the note is %q", r.Note)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	// With a limit that lets them pass they are replayed like any others.
	closeLog(t, log)
	again := openSpool(t, spool.Config{Dir: filepath.Join(dir, "quarantine")})
	wide := startSink(t, brokersOf(c), SinkConfig{Spool: again})
	if left := wide.NewDrain().Finish(t.Context(), 5*time.Second); left != 0 {
		t.Errorf("%d left", left)
	}
	if n := len(read(t, c.ListenAddrs(), testTopic, 20)); n != 20 {
		t.Errorf("%d records, want 20", n)
	}
}

// refusePoison makes a fake call batches invalid that hold the word poison.
func refusePoison(c *kfake.Cluster) {
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		req := r.(*kmsg.ProduceRequest)
		bad := false
		for _, rt := range req.Topics {
			for _, p := range rt.Partitions {
				bad = bad || bytes.Contains(p.Records, []byte("poison"))
			}
		}
		if !bad {
			return nil, nil, false
		}
		return answerProduce(req, kerr.InvalidRecord.Code), nil, true
	})
}

// A record that the broker calls invalid is found among its neighbours.
func TestDrainParksTheInvalidOne(t *testing.T) {
	c := newFake(t)
	refusePoison(c)
	log := openSpool(t, spool.Config{})
	s := startSink(t, brokersOf(c), SinkConfig{Spool: log})
	messages := numbered(testTopic, "k", 20)
	messages[5].Value = []byte("poison")
	keep(t, log, messages...)
	d := s.NewDrain()
	if left := d.Finish(t.Context(), 5*time.Second); left != 0 {
		t.Errorf("%d left", left)
	}
	if sent, parked := d.Sent(); sent != 19 || parked != 1 {
		t.Errorf("%d sent, %d parked", sent, parked)
	}
	if n := len(read(t, c.ListenAddrs(), testTopic, 19)); n != 19 {
		t.Errorf("%d records, want 19", n)
	}
}

// A missing topic pauses itself alone, says so, and goes on when it is made.
func TestDrainPausesAMissingTopic(t *testing.T) {
	c := newFake(t)
	log := openSpool(t, spool.Config{})
	out := &lockedBuffer{}
	pc := brokersOf(c)
	pc.Topics = []string{testTopic, "late"}
	s := startSink(t, pc, SinkConfig{Spool: log, Logger: slog.New(slog.NewTextHandler(out, nil))})
	const n = 30
	for i := range n {
		keep(t, log, message("late", "k", fmt.Sprint(i)), message(testTopic, "k", fmt.Sprint(i)), message("strange", "k", fmt.Sprint(i)))
	}
	startDrain(t, s)
	eventually(t, "the other topic is through", func() bool { return log.Stats().Records == 2*n })
	eventually(t, "the log says so", func() bool {
		return strings.Contains(out.String(), "topic=late reason=unknown_topic") && strings.Contains(out.String(), "topic=strange reason=not_configured")
	})
	if v := testutil.ToFloat64(s.metrics.paused[pausedUnknown]); v != 1 {
		t.Errorf("%v topics paused", v)
	}
	if _, err := EnsureTopics(t.Context(), KafkaConfig{Brokers: c.ListenAddrs()}, []TopicSpec{{Name: "late", Partitions: 2}}); err != nil {
		t.Fatal(err)
	}
	within(t, 15*time.Second, "the topic is through", func() bool { return log.Stats().Records == n })
	for i, r := range read(t, c.ListenAddrs(), "late", n) {
		if string(r.Value) != fmt.Sprint(i) {
			t.Errorf("%s where %d was to come", r.Value, i)
		}
	}
	eventually(t, "one topic is still paused", func() bool {
		return testutil.ToFloat64(s.metrics.paused[pausedUnknown]) == 0 && testutil.ToFloat64(s.metrics.paused[pausedNotConfigured]) == 1
	})
}

func TestDrainPausesWithoutAuthorization(t *testing.T) {
	c := newFake(t)
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	log := openSpool(t, spool.Config{})
	s := startSink(t, brokersOf(c), SinkConfig{Spool: log})
	keep(t, log, numbered(testTopic, "k", 10)...)
	startDrain(t, s)
	eventually(t, "it is paused", func() bool { return testutil.ToFloat64(s.metrics.paused[pausedAuthorization]) == 1 })
	if f, err := s.deliverOne("k", "live"); f != inSpool || err != nil {
		t.Errorf("meanwhile: %v %v", f, err)
	}
	fault.Remove()
	within(t, 15*time.Second, "the spool is empty", func() bool { return log.Stats().Records == 0 })
	if v := testutil.ToFloat64(s.metrics.paused[pausedAuthorization]); v != 0 {
		t.Errorf("%v topics paused", v)
	}
}

// A damaged record costs itself: the metrics say so, the others arrive.
func TestDrainPassesDamage(t *testing.T) {
	c := newFake(t)
	dir := t.TempDir()
	log := openSpool(t, spool.Config{Dir: dir})
	keep(t, log, numbered(testTopic, "k", 50)...)
	closeLog(t, log)
	flip(t, dir, "id-25")
	reg := prometheus.NewRegistry()
	log = openSpool(t, spool.Config{Dir: dir, Registerer: reg})
	s := startSink(t, brokersOf(c), SinkConfig{Spool: log, Registerer: reg})
	if left := s.NewDrain().Finish(t.Context(), 5*time.Second); left != 0 {
		t.Errorf("%d left", left)
	}
	seen := valuesOf(read(t, c.ListenAddrs(), testTopic, 49))
	if len(seen) != 49 || seen["25"] != 0 {
		t.Errorf("%d records, of the damaged one %d", len(seen), seen["25"])
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`# HELP sluice_spool_damaged_records_total Records lost by damage to the spool's files.
# TYPE sluice_spool_damaged_records_total counter
sluice_spool_damaged_records_total 1
# HELP sluice_spool_replayed_messages_total Messages of the spool that Kafka has acknowledged.
# TYPE sluice_spool_replayed_messages_total counter
sluice_spool_replayed_messages_total 49
`), "sluice_spool_damaged_records_total", "sluice_spool_replayed_messages_total"); err != nil {
		t.Error(err)
	}
	if copies, err := filepath.Glob(filepath.Join(dir, "quarantine", "damaged-*.bin")); err != nil || len(copies) != 1 {
		t.Errorf("copies of the damage: %v %v", copies, err)
	}
}

// flip turns a bit where a text stands in a spool's files.
func flip(t testing.TB, dir, text string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".seg" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if i := bytes.Index(b, []byte(text)); i >= 0 {
			b[i] ^= 0x10
			return os.WriteFile(path, b, 0o600)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Live traffic goes on while a large spool drains, and the drain stays below its rate.
func TestDrainIsBounded(t *testing.T) {
	c := newFake(t)
	log := openSpool(t, spool.Config{})
	big := strings.Repeat("x", 64<<10)
	const n = 64 // 4 MiB
	var entries []spool.Entry
	for i := range n {
		m := message(testTopic, "k", fmt.Sprint(i, big))
		entries = append(entries, entryOf(&m))
	}
	if err := log.Append(t.Context(), entries); err != nil {
		t.Fatal(err)
	}
	s := startSink(t, brokersOf(c), SinkConfig{Spool: log, ReplayBytesPerSecond: 4 << 20})
	began := time.Now()
	startDrain(t, s)
	for i := 0; log.Stats().Records > 0; i++ {
		at := time.Now()
		if f, err := s.deliverOne("live", fmt.Sprint("live ", i)); f != inKafka || err != nil {
			t.Fatalf("%v %v", f, err)
		}
		if took := time.Since(at); took > time.Second {
			t.Errorf("a live message took %v", took)
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("the spool does not drain")
		}
	}
	if took := time.Since(began); took < 600*time.Millisecond {
		t.Errorf("4 MiB were sent within %v at 4 MiB/s", took)
	}
}

// What was under way when the process ended comes again, under the same id.
func TestDrainStopsCleanly(t *testing.T) {
	c := newFake(t)
	f := newFreezer(c)
	dir := t.TempDir()
	log := openSpool(t, spool.Config{Dir: dir})
	s := startSink(t, brokersOf(c), SinkConfig{Spool: log})
	if _, err := s.deliverOne("k", "warm"); err != nil {
		t.Fatal(err)
	}
	keep(t, log, numbered(testTopic, "k", 10)...)
	f.frozen[0].Store(true)
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.NewDrain().Run(ctx)
	}()
	eventually(t, "a batch is under way", func() bool { return s.producer.undecided() > 0 })
	began := time.Now()
	cancel()
	<-stopped
	if took := time.Since(began); took > time.Second {
		t.Errorf("stopping took %v", took)
	}
	if n := log.Stats().Records; n != 10 {
		t.Errorf("%d records left, want 10", n)
	}
	f.frozen[0].Store(false)
	if left := s.NewDrain().Finish(t.Context(), 10*time.Second); left != 0 {
		t.Errorf("%d left", left)
	}
	ids := map[string]bool{}
	for _, r := range read(t, c.ListenAddrs(), testTopic, 11) {
		ids[headersOf(r)["flowstate-msg-id"]] = true
	}
	if len(ids) != 11 {
		t.Errorf("%d ids, want 11", len(ids))
	}
}

// A probe that the end of the drain cut off may find its hold gone: an earlier record took its place and got through.
func TestDrainEndsWithAProbeOfNoHold(t *testing.T) {
	s := startSink(t, brokersOf(newFake(t)), SinkConfig{Spool: openSpool(t, spool.Config{})})
	d := s.NewDrain()
	d.underway = 1
	d.settleProbe(probeResult{partitionID{testTopic, 1}, replayOutcome{err: context.Canceled}})
	if d.underway != 0 || len(d.held) != 0 {
		t.Errorf("%d under way, %d held", d.underway, len(d.held))
	}
}
