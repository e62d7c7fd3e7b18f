package ingest

import (
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
)

// A try that is cut off by its deadline must not hide what the broker said just before; but its word does not hold for ever.
func TestBrokersWordOutlivesATimeout(t *testing.T) {
	var part kafkaPartition
	now := time.Now()
	part.fails(now, kafka.NotEnoughReplicas)
	part.fails(now.Add(time.Second), errTimedOut)
	if kind := kindOf(part.why()); kind != KindNotEnoughReplicas {
		t.Errorf("%s", kind)
	}
	part.fails(now.Add(brokersWordHolds), errTimedOut)
	if kind := kindOf(part.why()); kind != KindTimeout {
		t.Errorf("later: %s", kind)
	}
	part.fails(now.Add(brokersWordHolds+time.Second), kafka.NotLeaderForPartition)
	if kind := kindOf(part.why()); kind != KindLeader {
		t.Errorf("another word: %s", kind)
	}
}
