package main

import (
	"os"
	"testing"

	"github.com/segmentio/kafka-go"
)

// TestRepartitioning adds partitions to the topic of signals while a workload sends and Alerts reads, as deploy/docs/runbook.md says: no process is restarted,
// no request is refused, and what goes to the new partitions arrives in Alerts too, each signal once.
func TestRepartitioning(t *testing.T) {
	p := onServers(t)
	p.must(t, nil, "migrate", "--partitions=1")
	g := p.start(t, "serve")
	first := p.account(t, "acme", "before")
	load := startTraffic(t, first.Key, g.Edge)
	load.more(t, 10)
	brokers := kafka.TCP(os.Getenv("TEST_KAFKA_BROKERS"))
	client := &kafka.Client{Addr: brokers}
	topic := p.topic("signals")
	res, err := client.CreatePartitions(t.Context(), &kafka.CreatePartitionsRequest{Addr: brokers, Topics: []kafka.TopicPartitionsConfig{{Name: topic, Count: 8}}})
	if err != nil || res.Errors[topic] != nil {
		t.Fatal(err, res)
	}
	load.more(t, 50)
	load.stop()
	_, db := p.store(t)
	load.checkStored(t, db)
	// Other accounts: their keys spread over the new partitions.
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		other := startTraffic(t, p.account(t, "acme", name).Key, g.Edge)
		other.more(t, 2)
		other.stop()
		other.checkStored(t, db)
	}
	beyond := func() int64 {
		requests := make([]kafka.OffsetRequest, 0, 7)
		for part := 1; part < 8; part++ {
			requests = append(requests, kafka.LastOffsetOf(part))
		}
		offsets, err := client.ListOffsets(t.Context(), &kafka.ListOffsetsRequest{Addr: brokers, Topics: map[string][]kafka.OffsetRequest{topic: requests}})
		if err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		for _, o := range offsets.Topics[topic] {
			n += o.LastOffset
		}
		return n
	}
	if beyond() == 0 {
		t.Error("nothing went to the new partitions")
	}
}
