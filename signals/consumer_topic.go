package signals

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/segmentio/kafka-go"
)

const (
	lookTopicEvery = 5 * time.Second  // at how many partitions there are
	sayEvery       = 30 * time.Second // one line of each sort
)

// Topics are what a consumer reads. It waits for them and looks whether they change, which kafka-go's group does badly: it asks for a missing one, and logs it, as
// fast as it can. Brokers, Names, Reader, Failures and Log are required.
type Topics struct {
	Brokers  []string
	Dialer   *kafka.Dialer // for TLS and SASL; nil: plain
	Names    []string
	Reader   string             // what the log calls the consumer
	Failures prometheus.Counter // looks that found one missing, or no broker to ask
	Log      *QuietLog
}

// Await waits until all topics exist and says how many partitions each has; false when ctx ended before.
func (t *Topics) Await(ctx context.Context) ([]int, bool) {
	wait := retryMin
	for {
		counts, ok := t.look(ctx)
		if ok {
			return counts, true
		}
		if ctx.Err() != nil {
			return nil, false
		}
		t.Failures.Inc()
		if !pause(ctx, wait) {
			return nil, false
		}
		wait = min(2*wait, retryMax)
	}
}

// look says how many partitions each topic has; false, and in the log which, where one is missing or nobody can be asked.
func (t *Topics) look(ctx context.Context) ([]int, bool) {
	counts := make([]int, len(t.Names))
	for i, name := range t.Names {
		n, err := t.partitions(ctx, name)
		switch {
		case n > 0:
			counts[i] = n
			continue
		case ctx.Err() != nil:
		case err == nil:
			t.Log.Say(slog.LevelError, "missing "+name, "the "+t.Reader+" waits for its topic, which does not exist: create it with sluice migrate", "topic", name)
		default:
			t.Log.Say(slog.LevelWarn, "unreachable", "the "+t.Reader+" cannot look up its topic", "topic", name, "error", err)
		}
		return nil, false
	}
	return counts, true
}

// Watch calls changed when a topic has another number of partitions than Await said, or is gone: the group shares out what there was when it began.
func (t *Topics) Watch(ctx context.Context, counts []int, changed func()) {
	for pause(ctx, lookTopicEvery) {
		for i, name := range t.Names {
			if now, err := t.partitions(ctx, name); err == nil && now != counts[i] {
				changed()
				return
			}
		}
	}
}

// partitions says how many partitions a topic has; 0 where it does not exist. An error means that no broker could be asked.
func (t *Topics) partitions(ctx context.Context, name string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTopicEvery)
	defer cancel()
	dialer := t.Dialer
	if dialer == nil {
		dialer = kafka.DefaultDialer
	}
	var failed []error
	for _, addr := range t.Brokers {
		parts, err := dialer.LookupPartitions(ctx, "tcp", addr, name)
		if err == nil || errors.Is(err, kafka.UnknownTopicOrPartition) {
			return len(parts), nil
		}
		failed = append(failed, err)
	}
	return 0, errors.Join(failed...)
}

// A QuietLog lets one line of each sort through in half a minute, and counts the others: an outage of Kafka brings many a second.
type QuietLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	last map[string]time.Time
	held map[string]int
	ill  time.Time // when something was to be said last, unless Well came after that
}

// NewQuietLog returns a QuietLog that writes to log.
func NewQuietLog(log *slog.Logger) *QuietLog {
	return &QuietLog{log: log, last: map[string]time.Time{}, held: map[string]int{}}
}

// Say logs unless a line of the same sort was logged within half a minute.
func (q *QuietLog) Say(level slog.Level, sort, msg string, args ...any) {
	ok, held := q.allow(sort, time.Now())
	if !ok {
		return
	}
	if held > 0 {
		args = append(args, "left_out", held)
	}
	q.log.Log(context.Background(), level, msg, args...)
}

// Well logs, once, that what was said before is over, and has the next outage said at once. There must have been nothing to say for so long: what comes and
// goes is not over.
func (q *QuietLog) Well(after time.Duration, msg string) {
	q.mu.Lock()
	was := !q.ill.IsZero() && time.Since(q.ill) >= after
	if was {
		q.ill = time.Time{}
		clear(q.last)
		clear(q.held)
	}
	q.mu.Unlock()
	if was {
		q.log.Info(msg)
	}
}

// ReadsWell is how long a consumer must have had nothing to complain of when it says that it reads again.
const ReadsWell = 5 * time.Second

// Complaints takes what kafka-go's reader has to say of a consumer's work.
func (q *QuietLog) Complaints(reader string) kafka.Logger {
	return kafka.LoggerFunc(func(format string, a ...any) {
		q.Say(slog.LevelWarn, format, reader+": the kafka client complains", "said", fmt.Sprintf(format, a...))
	})
}

// allow says whether a line of the sort is due, and how many were held back since the last.
func (q *QuietLog) allow(sort string, now time.Time) (bool, int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ill = now
	if last, ok := q.last[sort]; ok && now.Sub(last) < sayEvery {
		q.held[sort]++
		return false, 0
	}
	held := q.held[sort]
	q.last[sort] = now
	delete(q.held, sort)
	return true, held
}

// watchEnds looks whether a partition ends before the place where its reader is: kafka-go would wait, without an error, until as much has been written again.
// It must be so twice in a row, since a leader that is new may not know yet how far it may show its log.
func (c *Consumer) watchEnds(ctx context.Context, r *kafka.Reader, end func()) {
	found := false
	for pause(ctx, lookTopicEvery) {
		look, cancel := context.WithTimeout(ctx, lookTopicEvery)
		back, err := c.pastTheEnd(look)
		cancel()
		if err == nil && len(back) > 0 && found {
			c.rewind(ctx, r)
			end()
			return
		}
		found = err == nil && len(back) > 0
	}
}

// rewind lets the group begin anew in partitions that end before the place where it left: the topic was deleted and made again, or a broker came back with
// less than it had. What is read twice is stored once.
func (c *Consumer) rewind(ctx context.Context, r *kafka.Reader) {
	ctx, cancel := context.WithTimeout(ctx, lookTopicEvery)
	defer cancel()
	back, err := c.pastTheEnd(ctx)
	if err == nil && len(back) > 0 {
		err = r.CommitMessages(ctx, back...)
	}
	if err != nil {
		c.said.Say(slog.LevelWarn, "rewind", "the alerts consumer cannot go back to the beginning of its topic", "topic", c.cfg.Topic, "error", err)
		return
	}
	c.cfg.Logger.Error("the topic of the alerts ends before the place where its consumer was, as if it had been deleted and made anew: it is read from its beginning; "+
		"signals that were not read before are lost", "topic", c.cfg.Topic, "partitions", len(back))
}

// pastTheEnd returns, for each partition that ends before the group's offset, a message whose commit sets the group to its beginning.
func (c *Consumer) pastTheEnd(ctx context.Context) ([]kafka.Message, error) {
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	if d := c.cfg.Dialer; d != nil {
		transport.Dial, transport.TLS, transport.SASL = d.DialFunc, d.TLS, d.SASLMechanism
	}
	client := &kafka.Client{Addr: kafka.TCP(c.cfg.Brokers...), Transport: transport}
	n, err := c.topics.partitions(ctx, c.cfg.Topic)
	if err != nil {
		return nil, err
	}
	var numbers []int
	var ends []kafka.OffsetRequest
	for i := range n {
		numbers, ends = append(numbers, i), append(ends, kafka.FirstOffsetOf(i), kafka.LastOffsetOf(i))
	}
	held, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{c.cfg.Topic: ends}})
	if err != nil {
		return nil, err
	}
	group, err := client.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: c.cfg.Group, Topics: map[string][]int{c.cfg.Topic: numbers}})
	if err == nil {
		err = group.Error
	}
	if err != nil {
		return nil, err
	}
	at := map[int]int64{}
	for _, p := range group.Topics[c.cfg.Topic] {
		at[p.Partition] = p.CommittedOffset
	}
	c.mu.Lock()
	for p, next := range c.next {
		at[p] = max(at[p], next) // the offset that was committed goes with the topic
	}
	c.mu.Unlock()
	var back []kafka.Message
	for _, p := range held.Topics[c.cfg.Topic] {
		if p.Error == nil && at[p.Partition] > p.LastOffset {
			back = append(back, kafka.Message{Topic: c.cfg.Topic, Partition: p.Partition, Offset: p.FirstOffset - 1})
		}
	}
	return back, nil
}
