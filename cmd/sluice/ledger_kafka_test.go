package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"
)

// brokers is a Kafka of a test's own, made by the script that TEST_SERVICES_SH names.
type brokers struct {
	t      *testing.T
	script string
	dir    string
	env    []string
}

func startBrokers(t *testing.T, script string, nodes int, env ...string) *brokers {
	t.Helper()
	b := &brokers{t: t, script: script, dir: t.TempDir()}
	b.env = slices.Concat(os.Environ(), env, []string{"DIR=" + b.dir, "KAFKA_NODES=" + strconv.Itoa(nodes), "KAFKA_HEAP=256m"})
	t.Cleanup(func() {
		for n := range nodes {
			_ = b.signal(n+1, syscall.SIGCONT)
		}
		if err := b.run("clean"); err != nil {
			t.Error(err)
		}
	})
	if err := b.run("start", "kafka"); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *brokers) run(args ...string) error {
	cmd := exec.Command(b.script, args...)
	cmd.Env = b.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", b.script, args, err, out)
	}
	return nil
}

func (b *brokers) signal(node int, sig syscall.Signal) error {
	text, err := os.ReadFile(filepath.Join(b.dir, "kafka"+strconv.Itoa(node)+".pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

func (b *brokers) addresses() string { return b.get("KAFKA_BROKERS") }

// get reads a variable that the script has left.
func (b *brokers) get(name string) string {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "env"))
	if err != nil {
		b.t.Fatal(err)
	}
	for _, f := range strings.Fields(string(text)) {
		if v, ok := strings.CutPrefix(f, name+"="); ok {
			return v
		}
	}
	b.t.Fatal("the script left no " + name)
	return ""
}

// freeAddr is a loopback address below the ports that the kernel hands out, so that it is still free when its process starts again.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 200 {
		addr := "127.0.0.1:" + strconv.Itoa(20000+rand.IntN(12000))
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			ln.Close()
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

func (l *ledgerRun) signalBrokers(sig syscall.Signal, nodes ...int) {
	l.t.Helper()
	for _, n := range nodes {
		if err := l.kafka.signal(n, sig); err != nil {
			l.t.Error(err)
		}
	}
}

// startFaults hurts brokers until the returned function is called, which leaves all of them running.
func (l *ledgerRun) startFaults() func() {
	ctx, cancel := context.WithCancel(context.Background())
	rng := rand.New(rand.NewPCG(l.seed, 1))
	counts := map[string]int{}
	var wg sync.WaitGroup
	wait := func(least, most time.Duration) {
		timer := time.NewTimer(least + time.Duration(rng.Int64N(int64(most-least))))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	wg.Go(func() {
		for ctx.Err() == nil {
			wait(time.Second, 4*time.Second)
			node := 1 + rng.IntN(3)
			switch what := rng.IntN(4); what {
			case 0:
				counts["killed"]++
				if err := l.kafka.run("kill", "kafka"+strconv.Itoa(node)); err != nil {
					l.t.Error(err)
				}
				wait(time.Second, 4*time.Second)
				if err := l.kafka.run("start", "kafka"+strconv.Itoa(node)); err != nil {
					l.t.Error(err)
				}
			case 1:
				counts["one stopped"]++
				l.signalBrokers(syscall.SIGSTOP, node)
				wait(time.Second, 7*time.Second)
				l.signalBrokers(syscall.SIGCONT, node)
			case 2: // too few replicas for an acknowledgement
				counts["two stopped"]++
				other := 1 + node%3
				l.signalBrokers(syscall.SIGSTOP, node, other)
				wait(time.Second, 7*time.Second)
				l.signalBrokers(syscall.SIGCONT, node, other)
			default:
				counts["all stopped"]++
				l.signalBrokers(syscall.SIGSTOP, 1, 2, 3)
				wait(time.Second, 5*time.Second)
				l.signalBrokers(syscall.SIGCONT, 1, 2, 3)
			}
		}
	})
	stop := sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		l.t.Logf("brokers: %v", counts)
	})
	l.t.Cleanup(stop)
	return stop
}

// checkTopics looks for every acknowledged record in Kafka, with a client that is not ours.
func (l *ledgerRun) checkTopics() {
	l.t.Helper()
	copies := map[string]int{}
	replayed, messages := 0, 0
	for _, kind := range []string{"logs", "signals"} {
		for _, r := range l.readTopic(l.topics[kind]) {
			messages++
			for _, h := range r.Headers {
				if h.Key == "flowstate-replayed" {
					replayed++
				}
			}
			if kind == "signals" {
				_, rest, _ := strings.Cut(string(r.Value), `"source_id":"`)
				id, _, _ := strings.Cut(rest, `"`)
				copies[id]++
				continue
			}
			var data logspb.LogsData
			if err := proto.Unmarshal(r.Value, &data); err != nil {
				l.t.Fatal(err)
			}
			for _, rl := range data.ResourceLogs {
				for _, sl := range rl.ScopeLogs {
					for _, rec := range sl.LogRecords {
						copies[rec.GetBody().GetStringValue()]++
					}
				}
			}
		}
	}
	var missing []string
	duplicates, strangers := 0, 0
	for id := range l.acked {
		if copies[id] == 0 {
			missing = append(missing, id)
		}
	}
	for id, n := range copies {
		duplicates += n - 1
		if !l.acked[id] {
			strangers++
		}
	}
	l.t.Logf("%d records acknowledged; in Kafka %d records, %d of them not acknowledged, %d further copies (%.2f %%); %d messages, %d of them replayed",
		len(l.acked), len(copies), strangers, duplicates, 100*float64(duplicates)/float64(max(1, len(copies))), messages, replayed)
	l.t.Logf("%d answers, %d of them 503 (%d because the spool was full), the slowest after %v; %d requests without an answer",
		l.requests.Load(), l.refusals.Load(), l.spoolFull.Load(), time.Duration(l.slowest.Load()).Round(time.Millisecond), l.broken.Load())
	if len(missing) > 0 {
		l.t.Errorf("%d acknowledged records are not in Kafka, such as %v", len(missing), missing[:min(5, len(missing))])
	}
	if replayed == 0 {
		l.t.Error("nothing went by the spool")
	}
	if slowest := time.Duration(l.slowest.Load()); slowest > 8*time.Second {
		l.t.Errorf("an answer took %v, at most 8 s are promised", slowest)
	}
}

// readTopic reads a topic up to where it ends now.
func (l *ledgerRun) readTopic(topic string) []*kgo.Record {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(l.cluster...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		l.t.Fatal(err)
	}
	defer cl.Close()
	want, err := topicRecords(ctx, cl, topic)
	if err != nil {
		l.t.Fatal(err)
	}
	var out []*kgo.Record
	for int64(len(out)) < want {
		f := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			l.t.Fatalf("read %d of %d records of %s: %v", len(out), want, topic, f.Err())
		}
		out = append(out, f.Records()...)
	}
	return out
}

// topicRecords asks the leaders how much a topic holds. They may have moved a moment ago: it asks until they answer.
func topicRecords(ctx context.Context, cl *kgo.Client, topic string) (int64, error) {
	for {
		n, err := tryTopicRecords(ctx, cl, topic)
		if err == nil || ctx.Err() != nil {
			return n, err
		}
	}
}

func tryTopicRecords(ctx context.Context, cl *kgo.Client, topic string) (int64, error) {
	meta := kmsg.NewPtrMetadataRequest()
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = &topic
	meta.Topics = append(meta.Topics, mt)
	m, err := meta.RequestWith(ctx, cl)
	if err != nil {
		return 0, err
	}
	req := kmsg.NewPtrListOffsetsRequest()
	rt := kmsg.NewListOffsetsRequestTopic()
	rt.Topic = topic
	for _, part := range m.Topics[0].Partitions {
		rp := kmsg.NewListOffsetsRequestTopicPartition()
		rp.Partition, rp.Timestamp = part.Partition, -1
		rt.Partitions = append(rt.Partitions, rp)
	}
	req.Topics = append(req.Topics, rt)
	total, answered := int64(0), 0
	for _, shard := range cl.RequestSharded(ctx, req) {
		if shard.Err != nil {
			return 0, shard.Err
		}
		for _, tp := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions {
			if err := kerr.ErrorForCode(tp.ErrorCode); err != nil {
				return 0, err
			}
			total += tp.Offset
			answered++
		}
	}
	if answered == 0 || answered != len(rt.Partitions) {
		return 0, fmt.Errorf("%d of %d partitions of %s answered", answered, len(rt.Partitions), topic)
	}
	return total, nil
}

// makeDatabase makes a database on a server and says how to reach it and how to drop it.
func makeDatabase(url, name string) (string, func(), error) {
	db, err := sql.Open("pgx", url)
	if err != nil {
		return "", nil, err
	}
	if _, err := db.Exec("CREATE DATABASE " + name); err != nil {
		db.Close()
		return "", nil, err
	}
	before, query, _ := strings.Cut(url, "?")
	drop := func() {
		_, _ = db.Exec("DROP DATABASE " + name + " WITH (FORCE)")
		db.Close()
	}
	return before[:strings.LastIndex(before, "/")+1] + name + "?" + query, drop, nil
}
