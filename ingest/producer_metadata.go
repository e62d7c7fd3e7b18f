package ingest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol/metadata"
)

// metadataTimeout bounds one look-up on a connection that is open.
const metadataTimeout = time.Second

// metadataPause is the least time between two look-ups, however many hints there are.
const metadataPause = 50 * time.Millisecond

// A kafkaView is what Produce needs to know of the topics, as last heard. It is never changed.
type kafkaView struct {
	topics map[string]kafkaTopic
}

type kafkaTopic struct {
	err   kafka.Error // 0, or why there are no partitions
	parts []*kafkaPartition
}

// A metaRound is one look-up that has not begun yet; done is closed when it has ended, well or not.
type metaRound struct{ done chan struct{} }

func newMetaRound() *metaRound { return &metaRound{done: make(chan struct{})} }

// kick asks for fresh metadata without waiting for it.
func (p *Producer) kick() {
	select {
	case p.kicks <- struct{}{}:
	default:
	}
}

// awaitMetadata returns after a look-up that began after now has ended, well or not, or at until, unless that is zero.
func (p *Producer) awaitMetadata(ctx context.Context, until time.Time) error {
	var timeout <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		timeout = timer.C
	}
	round := p.round.Load()
	p.kick()
	select {
	case <-round.done:
		return nil
	case <-timeout:
		return &UnavailableError{Kind: KindTimeout, Err: errNoMetadata}
	case <-ctx.Done():
		return &UnavailableError{Kind: KindCancelled, Err: context.Cause(ctx)}
	case <-p.ctx.Done():
		return &UnavailableError{Kind: KindClosed, Err: ErrProducerClosed}
	}
}

// watch keeps the view fresh until the producer ends.
func (p *Producer) watch() {
	defer p.wg.Done()
	w := metaWatch{p: p}
	defer w.hangUp()
	for p.ctx.Err() == nil {
		began := time.Now()
		round := p.round.Swap(newMetaRound())
		res, err := w.look()
		if err == nil {
			p.apply(res)
			p.contact.Store(time.Now().UnixNano())
			if p.lastErr.Swap(nil) != nil {
				p.tell(slog.LevelInfo, "kafka answers again", slog.Int("brokers", len(res.Brokers)))
			}
		} else if p.ctx.Err() == nil {
			p.lastErr.Store(&err)
			p.metrics.metadataFailed()
			p.say("metadata", "kafka does not tell us the leaders", slog.Any("error", err))
		}
		close(round.done)
		p.probe()
		p.pause(began)
	}
}

// pause waits for the TTL, spread so that edges do not ask in step, or for a kick.
func (p *Producer) pause(began time.Time) {
	ttl := p.cfg.MetadataTTL
	timer := time.NewTimer(ttl*3/4 + rand.N(ttl/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return
	case <-p.ctx.Done():
		return
	case <-p.kicks:
	}
	timer.Reset(max(0, metadataPause-time.Since(began)))
	select {
	case <-timer.C:
	case <-p.ctx.Done():
	}
}

// metaWatch holds the one connection that metadata is asked on; only watch uses it.
type metaWatch struct {
	p    *Producer
	addr string
	conn *kafkaConn
}

func (w *metaWatch) hangUp() {
	if w.conn != nil {
		w.conn.close()
		w.conn = nil
	}
}

// look asks one broker after the other until one answers.
func (w *metaWatch) look() (*metadata.Response, error) {
	var failed []error
	for _, addr := range w.candidates() {
		res, err := w.ask(addr)
		if err == nil {
			return res, nil
		}
		w.hangUp()
		if w.p.ctx.Err() != nil {
			return nil, w.p.ctx.Err()
		}
		if len(failed) < 3 { // the first ones say enough
			failed = append(failed, err)
		}
	}
	return nil, errors.Join(failed...)
}

// candidates: where the connection is, then brokers that work, then the others, then the addresses we started from.
func (w *metaWatch) candidates() []string {
	var addrs, down []string
	if w.conn != nil {
		addrs = append(addrs, w.addr)
	}
	w.p.mu.Lock()
	for _, b := range w.p.brokers {
		if b.reachable.Load() {
			addrs = append(addrs, b.addr)
		} else {
			down = append(down, b.addr)
		}
	}
	w.p.mu.Unlock()
	start := slices.Clone(w.p.cfg.Brokers)
	rand.Shuffle(len(start), func(i, j int) { start[i], start[j] = start[j], start[i] })
	seen := make(map[string]bool)
	return slices.DeleteFunc(slices.Concat(addrs, down, start), func(a string) bool {
		again := seen[a]
		seen[a] = true
		return again
	})
}

func (w *metaWatch) ask(addr string) (*metadata.Response, error) {
	if w.conn != nil && (w.addr != addr || w.conn.stale(time.Now())) {
		w.hangUp()
	}
	if w.conn == nil {
		c, err := w.p.dialer.dial(w.p.ctx, addr)
		if err != nil {
			return nil, err
		}
		w.conn, w.addr = c, addr
	}
	stop := context.AfterFunc(w.p.ctx, w.conn.close)
	defer stop()
	res, err := ask[*metadata.Response](w.conn, time.Now().Add(metadataTimeout), &metadata.Request{TopicNames: w.p.cfg.Topics})
	if err != nil {
		return nil, fmt.Errorf("broker %s: metadata: %w", addr, err)
	}
	if len(res.Brokers) == 0 { // a broker that has just started and does not know its cluster yet
		return nil, fmt.Errorf("broker %s: metadata: %w", addr, kafka.BrokerNotAvailable)
	}
	return res, nil
}

// apply makes what a broker said ours: the brokers that lead our partitions, where they are, and who leads what. Brokers that
// lead none of them are no business of ours.
func (p *Producer) apply(res *metadata.Response) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	leaders := make(map[int32]bool)
	for i := range res.Topics {
		for j := range res.Topics[i].Partitions {
			leaders[res.Topics[i].Partitions[j].LeaderID] = true
		}
	}
	addrs := make(map[int32]string, len(leaders))
	for _, b := range res.Brokers {
		if !leaders[b.NodeID] {
			continue
		}
		addrs[b.NodeID] = net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port)))
	}
	for id, b := range p.brokers {
		if addrs[id] != b.addr {
			b.retire()
			delete(p.brokers, id)
		}
	}
	for id, addr := range addrs {
		if p.brokers[id] == nil {
			p.brokers[id] = p.newBroker(id, addr)
		}
	}
	view := &kafkaView{topics: make(map[string]kafkaTopic, len(res.Topics))}
	for i := range res.Topics {
		t := &res.Topics[i]
		view.topics[t.Name] = p.applyTopic(t)
	}
	p.view.Store(view)
}

func (p *Producer) applyTopic(t *metadata.ResponseTopic) kafkaTopic {
	known := p.topics[t.Name]
	if t.ErrorCode != 0 || len(t.Partitions) == 0 {
		code := kafka.Error(t.ErrorCode)
		if code == 0 {
			code = kafka.UnknownTopicOrPartition
		}
		// The partitions stay: what waits for them is tried until its time is over, in case the topic comes back.
		return kafkaTopic{err: code}
	}
	n := 0
	for i := range t.Partitions {
		n = max(n, int(t.Partitions[i].PartitionIndex)+1)
	}
	for len(known) < n {
		known = append(known[:len(known):len(known)], p.newPartition(t.Name, int32(len(known)))) // earlier views keep theirs
	}
	p.topics[t.Name] = known
	for i := range t.Partitions {
		tp := &t.Partitions[i]
		part := known[tp.PartitionIndex]
		if part.leader != tp.LeaderID {
			if b := p.brokers[part.leader]; b != nil {
				b.unlist(part)
			}
			part.leader = tp.LeaderID
			part.endBackoff() // a new leader is worth trying at once
		}
		p.schedule(part, time.Now())
	}
	return kafkaTopic{parts: known[:n:n]}
}

// route finds each message's partition and leaves it in c. Topics that do not exist are looked for once more.
func (p *Producer) route(ctx context.Context, c *produceCall, msgs []Message) error {
	view := p.view.Load()
	if view == nil {
		if err := p.firstMetadata(ctx, c, len(msgs)); err != nil {
			return err
		}
		view = p.view.Load()
	}
	fresh := false
	for i := 0; i < len(msgs); i++ {
		t := view.topics[msgs[i].Topic]
		if t.parts == nil {
			if !fresh {
				fresh = true
				if err := p.awaitMetadata(ctx, c.until); err != nil {
					return p.refuse(err, len(msgs))
				}
				view = p.view.Load()
				i--
				continue
			}
			return p.refuse(p.noTopic(msgs[i].Topic, t.err), len(msgs))
		}
		n := 0
		if msgs[i].Key != nil {
			n = partitionOf(msgs[i].Key, len(t.parts))
		} else if len(t.parts) > 1 {
			n = rand.IntN(len(t.parts))
		}
		c.parts = append(c.parts, t.parts[n])
	}
	return nil
}

// firstMetadata waits for the first view, but not on a cluster that has been away for long.
func (p *Producer) firstMetadata(ctx context.Context, c *produceCall, n int) error {
	for p.view.Load() == nil {
		if e := p.lastErr.Load(); e != nil && time.Since(time.Unix(0, p.contact.Load())) > p.cfg.Timeout {
			return p.refuse(&UnavailableError{Kind: kindOf(*e), Err: *e}, n)
		}
		if err := p.awaitMetadata(ctx, c.until); err != nil {
			if e := p.lastErr.Load(); e != nil && kindOf(err) == KindTimeout {
				err = &UnavailableError{Kind: kindOf(*e), Err: *e}
			}
			return p.refuse(err, n)
		}
	}
	return nil
}

// noTopic is the error for a topic that has no partitions we know of.
func (p *Producer) noTopic(topic string, code kafka.Error) error {
	if code == 0 {
		if !slices.Contains(p.cfg.Topics, topic) {
			return &UnavailableError{Topic: topic, Kind: KindOther, Err: errors.New("BUG: the producer was not configured for this topic")}
		}
		code = kafka.UnknownTopicOrPartition
	}
	err := &UnavailableError{Topic: topic, Kind: kindOfCode(code), Err: code}
	if p.said.allow("topic " + topic) {
		p.tell(slog.LevelError, "kafka topic cannot be written", slog.String("topic", topic), slog.Any("error", err))
	}
	return err
}

// refuse counts n messages that were refused before anything was sent.
func (p *Producer) refuse(err error, n int) error {
	p.metrics.failed(kindOf(err), n)
	return err
}
