// Command consumer is a working consumer of ai_signals, to start one's own from: it reads in a consumer group, drops duplicates by id, and commits
// what it has handled. It promises to handle each signal at least once; it fails by exiting, and continues where it stood when started again.
//
//	go run ./deploy/docs/consumer 127.0.0.1:9092
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
)

// An event is what this consumer reads of signals/schema/signal.v1.json. Members may be added; ignore those you do not know.
type event struct {
	ID, Type, Severity string
	Subject            struct{ Label string }
}

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: consumer BROKER[,BROKER…]")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	client, err := kgo.NewClient(kgo.SeedBrokers(strings.Split(os.Args[1], ",")...), kgo.ConsumerGroup("example-go"), kgo.ConsumeTopics("ai_signals"),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	seen := map[string]bool{} // in production: a table with the id as its key, in the transaction of what you do
	for ctx.Err() == nil {
		fetches := client.PollFetches(ctx)
		fetches.EachError(func(topic string, partition int32, err error) { log.Printf("%s/%d: %v", topic, partition, err) })
		fetches.EachRecord(func(r *kgo.Record) {
			var e event
			if err := json.Unmarshal(r.Value, &e); err != nil || e.ID == "" || e.Type == "" || e.Severity == "" || e.Subject.Label == "" {
				log.Printf("%s/%d at %d is not an event: %v", r.Topic, r.Partition, r.Offset, err)
				return
			}
			if !seen[e.ID] {
				seen[e.ID] = true
				fmt.Println(e.Severity, e.Type, "-", e.Subject.Label)
			}
		})
		if err := client.CommitUncommittedOffsets(ctx); err != nil && ctx.Err() == nil {
			log.Print(err) // what was not committed is read again
		}
	}
}
