package signals

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

const (
	lookTopicEvery = 5 * time.Second  // at how many partitions there are
	sayEvery       = 30 * time.Second // one line of each sort
)

// awaitTopic waits until the topic exists and says how many partitions it has; false when ctx ended before. kafka-go's group would ask for a missing one, and log
// it, as fast as it can.
func (c *Consumer) awaitTopic(ctx context.Context) (int, bool) {
	wait := retryMin
	for {
		n, err := c.partitions(ctx)
		switch {
		case ctx.Err() != nil:
			return 0, false
		case n > 0:
			return n, true
		case err == nil:
			c.metrics.topicFails.Inc()
			c.say(slog.LevelError, "missing", "the alerts consumer waits for its topic, which does not exist: create it with sluice migrate", "topic", c.cfg.Topic)
		default:
			c.metrics.topicFails.Inc()
			c.say(slog.LevelWarn, "unreachable", "the alerts consumer cannot look up its topic", "topic", c.cfg.Topic, "error", err)
		}
		if !pause(ctx, wait) {
			return 0, false
		}
		wait = min(2*wait, retryMax)
	}
}

// watchTopic calls changed when the topic has another number of partitions than n, or is gone: the group shares out what there was when it began.
func (c *Consumer) watchTopic(ctx context.Context, n int, changed func()) {
	for pause(ctx, lookTopicEvery) {
		if now, err := c.partitions(ctx); err == nil && now != n {
			changed()
			return
		}
	}
}

// partitions says how many partitions the topic has; 0 where it does not exist. An error means that no broker could be asked.
func (c *Consumer) partitions(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTopicEvery)
	defer cancel()
	dialer := c.cfg.Dialer
	if dialer == nil {
		dialer = kafka.DefaultDialer
	}
	var failed []error
	for _, addr := range c.cfg.Brokers {
		parts, err := dialer.LookupPartitions(ctx, "tcp", addr, c.cfg.Topic)
		if err == nil || errors.Is(err, kafka.UnknownTopicOrPartition) {
			return len(parts), nil
		}
		failed = append(failed, err)
	}
	return 0, errors.Join(failed...)
}

// A saidOnce lets one line of each sort through in a while, and counts the others.
type saidOnce struct {
	mu   sync.Mutex
	last map[string]time.Time
	held map[string]int
}

// allow says whether a line of the sort is due, and how many were held back since the last.
func (s *saidOnce) allow(sort string, now time.Time) (bool, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.last[sort]; ok && now.Sub(last) < sayEvery {
		s.held[sort]++
		return false, 0
	}
	held := s.held[sort]
	s.last[sort] = now
	delete(s.held, sort)
	return true, held
}

// say logs unless a line of the same sort was logged within half a minute.
func (c *Consumer) say(level slog.Level, sort, msg string, args ...any) {
	ok, held := c.said.allow(sort, time.Now())
	if !ok {
		return
	}
	if held > 0 {
		args = append(args, "held_back", held)
	}
	c.cfg.Logger.Log(context.Background(), level, msg, args...)
}

// readerLog is kafka-go's complaints, of which an outage brings many a second.
func (c *Consumer) readerLog(format string, a ...any) {
	c.say(slog.LevelWarn, format, "alerts consumer: "+fmt.Sprintf(format, a...))
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
		c.say(slog.LevelWarn, "rewind", "the alerts consumer cannot go back to the beginning of its topic", "topic", c.cfg.Topic, "error", err)
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
	n, err := c.partitions(ctx)
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
