package ingest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

func TestEnsureTopics(t *testing.T) {
	onEach(t, func(t *testing.T, cfg ProducerConfig, topic string) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		a, b := topic+"_a", topic+"_b"
		specs := []TopicSpec{{Name: topic, Partitions: 3}, {Name: a, Partitions: 4, Replication: 1, MinInSyncReplicas: 1}, {Name: b}}
		t.Cleanup(func() { deleteTopic(t, cfg.Brokers, a); deleteTopic(t, cfg.Brokers, b) })

		problems, err := CheckTopics(ctx, cfg.KafkaConfig, specs[1:], DefaultMaxMessageBytes)
		if err != nil {
			t.Fatal(err)
		}
		if len(problems) != 2 || !problems[0].Fatal || !strings.Contains(problems[0].Message, "sluice migrate") {
			t.Errorf("before: %+v", problems)
		}
		made, err := EnsureTopics(ctx, cfg.KafkaConfig, specs)
		if err != nil || strings.Join(made, " ") != a+" "+b {
			t.Fatalf("made %v, %v", made, err)
		}
		if made, err = EnsureTopics(ctx, cfg.KafkaConfig, specs); err != nil || len(made) != 0 {
			t.Errorf("the second time: made %v, %v", made, err)
		}
		problems, err = CheckTopics(ctx, cfg.KafkaConfig, specs, DefaultMaxMessageBytes)
		if err != nil {
			t.Fatal(err)
		}
		if len(problems) != 1 || problems[0].Topic != topic || problems[0].Fatal || !strings.Contains(problems[0].Message, "6 partitions, 3 were asked for") {
			t.Errorf("after: %+v", problems)
		}
		cfg.Topics = []string{a, b}
		p := startProducer(t, cfg)
		if err := p.Produce(ctx, []Message{message(a, "k", "v"), message(b, "k", "v")}); err != nil {
			t.Error(err)
		}
	})
}

func TestCheckTopicsSettings(t *testing.T) {
	c := newFake(t, kfake.NumBrokers(3))
	ctx := context.Background()
	cfg := brokersOf(c).KafkaConfig
	create := func(name string, replicas int, settings map[string]string) TopicSpec {
		s := TopicSpec{Name: name, Partitions: 1, Replication: replicas, Configs: settings}
		if _, err := EnsureTopics(ctx, cfg, []TopicSpec{s}); err != nil {
			t.Fatal(err)
		}
		return TopicSpec{Name: name}
	}
	for _, tt := range []struct {
		spec  TopicSpec
		fatal bool
		want  string
	}{
		{create("fine", 3, map[string]string{"min.insync.replicas": "2"}), false, ""},
		{create("unwritable", 2, map[string]string{"min.insync.replicas": "3"}), true, "nothing can be written"},
		{create("brittle", 2, map[string]string{"min.insync.replicas": "2"}), false, "while one broker is away"},
		{create("careless", 3, map[string]string{"min.insync.replicas": "1"}), false, "one disk only"},
		{create("narrow", 3, map[string]string{"min.insync.replicas": "2", "max.message.bytes": "1000"}), false, "max.message.bytes 1000"},
		{create("compacted", 3, map[string]string{"min.insync.replicas": "2", "cleanup.policy": "compact"}), false, "compaction"},
		{TopicSpec{Name: "few", Replication: 3, Partitions: 1, MinInSyncReplicas: 2}, false, "kept 1 times, 3 were asked for"},
	} {
		if tt.spec.Name == "few" {
			create("few", 1, map[string]string{"min.insync.replicas": "1"})
		}
		problems, err := CheckTopics(ctx, cfg, []TopicSpec{tt.spec}, DefaultMaxMessageBytes)
		if err != nil {
			t.Fatal(err)
		}
		if tt.want == "" {
			if len(problems) != 0 {
				t.Errorf("%s: %+v", tt.spec.Name, problems)
			}
			continue
		}
		if len(problems) == 0 || problems[0].Fatal != tt.fatal || !strings.Contains(problems[0].Message, tt.want) {
			t.Errorf("%s: %+v, want one about %q", tt.spec.Name, problems, tt.want)
		}
	}
}

func TestTopicsWithoutKafka(t *testing.T) {
	c := newFake(t)
	cfg := brokersOf(c).KafkaConfig
	c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if _, err := EnsureTopics(ctx, cfg, []TopicSpec{{Name: "x"}}); err == nil || !strings.Contains(err.Error(), "looking up topics") {
		t.Errorf("EnsureTopics: %v", err)
	}
	for _, specs := range [][]TopicSpec{nil, {{Name: ""}}, {{Name: "x"}, {Name: "x"}}} {
		if _, err := CheckTopics(context.Background(), cfg, specs, 0); err == nil {
			t.Errorf("CheckTopics(%v): no error", specs)
		}
	}
}
