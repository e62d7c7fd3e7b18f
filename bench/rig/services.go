// Package rig runs what the benchmarks measure: real Kafka, PostgreSQL and Redis, and the servers under test as processes of their own, on loopback.
//
// Everything that it starts ends with Close, or when the program dies. Its scratch directory is removed; what is worth keeping (the Collector, which takes
// minutes to build) is in the user's cache directory.
package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
)

// A Rig is the services and the programs under test.
type Rig struct {
	Repo  string // the repository's root
	Dir   string // scratch
	Cache string
	Log   io.Writer

	Brokers     string
	PostgresURL string
	RedisURL    string
	KafkaPID    int

	Bin  Binaries
	Keys []string // of the service accounts that exist, the first made by the CLI

	orgKeys map[int][]string // by how many orgs they are spread over
	made    int              // accounts

	mu       sync.Mutex
	children []*Server
}

// Binaries are the paths of what was built.
type Binaries struct{ Sluice, Floor, Collector string }

// The topics of the three servers. Sluice's is its default.
const (
	SluiceTopic    = "otlp_logs"
	FloorTopic     = "floor_logs"
	CollectorTopic = "collector_logs"
)

// Partitions of each topic.
const Partitions = 6

// Old segments go at once: a closed loop writes gigabytes. The JVM is as one would run it, not as the tests start it.
const (
	kafkaExtra = "log.segment.bytes=67108864\nlog.retention.bytes=134217728\nlog.retention.check.interval.ms=2000\n" +
		"log.initial.task.delay.ms=500\nlog.segment.delete.delay.ms=500"
	kafkaJVM = "-Xmx1g -Xms1g -XX:+UseG1GC"
)

// Open finds the repository and starts Kafka, PostgreSQL and Redis.
func Open(ctx context.Context, log io.Writer) (*Rig, error) {
	root, err := output(ctx, "", "go", "list", "-m", "-f", "{{.Dir}}")
	if err != nil {
		return nil, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, err
	}
	r := &Rig{Repo: strings.TrimSpace(root), Cache: filepath.Join(cache, "sluice-bench"), Log: log}
	if r.Dir, err = os.MkdirTemp("", "sluice-bench-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(r.Dir, 0o755); err != nil { // PostgreSQL runs as a user of its own
		return nil, err
	}
	fmt.Fprintln(log, "starting Kafka, PostgreSQL and Redis")
	if err := r.services(ctx, "start"); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	env, err := os.ReadFile(filepath.Join(r.Dir, "services", "env"))
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	for _, line := range strings.Split(string(env), "\n") {
		name, value, _ := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		switch name {
		case "KAFKA_BROKERS":
			r.Brokers = value
		case "DATABASE_URL":
			r.PostgresURL = value
		case "REDIS_ADDR":
			r.RedisURL = "redis://" + value
		}
	}
	pid, err := os.ReadFile(filepath.Join(r.Dir, "services", "kafka1.pid"))
	if err == nil {
		r.KafkaPID, err = strconv.Atoi(strings.TrimSpace(string(pid)))
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// services runs a command of the repository's services script on services of our own.
func (r *Rig) services(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(r.Repo, ".ci", "services.sh"), args...)
	cmd.Env = append(os.Environ(), "DIR="+filepath.Join(r.Dir, "services"), "KAFKA_EXTRA="+kafkaExtra, "KAFKA_JVM="+kafkaJVM, "KAFKA_NODES=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("services.sh %s: %w: %s", strings.Join(args, " "), err, tail(out))
	}
	return nil
}

// Close ends what is running and removes the scratch directory.
func (r *Rig) Close() error {
	r.mu.Lock()
	children := r.children
	r.mu.Unlock()
	for _, s := range children {
		s.Stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(r.services(ctx, "clean"), os.RemoveAll(r.Dir))
}

// Topics makes the servers' topics.
func (r *Rig) Topics(ctx context.Context, names ...string) error {
	client := &kafka.Client{Addr: kafka.TCP(r.Brokers), Timeout: 20 * time.Second}
	req := &kafka.CreateTopicsRequest{}
	for _, name := range names {
		req.Topics = append(req.Topics, kafka.TopicConfig{Topic: name, NumPartitions: Partitions, ReplicationFactor: 1})
	}
	res, err := client.CreateTopics(ctx, req)
	if err != nil {
		return err
	}
	for name, err := range res.Errors {
		if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
			return fmt.Errorf("topic %s: %w", name, err)
		}
	}
	return nil
}

// Written is how many messages were ever written to a topic.
func (r *Rig) Written(ctx context.Context, topic string) (int64, error) {
	client := &kafka.Client{Addr: kafka.TCP(r.Brokers), Timeout: 20 * time.Second}
	var ask []kafka.OffsetRequest
	for i := range Partitions {
		ask = append(ask, kafka.LastOffsetOf(i))
	}
	res, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
	if err != nil {
		return 0, err
	}
	sum := int64(0)
	for _, p := range res.Topics[topic] {
		if p.Error != nil {
			return 0, fmt.Errorf("%s/%d: %w", topic, p.Partition, p.Error)
		}
		sum += p.LastOffset
	}
	return sum, nil
}

// FreeAddr is a loopback address that nobody listens on.
func FreeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// output runs a command to its end and returns what it printed; an error has the end of what it complained of.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, tail(append(out.Bytes(), complaint.Bytes()...)))
	}
	return out.String(), nil
}

// tail is the end of what a program said.
func tail(b []byte) string {
	const most = 2000
	if len(b) > most {
		b = append([]byte("…"), b[len(b)-most:]...)
	}
	return strings.TrimSpace(string(b))
}
