package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/spf13/cobra"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func newTailCommand() *cobra.Command {
	var cfg config
	var asJSON, fromStart, refused bool
	var once bool
	var only []string
	var count, last int
	cmd := &cobra.Command{
		Use:   "tail",
		Short: "Follow the topics and print what arrives",
		Long: "Follow the topics and print what arrives, from now on. Without --kafka-brokers it follows the sluice dev that runs on --data-dir.\n" +
			"With --json each line is one message: {topic, partition, offset, key, time, headers, value}; OTLP values are decoded.\n" +
			"With --refused it shows the last requests that the edge refused instead, and those that follow: of a whole fleet with --postgres-url, where a flood\n" +
			"of one sender within a second is one line, else of the sluice dev on --data-dir. Times are in UTC.",
		Example: "  sluice tail --topic ai_signals --json\n  sluice tail --refused --last 100 --once",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if refused {
				return cfg.tailRefused(cmd, refusedView{fromStart: fromStart, asJSON: asJSON, count: count, last: last, once: once})
			}
			if once || cmd.Flags().Changed("last") {
				return usagef("--last and --once belong to --refused")
			}
			brokers := cfg.kafkaBrokers
			if len(brokers) == 0 {
				run, err := readRunFile(cfg.dataDir)
				if err != nil {
					return fmt.Errorf("%w; or give --kafka-brokers", err)
				}
				brokers = []string{run.Kafka}
			}
			transport, err := cfg.kafkaTransport()
			if err != nil {
				return err
			}
			names := only
			if len(names) == 0 {
				names = []string{cfg.topics.logs, cfg.topics.spans, cfg.topics.metrics, cfg.topics.signals}
			}
			f := follower{client: &kafka.Client{Addr: kafka.TCP(brokers...), Transport: transport, Timeout: 10 * time.Second}, topics: names, fromStart: fromStart}
			from := "from now on (--from-beginning: all that is kept)"
			if fromStart {
				from = "from the oldest that is kept"
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "Following %s at %s, %s; Ctrl-C ends it. Times are in UTC.\n", strings.Join(names, ", "), strings.Join(brokers, ", "), from)
			p := printer{out: cmd.OutOrStdout(), json: asJSON, topics: cfg.topics}
			left := count
			err = f.follow(cmd.Context(), func(m kafka.Message) error {
				if err := p.print(m); err != nil {
					return err
				}
				left--
				if count > 0 && left == 0 {
					return errEnough
				}
				return nil
			})
			if errors.Is(err, errEnough) || errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	f := cmd.Flags()
	cfg.kafkaFlags(f)
	f.StringVar(&cfg.dataDir, "data-dir", "./sluice-data", "directory of the data of a running sluice dev")
	f.StringVar(&cfg.postgresURL, "postgres-url", "", "PostgreSQL, for --refused (secret: also --postgres-url-file)")
	f.BoolVar(&refused, "refused", false, "show refused requests instead of what arrives")
	f.BoolVar(&asJSON, "json", false, "print one JSON line for each message")
	f.BoolVar(&fromStart, "from-beginning", false, "begin with the oldest message kept")
	f.StringSliceVar(&only, "topic", nil, "topics to follow (default: logs, spans, metrics and signals)")
	f.IntVarP(&count, "count", "n", 0, "stop after so many messages (0: never); with --refused those before now are among them")
	f.IntVar(&last, "last", 10, "with --refused: how many of those before now are shown; at least --count")
	f.BoolVar(&once, "once", false, "with --refused: show those and end")
	layered(cmd)
	return cmd
}

var errEnough = errors.New("enough messages")

// A follower reads every partition of some topics, outside any consumer group.
type follower struct {
	client    *kafka.Client
	topics    []string
	fromStart bool
}

// follow calls visit for each message, one at a time, until ctx ends or visit errs.
func (f *follower) follow(ctx context.Context, visit func(kafka.Message) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	starts, err := f.starts(ctx)
	if err != nil {
		return err
	}
	messages := make(chan kafka.Message)
	for topic, offsets := range starts {
		for partition, offset := range offsets {
			wg.Go(func() {
				if err := f.fetch(ctx, topic, partition, offset, messages); err != nil {
					cancel(err)
				}
			})
		}
	}
	for {
		select {
		case m := <-messages:
			if err := visit(m); err != nil {
				cancel(err)
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// starts finds the offset to begin from in each partition of each topic.
func (f *follower) starts(ctx context.Context) (map[string]map[int]int64, error) {
	meta, err := f.client.Metadata(ctx, &kafka.MetadataRequest{Topics: f.topics})
	if err != nil {
		return nil, fmt.Errorf("ask Kafka for its topics: %w", err)
	}
	req := &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{}}
	for _, t := range meta.Topics {
		if t.Error != nil {
			return nil, fmt.Errorf("topic %s: %w (sluice migrate makes missing topics)", t.Name, t.Error)
		}
		for _, p := range t.Partitions {
			at := kafka.LastOffsetOf(p.ID)
			if f.fromStart {
				at = kafka.FirstOffsetOf(p.ID)
			}
			req.Topics[t.Name] = append(req.Topics[t.Name], at)
		}
	}
	res, err := f.client.ListOffsets(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("ask Kafka for its offsets: %w", err)
	}
	starts := map[string]map[int]int64{}
	for topic, partitions := range res.Topics {
		starts[topic] = map[int]int64{}
		for _, p := range partitions {
			if p.Error != nil {
				return nil, fmt.Errorf("offsets of %s/%d: %w", topic, p.Partition, p.Error)
			}
			starts[topic][p.Partition] = p.LastOffset
			if f.fromStart {
				starts[topic][p.Partition] = p.FirstOffset
			}
		}
	}
	return starts, nil
}

func (f *follower) fetch(ctx context.Context, topic string, partition int, offset int64, messages chan<- kafka.Message) error {
	for ctx.Err() == nil {
		res, err := f.client.Fetch(ctx, &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: offset, MinBytes: 1, MaxBytes: 4 << 20, MaxWait: time.Second})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			// The broker may be on its way back: following means to go on when it is.
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		for {
			rec, err := res.Records.ReadRecord()
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("read %s/%d at %d: %w", topic, partition, offset, err)
			}
			m, err := message(topic, partition, rec)
			if err != nil {
				return fmt.Errorf("read %s/%d at %d: %w", topic, partition, offset, err)
			}
			if m.Offset < offset {
				continue // the rest of a batch that began before
			}
			offset = m.Offset + 1
			select {
			case messages <- m:
			case <-ctx.Done():
				return nil
			}
		}
	}
	return nil
}

func message(topic string, partition int, rec *kafka.Record) (kafka.Message, error) {
	m := kafka.Message{Topic: topic, Partition: partition, Offset: rec.Offset, Time: rec.Time}
	for _, h := range rec.Headers {
		m.Headers = append(m.Headers, kafka.Header(h))
	}
	var err error
	if rec.Key != nil {
		if m.Key, err = io.ReadAll(rec.Key); err != nil {
			return m, err
		}
	}
	if rec.Value != nil {
		m.Value, err = io.ReadAll(rec.Value)
	}
	return m, err
}

// A printer prints messages, for people or as JSON.
type printer struct {
	out    io.Writer
	json   bool
	topics topics
}

type messageLine struct {
	Topic     string            `json:"topic"`
	Partition int               `json:"partition"`
	Offset    int64             `json:"offset"`
	Key       string            `json:"key"`
	Time      time.Time         `json:"time"`
	Headers   map[string]string `json:"headers"`
	Value     json.RawMessage   `json:"value"`
}

func (p *printer) print(m kafka.Message) error {
	if !p.json {
		return p.text(m)
	}
	line := messageLine{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Key: string(m.Key), Time: m.Time.UTC(), Headers: map[string]string{}}
	for _, h := range m.Headers {
		line.Headers[h.Key] = string(h.Value)
	}
	value, err := p.value(m)
	if err != nil {
		value, _ = json.Marshal(map[string]string{"undecodable": err.Error()})
	}
	line.Value = value
	return json.NewEncoder(p.out).Encode(line)
}

// payload is an empty message of the type that a topic carries; nil for JSON topics.
func (p *printer) payload(topic string) proto.Message {
	// The *Data types of OTLP have the same wire form as the Export requests, and no gRPC.
	switch topic {
	case p.topics.logs:
		return &logspb.LogsData{}
	case p.topics.spans:
		return &tracepb.TracesData{}
	case p.topics.metrics:
		return &metricspb.MetricsData{}
	}
	return nil
}

func (p *printer) value(m kafka.Message) (json.RawMessage, error) {
	data := p.payload(m.Topic)
	if data == nil {
		if !json.Valid(m.Value) {
			return nil, errors.New("not JSON")
		}
		return m.Value, nil
	}
	if err := proto.Unmarshal(m.Value, data); err != nil {
		return nil, err
	}
	b, err := protojson.Marshal(data)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		return nil, err
	}
	hexIDs(tree)
	return json.Marshal(tree)
}

// hexIDs turns protojson's base64 ids into the hexadecimal ones that OTLP/JSON has.
func hexIDs(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if s, ok := x.(string); ok && (k == "traceId" || k == "spanId" || k == "parentSpanId") {
				if raw, err := base64.StdEncoding.DecodeString(s); err == nil {
					v[k] = hex.EncodeToString(raw)
				}
				continue
			}
			hexIDs(x)
		}
	case []any:
		for _, x := range v {
			hexIDs(x)
		}
	}
}

// An eventView is what a line for people says of an event on the signals topic.
type eventView struct {
	ID        string    `json:"id"`
	Type      string    `json:"type"`
	Severity  string    `json:"severity"`
	Base      string    `json:"base_severity"`
	Received  time.Time `json:"received_at"`
	KeyPrefix string    `json:"key_prefix"`
	Subject   struct {
		Label string `json:"label"`
	} `json:"subject"`
	Details json.RawMessage `json:"details"`
}

func (p *printer) text(m kafka.Message) error {
	at := m.Time.UTC().Format("15:04:05.000Z")
	switch data := p.payload(m.Topic).(type) {
	case nil:
		var e eventView
		if err := json.Unmarshal(m.Value, &e); err != nil {
			_, err := fmt.Fprintf(p.out, "%s  %-12s  (not an event: %d bytes)\n", at, m.Topic, len(m.Value))
			return err
		}
		_, err := fmt.Fprintf(p.out, "%s  %-12s  %-5s %s  [%s]  key %s  %s\n", at, m.Topic, e.Severity, e.Type, e.Subject.Label, e.KeyPrefix, e.Details)
		return err
	case *logspb.LogsData:
		if err := proto.Unmarshal(m.Value, data); err != nil {
			return p.undecodable(at, m, err)
		}
		for _, r := range data.ResourceLogs {
			for _, s := range r.ScopeLogs {
				for _, rec := range s.LogRecords {
					what := rec.EventName
					if what == "" {
						what = rec.Body.GetStringValue()
					}
					p.record(at, m.Topic, short(what), r.Resource)
				}
			}
		}
	case *tracepb.TracesData:
		if err := proto.Unmarshal(m.Value, data); err != nil {
			return p.undecodable(at, m, err)
		}
		for _, r := range data.ResourceSpans {
			for _, s := range r.ScopeSpans {
				for _, span := range s.Spans {
					p.record(at, m.Topic, short(span.Name), r.Resource)
				}
			}
		}
	case *metricspb.MetricsData:
		if err := proto.Unmarshal(m.Value, data); err != nil {
			return p.undecodable(at, m, err)
		}
		for _, r := range data.ResourceMetrics {
			for _, s := range r.ScopeMetrics {
				for _, metric := range s.Metrics {
					p.record(at, m.Topic, short(metric.Name), r.Resource)
				}
			}
		}
	}
	return nil
}

func (p *printer) undecodable(at string, m kafka.Message, err error) error {
	_, err = fmt.Fprintf(p.out, "%s  %-12s  (%d bytes that do not decode: %v)\n", at, m.Topic, len(m.Value), err)
	return err
}

func (p *printer) record(at, topic, what string, r *resourcepb.Resource) {
	badge := map[string]string{}
	for _, a := range r.GetAttributes() {
		if name, ok := strings.CutPrefix(a.Key, "flowstate."); ok {
			badge[name] = a.Value.GetStringValue()
		}
	}
	label := badge["subject.kind"] + ": " + badge["subject.id"]
	if name := badge["service_account.name"]; name != "" {
		label = "service: " + name + " / " + badge["service_account.environment"]
	}
	fmt.Fprintf(p.out, "%s  %-12s  %s  [%s]  key %s\n", at, topic, what, label, badge["key_prefix"])
}

// short is one line of at most 80 characters.
func short(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 80 {
		return string(r[:79]) + "…"
	}
	return s
}
