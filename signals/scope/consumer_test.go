package scope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kfake"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// A scene is a Consumer without Kafka: batches are given to it as Run gives them.
type scene struct {
	*Consumer
	t     *testing.T
	store *Store
	now   *clock
	asked *server
	log   bytes.Buffer

	mu      sync.Mutex
	account *auth.Principal
	raised  []string
	deaf    int           // so many raises fail
	failed  chan struct{} // one for each
	lookUp  error
}

func newScene(t *testing.T, store *Store, now *clock, cfg ConsumerConfig, script ...func(http.ResponseWriter, string)) *scene {
	t.Helper()
	if len(script) == 0 {
		script = []func(http.ResponseWriter, string){says(outAnswer)}
	}
	s := &scene{t: t, store: store, now: now, asked: newServer(t, script...), account: account("sa_1"), failed: make(chan struct{}, 100)}
	cfg.LogsTopic, cfg.SpansTopic, cfg.Now, cfg.Logger = "logs", "spans", now.now, slog.New(slog.NewTextHandler(&s.log, nil))
	cfg.Assessor = NewAssessor(AssessorConfig{Judge: newJudge(t, s.asked.URL, 10*time.Second, nil), Store: store, Now: now.now})
	cfg.Account = func(context.Context, string, string) (*auth.Principal, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.account, s.lookUp
	}
	cfg.Raise = func(_ context.Context, _ *auth.Principal, own signals.Own) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.deaf > 0 {
			s.deaf--
			s.failed <- struct{}{}
			return errors.New("Kafka is away")
		}
		s.raised = append(s.raised, own.ID)
		return nil
	}
	s.Consumer = NewConsumer(cfg)
	return s
}

// prompt is a message of otlp_logs, written now.
func (s *scene) prompt(text string) kafka.Message {
	s.t.Helper()
	str := func(v string) *commonpb.AnyValue {
		return &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: v}}
	}
	b, err := proto.Marshal(&logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{{ScopeLogs: []*logspb.ScopeLogs{{LogRecords: []*logspb.LogRecord{{
		EventName: "user_prompt", Attributes: []*commonpb.KeyValue{{Key: "prompt", Value: str(text)}}}}}}}}})
	if err != nil {
		s.t.Fatal(err)
	}
	return kafka.Message{Topic: "logs", Time: s.now.now(), Value: b, Headers: []kafka.Header{
		{Key: "flowstate-org", Value: []byte("acme")}, {Key: "flowstate-subject-kind", Value: []byte("service_account")}, {Key: "flowstate-subject-id", Value: []byte("sa_1")}}}
}

// takes settles messages, and checks that they could be.
func (s *scene) takes(batch ...kafka.Message) {
	s.t.Helper()
	if !s.settle(s.t.Context(), batch) {
		s.t.Fatalf("not settled: %s", s.log.String())
	}
}

// counted checks the counts of today.
func (s *scene) counted(want map[string]int64) {
	s.t.Helper()
	got, err := s.store.Counts(s.t.Context(), "acme", "sa_1", 1)
	if err != nil {
		s.t.Fatal(err)
	}
	for what, n := range want {
		if got[what].Count != n {
			s.t.Errorf("%d %s, want %d; all: %v", got[what].Count, what, n, got)
		}
	}
	if len(got) != len(want) {
		s.t.Errorf("counted %v, want %v", got, want)
	}
}

var all = Shares{Default: 1}

// Topics that are missing cost one line in half a minute, and are read once they are there.
func TestWaitsForItsTopics(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		c, err := kfake.NewCluster(kfake.NumBrokers(1))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s := newScene(t, store, now, ConsumerConfig{Brokers: c.ListenAddrs(), Shares: all, FromStart: true})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		looks := s.metrics.failures.WithLabelValues("topic")
		until(t, "it has looked for its topics several times", func() bool { return testutil.ToFloat64(looks) >= 3 })
		client := &kafka.Client{Addr: kafka.TCP(c.ListenAddrs()...)}
		for _, name := range []string{"logs", "spans"} {
			made, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: 1, ReplicationFactor: 1}}})
			if err != nil || made.Errors[name] != nil {
				t.Fatal(err, made)
			}
		}
		w := &kafka.Writer{Addr: kafka.TCP(c.ListenAddrs()...), RequiredAcks: kafka.RequireAll, BatchTimeout: time.Millisecond}
		defer w.Close()
		prompt := s.prompt("a poem")
		until(t, "a prompt is written", func() bool { return w.WriteMessages(t.Context(), prompt) == nil })
		until(t, "it is judged", func() bool { return testutil.ToFloat64(s.metrics.raised) == 1 })
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
		said := s.log.String()
		if n := strings.Count(said, "which does not exist"); n < 1 || n > 2 || !strings.Contains(said, "sluice migrate") || strings.Count(said, "\n") > 10 {
			t.Errorf("%d lines, %d of them of topics that are missing\n%s", strings.Count(said, "\n"), n, said)
		}
	})
}

// until waits for what must come, for half a minute at most.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.After(30 * time.Second)
	for !f() {
		select {
		case <-end:
			t.Fatal("not so: " + what)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A share of the prompts is judged, and the first ten of a day whatever the share; none of an account whose share is 0.
func TestSample(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		draws := 0
		s := newScene(t, store, now, ConsumerConfig{Shares: Shares{Default: .25}, Draw: func() float64 { draws++; return float64(draws%4) / 4 }})
		var batch []kafka.Message
		for i := range alwaysFirst + 8 {
			batch = append(batch, s.prompt(fmt.Sprint("prompt ", string(rune('a'+i)))))
		}
		s.takes(batch...)
		if n := len(s.asked.asked()); n != alwaysFirst+2 || draws != 8 {
			t.Errorf("%d questions after %d draws, want %d after 8", n, draws, alwaysFirst+2)
		}
		s.counted(map[string]int64{Seen: alwaysFirst + 8, Sampled: alwaysFirst + 2, string(Out): alwaysFirst + 2})
		now.advance(24 * time.Hour)
		s.takes(s.prompt("the first of the next day"))
		if draws != 8 {
			t.Error("a day's first prompts are drawn for")
		}
	})
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newScene(t, store, now, ConsumerConfig{Shares: Shares{Default: 1, By: map[string]float64{"digest/production": 0}}})
		s.takes(s.prompt("one"))
		if len(s.asked.asked()) != 0 {
			t.Error("a share of 0 is judged")
		}
		s.counted(map[string]int64{Seen: 1})
		s.account.Name = "another"
		now.advance(time.Minute)
		s.accounts.InvalidateAll()
		s.takes(s.prompt("one"))
		if len(s.asked.asked()) != 1 {
			t.Error("a share is another account's")
		}
	})
}

// What waits too long is not judged, and the page says so: by the broker's clock, however late it is read.
func TestTooOld(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newScene(t, store, now, ConsumerConfig{Shares: all, MaxLag: time.Minute})
		late, early := s.prompt("late"), s.prompt("early")
		late.Time = now.now().Add(-time.Minute - time.Second)
		early.Time = now.now().Add(-time.Minute)
		s.takes(late, early)
		if n := len(s.asked.asked()); n != 1 {
			t.Errorf("%d questions", n)
		}
		s.counted(map[string]int64{Seen: 2, TooOld: 1, Sampled: 1, string(Out): 1})
		if n := testutil.ToFloat64(s.cfg.Assessor.verdicts.WithLabelValues("abstained", TooOld)); n != 1 {
			t.Errorf("%v abstentions in the metric", n)
		}
		// Whose it is cannot be asked for all that time: that is no account that is not there.
		s.accounts.InvalidateAll()
		s.lookUp = errors.New("the database is away")
		s.takes(late)
		s.counted(map[string]int64{Seen: 3, TooOld: 1, AccountUnknown: 1, Sampled: 1, string(Out): 1})
		if n := testutil.ToFloat64(s.cfg.Assessor.verdicts.WithLabelValues("abstained", AccountUnknown)); n != 1 {
			t.Errorf("%v abstentions in the metric", n)
		}
		if n := testutil.ToFloat64(s.metrics.messages.WithLabelValues("no_account")); n != 0 {
			t.Errorf("%v messages of accounts that are not there", n)
		}
		s.account, s.lookUp = nil, auth.ErrNoKey
		s.takes(s.prompt("of a deleted account"))
		if n := testutil.ToFloat64(s.metrics.messages.WithLabelValues("no_account")); n != 1 {
			t.Errorf("%v messages of accounts that are not there", n)
		}
	})
}

// A verdict that is kept is raised, however long Kafka is away: the batch is not settled before.
func TestRaisedAtLast(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newScene(t, store, now, ConsumerConfig{Shares: all, MaxLag: time.Minute})
		s.deaf = 2
		settled := make(chan bool)
		m := s.prompt("a poem")
		go func() { settled <- s.settle(t.Context(), []kafka.Message{m}) }()
		<-s.failed
		now.advance(10 * time.Minute) // far past MaxLag
		<-s.failed
		if ok := <-settled; !ok || len(s.raised) != 1 {
			t.Errorf("settled %v, raised %v", ok, s.raised)
		}
		s.deaf = 1
		ctx, cancel := context.WithCancel(t.Context())
		go func() { settled <- s.settle(ctx, []kafka.Message{s.prompt("another poem")}) }()
		<-s.failed
		cancel()
		if <-settled {
			t.Error("settled without being raised: its offset would be committed")
		}
	})
}

// A batch that comes again after a crash or a rebalance asks nothing twice, and raises the same signals under the same ids.
func TestRedelivery(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newScene(t, store, now, ConsumerConfig{Shares: all})
		batch := []kafka.Message{s.prompt("a poem"), s.prompt("a song")}
		s.takes(batch...)
		again := newScene(t, store, now, ConsumerConfig{Shares: all})
		now.advance(time.Minute)
		again.takes(batch...)
		if n := len(again.asked.asked()); n != 0 {
			t.Errorf("%d questions for what was judged", n)
		}
		if len(s.raised) != 2 || len(again.raised) != 2 || fmt.Sprint(signalSet(s.raised)) != fmt.Sprint(signalSet(again.raised)) {
			t.Errorf("raised %v, then %v", s.raised, again.raised)
		}
		if kept, err := store.Verdicts(t.Context(), "acme", "sa_1", "", 10); err != nil || len(kept) != 2 {
			t.Errorf("%d verdicts %v", len(kept), err)
		}
	})
}

func signalSet(ids []string) map[string]bool {
	set := map[string]bool{}
	for _, id := range ids {
		set[id] = true
	}
	return set
}

// A scope that was edited is judged by within the time that an account is remembered, and not before it is looked up again.
func TestScopeEdits(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newScene(t, store, now, ConsumerConfig{Shares: all})
		s.takes(s.prompt("a poem"))
		s.mu.Lock()
		s.account = account("sa_1")
		s.account.IntendedScope = "Writes poems about the weather of each town."
		s.mu.Unlock()
		s.accounts.InvalidateAll() // as after accountTTL
		s.takes(s.prompt("a poem"))
		kept, err := store.Verdicts(t.Context(), "acme", "sa_1", "", 10)
		if err != nil || len(kept) != 2 || kept[0].ScopeVersion == kept[1].ScopeVersion {
			t.Errorf("%+v %v", kept, err)
		}
		s.mu.Lock()
		s.account = account("sa_1")
		s.account.IntendedScope = ""
		s.mu.Unlock()
		s.accounts.InvalidateAll()
		n := len(s.asked.asked())
		s.takes(s.prompt("a song"))
		if len(s.asked.asked()) != n {
			t.Error("judged by a scope that was emptied")
		}
	})
}

// Who judges says so before it reads, with its settings and whether its judge answers, and takes it back when it stops.
func TestPresence(t *testing.T) {
	each(t, func(t *testing.T, store *Store, now *clock) {
		s := newScene(t, store, now, ConsumerConfig{Shares: Shares{Default: .5, By: map[string]float64{"a/production": 0}}}, fails(401, ""))
		ctx, cancel := context.WithCancel(t.Context())
		leave := s.present(ctx)
		judges, err := store.Judges(t.Context())
		if err != nil || len(judges) != 1 || judges[0].Away || judges[0].Model != "m" || judges[0].Shares.Of("a", "production") != 0 || judges[0].Shares.Of("b", "production") != .5 ||
			!judges[0].Live(now.now()) || judges[0].Live(now.now().Add(presentFor)) {
			t.Errorf("%+v %v", judges, err)
		}
		cancel()
		leave()
		if judges, err = store.Judges(t.Context()); err != nil || len(judges) != 0 {
			t.Errorf("after it stopped: %+v %v", judges, err)
		}
		// Another one, whose judge is away.
		for range breakAfter {
			_, _ = s.cfg.Assessor.Judge().ask(t.Context(), questionOf("s", "p"), nil)
		}
		ctx, cancel = context.WithCancel(t.Context())
		leave = s.present(ctx)
		if judges, err = store.Judges(t.Context()); err != nil || len(judges) != 1 || !judges[0].Away {
			t.Errorf("its judge is away: %+v %v", judges, err)
		}
		cancel()
		leave()
		// One that was killed is known for a day.
		if err := store.Present(t.Context(), &Presence{ID: "scj_killed", Since: now.now(), SeenAt: now.now()}); err != nil {
			t.Fatal(err)
		}
		now.advance(presentKnown)
		if judges, err = store.Judges(t.Context()); err != nil || len(judges) != 0 {
			t.Errorf("a day later: %+v %v", judges, err)
		}
		now.advance(time.Second)
		if err := store.Prune(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		if again, err := rowsOf(t, store); err != nil || again != 0 {
			t.Errorf("%d rows are left %v", again, err)
		}
	})
}

func rowsOf(t *testing.T, s *Store) (n int, err error) {
	t.Helper()
	err = s.r.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM scope_judges`).Scan(&n)
	return n, err
}
