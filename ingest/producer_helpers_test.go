package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const testTopic = "ai_signals"

// newFake starts a Kafka in this process.
func newFake(t testing.TB, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(6, testTopic)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// answerProduce says the same of all that a request brings; 0: it is acknowledged.
func answerProduce(req *kmsg.ProduceRequest, code int16) kmsg.Response {
	res := req.ResponseKind().(*kmsg.ProduceResponse)
	res.Version = req.GetVersion()
	for i := range req.Topics {
		rt := kmsg.NewProduceResponseTopic()
		rt.Topic, rt.TopicID = req.Topics[i].Topic, req.Topics[i].TopicID
		for _, p := range req.Topics[i].Partitions {
			rp := kmsg.NewProduceResponseTopicPartition()
			rp.Partition, rp.ErrorCode = p.Partition, code
			rt.Partitions = append(rt.Partitions, rp)
		}
		res.Topics = append(res.Topics, rt)
	}
	return res
}

// startProducer starts a producer of cfg, made complete for tests, and closes it at the end.
func startProducer(t testing.TB, cfg ProducerConfig) *Producer {
	t.Helper()
	if cfg.Topics == nil {
		cfg.Topics = []string{testTopic}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	p, err := NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		began := time.Now()
		p.Close(ctx)
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("Close with a second's grace took %v", took)
		}
	})
	return p
}

// brokersOf gives a config that reaches c.
func brokersOf(c *kfake.Cluster) ProducerConfig {
	return ProducerConfig{KafkaConfig: KafkaConfig{Brokers: c.ListenAddrs()}}
}

func message(topic, key, value string) Message {
	return Message{Topic: topic, Key: []byte(key), Value: []byte(value), Headers: []Header{{Key: "flowstate-msg-id", Value: []byte("id-" + value)}}}
}

// keyIn gives a key that goes to a partition.
func keyIn(partition, of int) string {
	for i := 0; ; i++ {
		if k := fmt.Sprintf("acme/service_account/%d", i); partitionOf([]byte(k), of) == partition {
			return k
		}
	}
}

// read reads what is in a topic with an independent client, until it holds at least want records and no more come.
func read(t testing.TB, brokers []string, topic string, want int) []*kgo.Record {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ends := endOffsets(t, ctx, cl, topic)
	var got []*kgo.Record
	total := int64(0)
	for _, n := range ends {
		total += n
	}
	for int64(len(got)) < total {
		f := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("read %d of %d records of %s: %v", len(got), total, topic, f.Err())
		}
		got = append(got, f.Records()...)
	}
	if len(got) < want {
		t.Fatalf("%s holds %d records, at least %d expected", topic, len(got), want)
	}
	return got
}

// endOffsets asks the leaders where each partition ends.
func endOffsets(t testing.TB, ctx context.Context, cl *kgo.Client, topic string) map[int32]int64 {
	t.Helper()
	meta := kmsg.NewPtrMetadataRequest()
	mt := kmsg.NewMetadataRequestTopic()
	mt.Topic = &topic
	meta.Topics = append(meta.Topics, mt)
	for {
		ends, err := tryEndOffsets(ctx, cl, meta, topic)
		if err == nil {
			return ends
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func tryEndOffsets(ctx context.Context, cl *kgo.Client, meta *kmsg.MetadataRequest, topic string) (map[int32]int64, error) {
	m, err := meta.RequestWith(ctx, cl)
	if err != nil {
		return nil, err
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
	ends := make(map[int32]int64)
	for _, shard := range cl.RequestSharded(ctx, req) {
		if shard.Err != nil {
			return nil, shard.Err
		}
		for _, tp := range shard.Resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions {
			if err := kerr.ErrorForCode(tp.ErrorCode); err != nil {
				return nil, err
			}
			ends[tp.Partition] = tp.Offset
		}
	}
	if len(ends) != len(rt.Partitions) || len(ends) == 0 {
		return nil, fmt.Errorf("%d of %d partitions answered", len(ends), len(rt.Partitions))
	}
	return ends, nil
}

func valuesOf(records []*kgo.Record) map[string]int {
	seen := make(map[string]int)
	for _, r := range records {
		seen[string(r.Value)]++
	}
	return seen
}

// eventually polls until ok or ten seconds have passed.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	within(t, 10*time.Second, what, ok)
}

func within(t testing.TB, patience time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
		<-tick.C
	}
}

// realBrokers gives a real Kafka, or nil where there is none and none is required.
func realBrokers(t testing.TB) []string {
	t.Helper()
	if b := os.Getenv("TEST_KAFKA_BROKERS"); b != "" {
		return strings.Split(b, ",")
	}
	if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
		t.Fatal("SLUICE_REQUIRE_SERVICES=1, but TEST_KAFKA_BROKERS is not set")
	}
	return nil
}

// onEach runs a test on a fake, and on the real Kafka with a topic of its own where there is one.
func onEach(t *testing.T, f func(t *testing.T, cfg ProducerConfig, topic string)) {
	t.Run("fake", func(t *testing.T) {
		f(t, brokersOf(newFake(t)), testTopic)
	})
	if brokers := realBrokers(t); brokers != nil {
		t.Run("real", func(t *testing.T) {
			cfg := ProducerConfig{KafkaConfig: KafkaConfig{Brokers: brokers}}
			f(t, cfg, ownTopic(t, &cfg, 6))
		})
	}
}

// ownTopic makes a topic on a real Kafka and configures cfg for it.
func ownTopic(t testing.TB, cfg *ProducerConfig, partitions int) string {
	t.Helper()
	topic := fmt.Sprintf("sluice_test_%x", rand.Uint64())
	cfg.Topics = []string{topic}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if _, err := EnsureTopics(ctx, cfg.KafkaConfig, []TopicSpec{{Name: topic, Partitions: partitions}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { deleteTopic(t, cfg.Brokers, topic) })
	return topic
}

func deleteTopic(t testing.TB, brokers []string, topic string) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Error(err)
		return
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req := kmsg.NewPtrDeleteTopicsRequest()
	rt := kmsg.NewDeleteTopicsRequestTopic()
	rt.Topic = &topic
	req.Topics, req.TopicNames = append(req.Topics, rt), []string{topic}
	if _, err := req.RequestWith(ctx, cl); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("deleting topic %s: %v", topic, err)
	}
}
