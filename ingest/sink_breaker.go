package ingest

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	probeEvery = time.Second // the drain's probes of a sick partition, with a message that waits

	// liveProbeAfter is when a live request is the probe because nobody else was: nothing waits for the partition where the spool is full of others. It may
	// have to wait for its whole time, which no sender shall do each second.
	liveProbeAfter = 3 * time.Second
)

// A partitionID names a partition. The index is -1 where nobody knows the partition, and then it means the topic.
type partitionID struct {
	topic string
	index int32
}

// breakers are the partitions that are sick. While there is none they cost one atomic read.
type breakers struct {
	n      atomic.Int32
	mu     sync.Mutex
	open   map[partitionID]*openBreaker
	topics map[string]*sickTopic
}

// A sickTopic is what has been said of a topic that has, or had, sick partitions.
type sickTopic struct {
	said bool      // that it is sick
	at   time.Time // when that was said last
}

// sayAgain is how soon it may be said of the same topic again that it is sick. A Kafka that is merely slow takes some messages and misses others.
const sayAgain = 10 * time.Second

type openBreaker struct {
	probed  time.Time // when the last probe began or failed, or the miss that opened it
	probing bool
}

func newBreakers() *breakers {
	return &breakers{open: map[partitionID]*openBreaker{}, topics: map[string]*sickTopic{}}
}

// admit says whether a message may be sent to the partition, and whether it is the probe. Whoever is the probe says how it went, by heal, trip or inconclusive.
func (b *breakers) admit(part partitionID, now time.Time, after time.Duration) (ok, probe bool) {
	if b.n.Load() == 0 {
		return true, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o := b.open[part]
	if o == nil {
		return true, false
	}
	if o.probing || now.Sub(o.probed) < after {
		return false, false
	}
	o.probing, o.probed = true, now
	return true, true
}

// sick says whether the partition is, and makes nobody the probe.
func (b *breakers) sick(part partitionID) bool {
	if b.n.Load() == 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open[part] != nil
}

// heal says that a message got through. It calls well, with mu held, if that was the last partition of its topic that was sick, and it has been said that
// the topic is.
func (b *breakers) heal(part partitionID, well func()) {
	if b.n.Load() == 0 {
		return
	}
	topic := partitionID{part.topic, -1}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open[part] == nil && b.open[topic] == nil {
		return
	}
	delete(b.open, part)
	delete(b.open, topic) // it is known now
	b.n.Store(int32(len(b.open)))
	t := b.topics[part.topic]
	if !t.said {
		return
	}
	for other := range b.open {
		if other.topic == part.topic {
			return
		}
	}
	t.said = false
	well()
}

// trip says that a message did not get through. It reports whether the partition was well, and calls sick, with mu held, if it is to be said of its topic
// that it is sick.
func (b *breakers) trip(part partitionID, now time.Time, sick func()) (was bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.open[part]; o == nil {
		was = true
		b.open[part] = &openBreaker{probed: now}
		b.n.Store(int32(len(b.open)))
	} else {
		o.probing, o.probed = false, now
	}
	t := b.topics[part.topic]
	if t == nil {
		t = &sickTopic{}
		b.topics[part.topic] = t
	}
	if !t.said && now.Sub(t.at) >= sayAgain {
		t.said, t.at = true, now
		sick()
	}
	return was
}

// inconclusive ends a probe that told nothing.
func (b *breakers) inconclusive(part partitionID, probe bool) {
	if !probe {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if o := b.open[part]; o != nil {
		o.probing = false
	}
}

// A partitionGroup is the messages of a call that go to one partition, by place.
type partitionGroup struct {
	partition partitionID
	places    []int
}

// groupByPartition says where messages go, as far as is known now.
func (p *Producer) groupByPartition(messages []Message) []partitionGroup {
	groups := make([]partitionGroup, 0, 1)
next:
	for i := range messages {
		id := p.partitionOf(messages[i].Topic, messages[i].Key)
		for j := range groups {
			if groups[j].partition == id {
				groups[j].places = append(groups[j].places, i)
				continue next
			}
		}
		groups = append(groups, partitionGroup{id, []int{i}})
	}
	return groups
}

// partitionOf says where a key of a topic goes, as far as is known now.
func (p *Producer) partitionOf(topic string, key []byte) partitionID {
	if view := p.view.Load(); view != nil && key != nil {
		if n := len(view.topics[topic].parts); n > 0 {
			return partitionID{topic, int32(partitionOf(key, n))}
		}
	}
	return partitionID{topic, -1}
}
