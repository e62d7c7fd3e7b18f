package ingest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

// services is a Kafka of a test's own, made by the script that TEST_SERVICES_SH names, so that it may be killed.
type services struct {
	t      *testing.T
	script string
	dir    string
	env    []string
}

// startKafka starts a private Kafka of so many nodes; nil where there is no script and none is required.
func startKafka(t *testing.T, nodes int, env ...string) (*services, []string) {
	t.Helper()
	script := os.Getenv("TEST_SERVICES_SH")
	if script == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Fatal("SLUICE_REQUIRE_SERVICES=1, but TEST_SERVICES_SH is not set")
		}
		return nil, nil
	}
	s := &services{t: t, script: script, dir: t.TempDir()}
	s.env = append(os.Environ(), append(env, "DIR="+s.dir, "KAFKA_NODES="+strconv.Itoa(nodes), "KAFKA_HEAP=256m")...)
	t.Cleanup(func() { s.run("clean") })
	s.run("start", "kafka")
	return s, strings.Split(s.get("KAFKA_BROKERS"), ",")
}

func (s *services) run(args ...string) {
	s.t.Helper()
	cmd := exec.Command(s.script, args...)
	cmd.Env = s.env
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s %v: %v\n%s", s.script, args, err, out)
	}
}

// get reads a variable that the script has left.
func (s *services) get(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "env"))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, f := range strings.Fields(string(b)) {
		if v, ok := strings.CutPrefix(f, name+"="); ok {
			return v
		}
	}
	s.t.Fatalf("the script left no %s", name)
	return ""
}

func (s *services) signal(node string, sig syscall.Signal) {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, node+".pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		s.t.Fatal(err)
	}
	if sig == syscall.SIGSTOP {
		eventually(s.t, node+" is stopped", func() bool { return stopped(s.t, pid) })
	}
}

// stopped says whether every thread of a process is. The signal takes effect thread by thread, and late on a busy machine.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		_, state, _ := strings.Cut(string(b), ") ")
		if !strings.HasPrefix(state, "T") {
			return false
		}
	}
	return true
}

// answersInTime calls until failing is false, and checks that each failure comes within the budget.
func answersInTime(t *testing.T, p *Producer, topic, what string, calls int) {
	t.Helper()
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			began := time.Now()
			err := p.Produce(context.Background(), []Message{message(topic, fmt.Sprint(i), what)})
			if took := time.Since(began); took > 4500*time.Millisecond {
				t.Errorf("%s: an answer after %v: %v", what, took, err)
			}
			if !errors.Is(err, ErrKafkaUnavailable) {
				t.Errorf("%s: got %v", what, err)
			}
		})
	}
	wg.Wait()
}

func recovers(t *testing.T, p *Producer, topic, what string) {
	t.Helper()
	began := time.Now()
	for i := 0; ; i++ {
		err := p.Produce(context.Background(), []Message{message(topic, fmt.Sprint(i), what)})
		if err == nil && i > 12 { // every partition has been met
			break
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("%s: after 30 s still %v", what, err)
		}
	}
	t.Logf("%s: all is well after %v", what, time.Since(began).Round(time.Millisecond))
	eventually(t, "healthy", func() bool { s := p.State(); return p.Healthy() == nil && s.Reachable == s.Brokers })
	eventuallyIdle(t, p)
}

func TestProduceThroughDeathAndFreeze(t *testing.T) {
	s, brokers := startKafka(t, 1)
	if s == nil {
		return // without a Kafka to kill; the fake's tests stand for it
	}
	for _, idempotent := range []bool{false, true} {
		t.Run(fmt.Sprintf("idempotent=%v", idempotent), func(t *testing.T) {
			cfg := ProducerConfig{KafkaConfig: KafkaConfig{Brokers: brokers}, Idempotent: idempotent}
			topic := ownTopic(t, &cfg, 6)
			p := startProducer(t, cfg)
			recovers(t, p, topic, "at the start")

			s.signal("kafka1", syscall.SIGSTOP)
			answersInTime(t, p, topic, "frozen", 50)
			answersInTime(t, p, topic, "still frozen", 50)
			s.signal("kafka1", syscall.SIGCONT)
			recovers(t, p, topic, "after the thaw")

			s.run("kill", "kafka1")
			answersInTime(t, p, topic, "dead", 50)
			if p.Healthy() == nil {
				t.Error("healthy with a dead broker")
			}
			s.run("start", "kafka1")
			recovers(t, p, topic, "after the restart")
		})
	}
}

// writers write one message after another and keep what was acknowledged.
type writers struct {
	t    *testing.T
	stop func()
	wg   sync.WaitGroup

	mu      sync.Mutex
	acked   map[string]bool
	failed  int
	longest time.Duration
}

func startWriters(t *testing.T, p *Producer, topic string, n int) *writers {
	stop := make(chan struct{})
	w := &writers{t: t, acked: make(map[string]bool), stop: sync.OnceFunc(func() { close(stop) })}
	for g := range n {
		w.wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				value := fmt.Sprintf("%d-%d", g, i)
				began := time.Now()
				err := p.Produce(context.Background(), []Message{message(topic, fmt.Sprint(g, i), value)})
				took := time.Since(began)
				w.mu.Lock()
				w.longest = max(w.longest, took)
				if err == nil {
					w.acked[value] = true
				} else {
					w.failed++
				}
				w.mu.Unlock()
			}
		})
	}
	return w
}

// more waits until n more writes were acknowledged.
func (w *writers) more(n int) {
	w.t.Helper()
	count := func() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.acked) }
	want := count() + n
	within(w.t, time.Minute, "writes go on", func() bool { return count() > want })
}

func (w *writers) end() (map[string]bool, int, time.Duration) {
	w.stop()
	w.wg.Wait()
	return w.acked, w.failed, w.longest
}

// The leader of a third of the partitions dies under load and comes back; then another goes for maintenance.
func TestProduceLosesNothingInFailover(t *testing.T) {
	s, brokers := startKafka(t, 3)
	if s == nil {
		return
	}
	for _, idempotent := range []bool{false, true} {
		t.Run(fmt.Sprintf("idempotent=%v", idempotent), func(t *testing.T) {
			cfg := ProducerConfig{KafkaConfig: KafkaConfig{Brokers: brokers}, Idempotent: idempotent}
			topic := ownTopic(t, &cfg, 12)
			p := startProducer(t, cfg)
			recovers(t, p, topic, "at the start")

			w := startWriters(t, p, topic, 24)
			defer w.end()
			w.more(300)
			s.run("kill", "kafka2")
			w.more(300)
			s.run("start", "kafka2")
			w.more(300)
			s.run("stop", "kafka3")
			w.more(300)
			s.run("start", "kafka3")
			w.more(300)
			acked, failed, longest := w.end()
			seen := valuesOf(read(t, brokers, topic, len(acked)))
			lost, twice := 0, 0
			for v := range acked {
				if seen[v] == 0 {
					lost++
				}
				if seen[v] > 1 {
					twice++
				}
			}
			t.Logf("%d acknowledged, %d failed, %d lost, %d twice, the longest call %v", len(acked), failed, lost, twice, longest.Round(time.Millisecond))
			if lost > 0 {
				t.Errorf("%d acknowledged messages are not in the log", lost)
			}
			t.Logf("tries again: %v", testutil.ToFloat64(p.metrics.retries))
			if longest > 4500*time.Millisecond {
				t.Errorf("a call took %v", longest)
			}
			if idempotent && twice > 0 {
				t.Errorf("%d acknowledged messages are in the log twice", twice)
			}
			eventuallyIdle(t, p)
		})
	}
}
