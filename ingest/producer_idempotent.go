package ingest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/initproducerid"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"
)

// Where Kafka's record batch (version 2) keeps what makes it repeatable. kafka-go encodes batches, but leaves these fields
// empty; they are filled in afterwards and the checksum is made again.
const (
	batchAt       = 4 // behind the size of the set
	batchCRCAt    = batchAt + 17
	batchSummedAt = batchAt + 21 // the checksum is over the rest from here
	batchIDAt     = batchAt + 43
	batchEpochAt  = batchAt + 51
	batchSeqAt    = batchAt + 53
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A producerID is what Kafka knows a numbered sequence of batches by. The zero value is none: Kafka's begin at 0, ours at 1.
type producerID struct {
	plusOne int64
	epoch   int16
}

// A sequence numbers the messages of one partition, so that a batch that is sent again is not written again. The number moves
// on when a batch is acknowledged; only one is under way, so a repeated batch has the number it had.
type sequence struct {
	id   producerID
	next int32
	// burnt is the last id under which an attempt was given up. What became of it is unknown, and with it the number that
	// the broker expects: the partition needs another id.
	burnt producerID
}

func (q *sequence) advance(n int) { q.next = int32((int64(q.next) + int64(n)) & math.MaxInt32) }

func (q *sequence) burn() {
	if q.id != (producerID{}) {
		*q = sequence{burnt: q.id}
	}
}

// lostSequence says whether the broker does not know, or does not want, the number of a batch: it needs another id.
func lostSequence(code kafka.Error) bool {
	switch code {
	case kafka.OutOfOrderSequenceNumber, kafka.InvalidProducerEpoch, kafka.UnknownProducerId, kafka.InvalidProducerIDMapping:
		return true
	}
	return false
}

// patchRecordSet makes an encoded record set repeatable.
func patchRecordSet(set []byte, id producerID, seq int32) {
	binary.BigEndian.PutUint64(set[batchIDAt:], uint64(id.plusOne-1))
	binary.BigEndian.PutUint16(set[batchEpochAt:], uint16(id.epoch))
	binary.BigEndian.PutUint32(set[batchSeqAt:], uint32(seq))
	binary.BigEndian.PutUint32(set[batchCRCAt:], crc32.Checksum(set[batchSummedAt:], castagnoli))
}

// An idempotentSlot is what a slot needs beside the rest to send numbered batches; all of it is reused.
type idempotentSlot struct {
	req     rawproduce.Request
	sets    []*bytes.Buffer
	readers []*bytes.Reader
}

// trim gives back the room that a burst has left behind, but keeps it while it is needed.
func (in *idempotentSlot) trim() {
	for i, set := range in.sets {
		if set.Cap() > 256<<10 && set.Len() < set.Cap()/8 {
			in.sets[i] = new(bytes.Buffer)
			in.readers[i].Reset(nil)
		}
	}
}

// exchangeNumbered sends s.batches numbered. Each partition takes the producer's id unless an attempt was given up under it.
func (s *kafkaSlot) exchangeNumbered(deadline time.Time) (*produce.Response, error) {
	for {
		id, complete := s.assign()
		if complete {
			break
		}
		if err := s.newProducerID(deadline, id); err != nil {
			return nil, &notSent{err}
		}
	}
	in := &s.idempotent
	in.req.Acks, in.req.Timeout = s.req.Acks, s.req.Timeout
	in.req.Topics = in.req.Topics[:0]
	n := 0
	for i := range s.req.Topics {
		t := rawproduce.RequestTopic{Topic: s.req.Topics[i].Topic}
		for j := range s.req.Topics[i].Partitions {
			part := &s.req.Topics[i].Partitions[j]
			set, err := s.numberedSet(n, t.Topic, part)
			if err != nil {
				return nil, err
			}
			t.Partitions = append(t.Partitions, rawproduce.RequestPartition{Partition: part.Partition, RecordSet: protocol.RawRecordSet{Reader: set}})
			n++
		}
		in.req.Topics = append(in.req.Topics, t)
	}
	return ask[*produce.Response](s.conn, deadline, &in.req)
}

// numberedSet encodes the n-th record set of the request.
func (s *kafkaSlot) numberedSet(n int, topic string, part *produce.RequestPartition) (*bytes.Reader, error) {
	in := &s.idempotent
	if n == len(in.sets) {
		in.sets = append(in.sets, new(bytes.Buffer))
		in.readers = append(in.readers, new(bytes.Reader))
	}
	set := in.sets[n]
	set.Reset()
	part.RecordSet.Version = 2
	if _, err := part.RecordSet.WriteTo(set); err != nil {
		return nil, err
	}
	for _, bt := range s.batches {
		if bt.part.topic == topic && bt.part.index == part.Partition {
			patchRecordSet(set.Bytes(), bt.part.seq.id, bt.part.seq.next) // nobody else touches them while the partition is busy
		}
	}
	in.readers[n].Reset(set.Bytes())
	return in.readers[n], nil
}

// assign gives each partition of s.batches an id. It says whether that worked for all, and which id did not do.
func (s *kafkaSlot) assign() (producerID, bool) {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	for _, bt := range s.batches {
		q := &bt.part.seq
		if q.id != (producerID{}) {
			continue
		}
		if s.p.producerID == (producerID{}) || s.p.producerID == q.burnt {
			return s.p.producerID, false
		}
		q.id, q.next = s.p.producerID, 0
	}
	return producerID{}, true
}

// newProducerID asks the broker for another id than old, unless another slot has got one meanwhile.
func (s *kafkaSlot) newProducerID(deadline time.Time, old producerID) error {
	res, err := ask[*initproducerid.Response](s.conn, deadline, &initproducerid.Request{ProducerID: -1, ProducerEpoch: -1, TransactionTimeoutMs: math.MaxInt32})
	if err != nil {
		return fmt.Errorf("asking for a producer id: %w", err)
	}
	if res.ErrorCode != 0 {
		return fmt.Errorf("asking for a producer id: %w", kafka.Error(res.ErrorCode))
	}
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if s.p.producerID == old {
		s.p.producerID = producerID{plusOne: res.ProducerID + 1, epoch: res.ProducerEpoch}
	}
	return nil
}
