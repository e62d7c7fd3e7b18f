package ingest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// A TopicSpec is a topic as it should be.
type TopicSpec struct {
	Name              string
	Partitions        int               // 0: the broker's default (num.partitions)
	Replication       int               // 0: the broker's default (default.replication.factor)
	MinInSyncReplicas int               // 0: the broker's default; what acks=all waits for at least
	Configs           map[string]string // other settings of the topic, given when it is made
}

// EnsureTopics makes the topics that do not exist and returns their names. Existing ones are left as they are; CheckTopics
// says what is wrong with them. Two at once do no harm.
func EnsureTopics(ctx context.Context, cfg KafkaConfig, specs []TopicSpec) ([]string, error) {
	admin, done, err := newKafkaAdmin(cfg, specs)
	if err != nil {
		return nil, err
	}
	defer done()
	there, err := describeTopics(ctx, admin, specs)
	if err != nil {
		return nil, err
	}
	req := &kafka.CreateTopicsRequest{}
	for _, s := range specs {
		if _, ok := there[s.Name]; !ok {
			req.Topics = append(req.Topics, s.config())
		}
	}
	if len(req.Topics) == 0 {
		return nil, nil
	}
	res, err := admin.CreateTopics(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("kafka: creating topics: %w", err)
	}
	var made []string
	var failed []error
	for _, t := range req.Topics {
		switch err := res.Errors[t.Topic]; {
		case err == nil:
			made = append(made, t.Topic)
		case errors.Is(err, kafka.TopicAlreadyExists): // somebody was faster
		default:
			failed = append(failed, fmt.Errorf("kafka: creating topic %s: %w", t.Topic, err))
		}
	}
	if len(failed) > 0 {
		return made, errors.Join(failed...)
	}
	return made, awaitTopics(ctx, admin, specs)
}

// awaitTopics waits until new topics can be written: making them is done before their leaders are.
func awaitTopics(ctx context.Context, admin *kafka.Client, specs []TopicSpec) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(adminPause)
	defer tick.Stop()
	for {
		there, err := describeTopics(ctx, admin, specs)
		if err == nil && len(there) == len(specs) && !slices.ContainsFunc(specs, func(s TopicSpec) bool { return !led(there[s.Name]) }) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("kafka: the topics were made, but cannot be written yet: %w", context.Cause(ctx))
		}
	}
}

func led(t kafka.Topic) bool {
	return t.Error == nil && len(t.Partitions) > 0 && !slices.ContainsFunc(t.Partitions, func(p kafka.Partition) bool { return p.Error != nil })
}

func (s TopicSpec) config() kafka.TopicConfig {
	t := kafka.TopicConfig{Topic: s.Name, NumPartitions: s.Partitions, ReplicationFactor: s.Replication}
	if t.NumPartitions == 0 {
		t.NumPartitions = -1
	}
	if t.ReplicationFactor == 0 {
		t.ReplicationFactor = -1
	}
	if s.MinInSyncReplicas > 0 {
		t.ConfigEntries = append(t.ConfigEntries, kafka.ConfigEntry{ConfigName: "min.insync.replicas", ConfigValue: strconv.Itoa(s.MinInSyncReplicas)})
	}
	for k, v := range s.Configs {
		t.ConfigEntries = append(t.ConfigEntries, kafka.ConfigEntry{ConfigName: k, ConfigValue: v})
	}
	return t
}

// A TopicProblem is something about a topic that an operator should know. Fatal ones keep messages from being written.
type TopicProblem struct {
	Topic   string
	Fatal   bool
	Missing bool   // it does not exist
	Message string // what is wrong and what to do
}

// CheckTopics compares the topics with what they should be. maxMessageBytes is the producer's limit on one message. An error
// means that Kafka could not be asked.
func CheckTopics(ctx context.Context, cfg KafkaConfig, specs []TopicSpec, maxMessageBytes int) ([]TopicProblem, error) {
	admin, done, err := newKafkaAdmin(cfg, specs)
	if err != nil {
		return nil, err
	}
	defer done()
	there, err := describeTopics(ctx, admin, specs)
	if err != nil {
		return nil, err
	}
	settings, err := topicSettings(ctx, admin, there)
	if err != nil {
		return nil, err
	}
	var problems []TopicProblem
	for _, s := range specs {
		t, ok := there[s.Name]
		if !ok {
			problems = append(problems, TopicProblem{Topic: s.Name, Fatal: true, Missing: true, Message: "does not exist: create it with sluice migrate"})
			continue
		}
		problems = append(problems, s.compare(t, settings[s.Name], maxMessageBytes)...)
	}
	return problems, nil
}

func (s TopicSpec) compare(t kafka.Topic, settings map[string]string, maxMessageBytes int) []TopicProblem {
	var problems []TopicProblem
	add := func(fatal bool, format string, args ...any) {
		problems = append(problems, TopicProblem{Topic: s.Name, Fatal: fatal, Message: fmt.Sprintf(format, args...)})
	}
	if t.Error != nil {
		add(true, "cannot be described: %v", t.Error)
		return problems
	}
	if s.Partitions > 0 && len(t.Partitions) != s.Partitions {
		add(false, "has %d partitions, %d were asked for; adding some moves keys to other partitions", len(t.Partitions), s.Partitions)
	}
	replicas := len(t.Partitions[0].Replicas)
	for _, part := range t.Partitions {
		replicas = min(replicas, len(part.Replicas))
	}
	if s.Replication > 0 && replicas < s.Replication {
		add(false, "is kept %d times, %d were asked for: reassign its partitions", replicas, s.Replication)
	}
	if v, ok := settings["min.insync.replicas"]; ok {
		isr, _ := strconv.Atoi(v)
		switch {
		case isr > replicas:
			add(true, "has min.insync.replicas %d but only %d replicas: nothing can be written with acks=all", isr, replicas)
		case s.MinInSyncReplicas > 0 && isr < s.MinInSyncReplicas:
			add(false, "has min.insync.replicas %d, %d were asked for: an acknowledged message may be on %d disks only", isr, s.MinInSyncReplicas, isr)
		case replicas >= 3 && isr < 2:
			add(false, "has min.insync.replicas %d: an acknowledged message may be on one disk only; 2 is usual", isr)
		case replicas > 1 && isr == replicas:
			add(false, "has min.insync.replicas %d with %d replicas: nothing can be written while one broker is away", isr, replicas)
		}
	}
	if n, err := strconv.Atoi(settings["max.message.bytes"]); err == nil && n < maxMessageBytes {
		add(false, "has max.message.bytes %d, below our limit of %d: larger messages are refused by Kafka and rejected", n, maxMessageBytes)
	}
	if p := settings["cleanup.policy"]; strings.Contains(p, "compact") {
		add(false, "has cleanup.policy %s: compaction drops all but the last message of each account", p)
	}
	return problems
}

func namesOf(specs []TopicSpec) ([]string, error) {
	if len(specs) == 0 {
		return nil, errors.New("kafka: no topics given")
	}
	var names []string
	for _, s := range specs {
		if s.Name == "" || slices.Contains(names, s.Name) {
			return nil, fmt.Errorf("kafka: topic name %q is empty or given twice", s.Name)
		}
		names = append(names, s.Name)
	}
	return names, nil
}

// adminMetadataTTL is how old what an admin client knows may be, and how long kafka-go waits for metadata.
const adminMetadataTTL = time.Second

// adminPause is the time between two tries.
const adminPause = 100 * time.Millisecond

// newKafkaAdmin gives a client for administration; done closes its connections.
func newKafkaAdmin(cfg KafkaConfig, specs []TopicSpec) (*kafka.Client, func(), error) {
	if err := cfg.check(); err != nil {
		return nil, nil, err
	}
	tr, err := cfg.Transport()
	if err != nil {
		return nil, nil, err
	}
	tr.MetadataTopics, err = namesOf(specs)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	tr.MetadataTTL, tr.Context = adminMetadataTTL, ctx
	client := &kafka.Client{Addr: kafka.TCP(cfg.Brokers...), Transport: tr}
	return client, func() { tr.CloseIdleConnections(); cancel() }, nil
}

// askAgain asks until there is an answer, for a cluster that is just starting; for 10 s at most, as long as ctx lasts.
func askAgain[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(adminPause)
	defer tick.Stop()
	for {
		res, err := ask()
		if err == nil || kindOf(err) == KindAuthorization {
			return res, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return res, err
		}
	}
}

// describeTopics gives those of the topics that exist.
func describeTopics(ctx context.Context, admin *kafka.Client, specs []TopicSpec) (map[string]kafka.Topic, error) {
	names, err := namesOf(specs)
	if err != nil {
		return nil, err
	}
	res, err := askAgain(ctx, func() (*kafka.MetadataResponse, error) {
		return admin.Metadata(ctx, &kafka.MetadataRequest{Topics: names})
	})
	if err != nil {
		return nil, fmt.Errorf("kafka: looking up topics: %w", err)
	}
	there := make(map[string]kafka.Topic, len(res.Topics))
	for _, t := range res.Topics {
		if !errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			there[t.Name] = t
		}
	}
	return there, nil
}

// topicSettings asks for the settings that can hurt; a user that may not ask gets none.
func topicSettings(ctx context.Context, admin *kafka.Client, topics map[string]kafka.Topic) (map[string]map[string]string, error) {
	req := &kafka.DescribeConfigsRequest{}
	for name := range topics {
		req.Resources = append(req.Resources, kafka.DescribeConfigRequestResource{
			ResourceType: kafka.ResourceTypeTopic,
			ResourceName: name,
			ConfigNames:  []string{"min.insync.replicas", "max.message.bytes", "cleanup.policy"},
		})
	}
	if len(req.Resources) == 0 {
		return nil, nil
	}
	res, err := admin.DescribeConfigs(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("kafka: reading topic settings: %w", err)
	}
	settings := make(map[string]map[string]string, len(res.Resources))
	for _, r := range res.Resources {
		values := make(map[string]string)
		for _, e := range r.ConfigEntries {
			values[e.ConfigName] = e.ConfigValue
		}
		settings[r.ResourceName] = values
	}
	return settings, nil
}
