package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/spf13/cobra"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest"
)

// The headers that the alerts consumer adds to a dead letter.
const (
	deadReason    = "sluice-dead-reason"
	deadTopic     = "sluice-dead-topic"
	deadPartition = "sluice-dead-partition"
	deadOffset    = "sluice-dead-offset"
	deadBytes     = "sluice-dead-bytes" // how large the value was; only where it had to be cut
	deadHeaders   = "sluice-dead-"
	replayedName  = "flowstate-replayed"
)

// A dlqFlags is what every command on the dead letters takes.
type dlqFlags struct {
	cfg              config
	asJSON, all      bool
	partition        int
	from, to         int64
	withBody, dryRun bool
}

func newDLQCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "dlq", Short: "Look at signals that could not be read, and send them again", Args: cobra.NoArgs,
		Long: "Look at the dead letters: messages of the signals topic that the alerts consumer could not read or store, as they were, with the reason. Kafka keeps them\n" +
			"for the topic's retention; nothing here removes one. Without --kafka-brokers it is the sluice dev that runs on --data-dir.",
		Example: "  sluice dlq ls\n  sluice dlq show 0/17 --show-body\n  sluice dlq replay --partition 0 --from 10 --to 17 --dry-run",
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newDLQList(), newDLQShow(), newDLQReplay())
	return cmd
}

func (f *dlqFlags) register(cmd *cobra.Command, ranged bool) {
	fs := cmd.Flags()
	f.cfg.kafkaFlags(fs)
	fs.StringVar(&f.cfg.dataDir, "data-dir", "./sluice-data", "directory of the data of a running sluice dev")
	fs.BoolVar(&f.asJSON, "json", false, "print one JSON line for each message")
	f.partition, f.from, f.to = -1, 0, -1
	if ranged {
		fs.IntVar(&f.partition, "partition", -1, "only this partition (-1: all)")
		fs.Int64Var(&f.from, "from", 0, "first offset")
		fs.Int64Var(&f.to, "to", -1, "last offset, itself included (-1: the last there is)")
	}
	layered(cmd)
}

func newDLQList() *cobra.Command {
	var f dlqFlags
	cmd := &cobra.Command{Use: "ls", Short: "List the dead letters", Args: cobra.NoArgs,
		Long:    "List the dead letters, oldest first in each partition: where they stand, when they came, whose they are, why they are here. Never their bodies. Times are in UTC.",
		Example: "  sluice dlq ls\n  sluice dlq ls --partition 0 --from 100 --json"}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		k, err := f.open()
		if err != nil {
			return err
		}
		var n int
		t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
		if !f.asJSON {
			fmt.Fprintln(t, "PARTITION/OFFSET\tTIME\tORG\tKEY\tBYTES\tWAS\tREASON")
		}
		err = f.each(cmd.Context(), k, func(m kafka.Message) error {
			n++
			l := f.letter(m, false)
			if f.asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
			}
			_, err := fmt.Fprintf(t, "%d/%d\t%s\t%s\t%s\t%d\t%s\t%s\n", l.Partition, l.Offset, when(&l.Time), dash(l.Org), dash(l.KeyPrefix), l.Bytes, dash(l.Source.String()), dash(short(l.Reason)))
			return err
		})
		if err = errors.Join(err, t.Flush()); err == nil && !f.asJSON {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d dead letters in %s.\n", n, f.cfg.topics.dlq)
		}
		return err
	}
	f.register(cmd, true)
	return cmd
}

func newDLQShow() *cobra.Command {
	var f dlqFlags
	cmd := &cobra.Command{Use: "show PARTITION/OFFSET", Short: "Show one dead letter", Args: exactArgs(1),
		Long:    "Show one dead letter with its headers. Its body, which may hold what a workload said, is shown with --show-body only.",
		Example: "  sluice dlq show 0/17\n  sluice dlq show 0/17 --show-body"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, o, ok := strings.Cut(args[0], "/")
		partition, err := strconv.Atoi(p)
		offset, err2 := strconv.ParseInt(o, 10, 64)
		if !ok || err != nil || err2 != nil || partition < 0 || offset < 0 {
			return usagef("%q is not PARTITION/OFFSET, such as 0/17", args[0])
		}
		f.partition, f.from, f.to = partition, offset, offset
		k, err := f.open()
		if err != nil {
			return err
		}
		found := false
		err = f.each(cmd.Context(), k, func(m kafka.Message) error {
			found = true
			l := f.letter(m, f.withBody)
			if f.asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(l)
			}
			return l.show(cmd.OutOrStdout())
		})
		if err == nil && !found {
			return fmt.Errorf("there is no dead letter %s in %s (any more): see sluice dlq ls", args[0], f.cfg.topics.dlq)
		}
		return err
	}
	cmd.Flags().BoolVar(&f.withBody, "show-body", false, "show the body too")
	f.register(cmd, false)
	return cmd
}

func newDLQReplay() *cobra.Command {
	var f dlqFlags
	cmd := &cobra.Command{Use: "replay", Short: "Send dead letters to the signals topic again", Args: cobra.NoArgs,
		Long: "Send dead letters to the signals topic again, after what made them unreadable was mended: with the key, the value and the headers that they had, the same\n" +
			"flowstate-msg-id and id among them, by which consumers drop duplicates, and flowstate-replayed: 1. Name them by offsets, or say --all. Each is acknowledged by\n" +
			"all in-sync replicas before the next is sent, and named when it is. They stay among the dead letters: to replay one twice sends it twice. One that still\n" +
			"cannot be read comes back as a new dead letter. One that had to be cut to be kept is left out: what is missing of it cannot be sent.",
		Example: "  sluice dlq replay --all --dry-run\n  sluice dlq replay --partition 0 --from 10 --to 17"}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ranged := cmd.Flags().Changed("partition") || cmd.Flags().Changed("from") || cmd.Flags().Changed("to")
		switch {
		case f.all == ranged:
			return usagef("give --all, or the dead letters by --partition, --from and --to")
		case f.partition < 0 && (cmd.Flags().Changed("from") || cmd.Flags().Changed("to")):
			return usagef("--from and --to are offsets of one partition: give --partition")
		}
		return f.replay(cmd)
	}
	cmd.Flags().BoolVar(&f.all, "all", false, "all that are kept")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "say what would be sent, and send nothing")
	f.register(cmd, true)
	return cmd
}

// replayLine is what --json prints of each message, and of the end.
type replayLine struct {
	Partition int    `json:"partition"`
	Offset    int64  `json:"offset"`
	Org       string `json:"org"`
	Bytes     int    `json:"bytes"`
	Sent      bool   `json:"sent"`
}

func (f *dlqFlags) replay(cmd *cobra.Command) error {
	k, err := f.open()
	if err != nil {
		return err
	}
	var producer *ingest.Producer
	if !f.dryRun {
		to, err := f.cfg.kafkaConfig()
		if err != nil {
			return err
		}
		producer, err = ingest.NewProducer(ingest.ProducerConfig{KafkaConfig: to, Topics: []string{f.cfg.topics.signals}, MaxMessageBytes: 16 << 20,
			Timeout: 20 * time.Second, Logger: discardLogger()})
		if err != nil {
			return &usageError{err}
		}
		defer func() {
			end, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 5*time.Second)
			defer cancel()
			_ = producer.Close(end) // every message was acknowledged or named as failed
		}()
	}
	out := cmd.OutOrStdout()
	n, left := 0, 0
	var at kafka.Message
	err = f.each(cmd.Context(), k, func(m kafka.Message) error {
		at = m
		isCut := headerOf(m, deadBytes) != ""
		if producer != nil && !isCut {
			if err := producer.Produce(cmd.Context(), []ingest.Message{replayed(m, f.cfg.topics.signals)}); err != nil {
				return err
			}
		}
		if isCut {
			left++
		} else {
			n++
		}
		if f.asJSON {
			return json.NewEncoder(out).Encode(replayLine{m.Partition, m.Offset, headerOf(m, "flowstate-org"), len(m.Value), producer != nil && !isCut})
		}
		what := "would be sent"
		switch {
		case isCut:
			what = "left out: it was cut from " + headerOf(m, deadBytes) + " bytes"
		case producer != nil:
			what = "sent"
		}
		_, err := fmt.Fprintf(out, "%d/%d  %s  %d bytes  %s\n", m.Partition, m.Offset, dash(headerOf(m, "flowstate-org")), len(m.Value), what)
		return err
	})
	if err != nil {
		maybe := ""
		if away := (*ingest.UnavailableError)(nil); errors.As(err, &away) && away.MaybeWritten {
			maybe = " (it may be there all the same)"
		}
		if at.Topic == "" {
			return err
		}
		return fmt.Errorf("%d dead letters were sent to %s, and no more: %d/%d was not acknowledged%s: %w. Go on with --partition %d --from %d, then the partitions after it",
			n, f.cfg.topics.signals, at.Partition, at.Offset, maybe, err, at.Partition, at.Offset)
	}
	if left > 0 {
		fmt.Fprintf(cmd.ErrOrStderr(), "%d dead letters were left out: they are not whole.\n", left)
	}
	if f.dryRun {
		fmt.Fprintf(cmd.ErrOrStderr(), "Dry run: %d dead letters would be sent to %s, none was.\n", n, f.cfg.topics.signals)
		return nil
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%d dead letters were sent to %s, each acknowledged. They are still in %s: do not replay them again.\n", n, f.cfg.topics.signals, f.cfg.topics.dlq)
	return nil
}

// replayed is the message as it was before it became a dead letter, marked.
func replayed(m kafka.Message, topic string) ingest.Message {
	out := ingest.Message{Topic: topic, Key: m.Key, Value: m.Value}
	for _, h := range m.Headers {
		if !strings.HasPrefix(h.Key, deadHeaders) && h.Key != replayedName {
			out.Headers = append(out.Headers, ingest.Header(h))
		}
	}
	out.Headers = append(out.Headers, ingest.Header{Key: replayedName, Value: []byte("1")})
	return out
}

// open reaches Kafka, the sluice dev's where no brokers are given.
func (f *dlqFlags) open() (*kafka.Client, error) {
	if len(f.cfg.kafkaBrokers) == 0 {
		run, err := readRunFile(f.cfg.dataDir)
		if err != nil {
			return nil, fmt.Errorf("%w; or give --kafka-brokers", err)
		}
		f.cfg.kafkaBrokers = []string{run.Kafka}
	}
	transport, err := f.cfg.kafkaTransport()
	if err != nil {
		return nil, err
	}
	return &kafka.Client{Addr: kafka.TCP(f.cfg.kafkaBrokers...), Transport: transport, Timeout: 10 * time.Second}, nil
}

// each visits the dead letters that were there when it began, partition by partition, in the order of their offsets.
func (f *dlqFlags) each(ctx context.Context, client *kafka.Client, visit func(kafka.Message) error) error {
	topic := f.cfg.topics.dlq
	first, err := (&follower{client: client, topics: []string{topic}, fromStart: true}).starts(ctx)
	if err != nil {
		return err
	}
	end, err := (&follower{client: client, topics: []string{topic}}).starts(ctx)
	if err != nil {
		return err
	}
	var partitions []int
	for p := range end[topic] {
		if f.partition < 0 || p == f.partition {
			partitions = append(partitions, p)
		}
	}
	if len(partitions) == 0 && f.partition >= 0 {
		return fmt.Errorf("topic %s has no partition %d", topic, f.partition)
	}
	slices.Sort(partitions)
	for _, p := range partitions {
		from, until := max(first[topic][p], f.from), end[topic][p]
		if f.to >= 0 {
			until = min(until, f.to+1)
		}
		if err := readRange(ctx, client, topic, p, from, until, visit); err != nil {
			return err
		}
	}
	return nil
}

// readRange visits the messages of a partition from one offset to before another.
func readRange(ctx context.Context, client *kafka.Client, topic string, partition int, from, until int64, visit func(kafka.Message) error) error {
	for from < until {
		res, err := client.Fetch(ctx, &kafka.FetchRequest{Topic: topic, Partition: partition, Offset: from, MinBytes: 1, MaxBytes: 32 << 20, MaxWait: time.Second})
		if err != nil {
			return fmt.Errorf("read %s/%d at %d: %w", topic, partition, from, err)
		}
		if res.Error != nil {
			return fmt.Errorf("read %s/%d at %d: %w", topic, partition, from, res.Error)
		}
		began := from
		for {
			rec, err := res.Records.ReadRecord()
			if err == io.EOF {
				break
			}
			if err != nil {
				return fmt.Errorf("read %s/%d at %d: %w", topic, partition, from, err)
			}
			m, err := message(topic, partition, rec)
			if err != nil {
				return fmt.Errorf("read %s/%d at %d: %w", topic, partition, from, err)
			}
			if m.Offset < from {
				continue // the rest of a batch that began before
			}
			if m.Offset >= until {
				return nil
			}
			if err := visit(m); err != nil {
				return err
			}
			from = m.Offset + 1
		}
		if from == began {
			return nil // what is left was compacted away, or is a mark of a transaction
		}
	}
	return nil
}

// A letterView is one dead letter.
type letterView struct {
	Partition int               `json:"partition"`
	Offset    int64             `json:"offset"`
	Time      time.Time         `json:"time"`
	Org       string            `json:"org"`
	KeyPrefix string            `json:"key_prefix"` // where the body can be read that far
	Subject   string            `json:"subject"`
	Bytes     int               `json:"bytes"`
	Reason    string            `json:"reason"`
	Source    letterSource      `json:"source"`
	Headers   map[string]string `json:"headers"`
	Body      *string           `json:"body,omitempty"`
}

// letterSource is where the message stood when it was found unreadable.
type letterSource struct {
	Topic     string `json:"topic"`
	Partition string `json:"partition"`
	Offset    string `json:"offset"`
}

func (s letterSource) String() string {
	if s.Topic == "" {
		return ""
	}
	return s.Topic + " " + s.Partition + "/" + s.Offset
}

func (f *dlqFlags) letter(m kafka.Message, body bool) letterView {
	l := letterView{
		Partition: m.Partition, Offset: m.Offset, Time: m.Time.UTC(), Org: headerOf(m, "flowstate-org"), Subject: string(m.Key), Bytes: len(m.Value),
		Reason: headerOf(m, deadReason), Source: letterSource{headerOf(m, deadTopic), headerOf(m, deadPartition), headerOf(m, deadOffset)}, Headers: map[string]string{},
	}
	for _, h := range m.Headers {
		l.Headers[h.Key] = string(h.Value)
	}
	var e struct {
		KeyPrefix string `json:"key_prefix"`
	}
	if json.Unmarshal(m.Value, &e) == nil {
		l.KeyPrefix, _ = auth.PrefixOf(e.KeyPrefix)
	}
	if body {
		text := string(m.Value)
		l.Body = &text
	}
	return l
}

func (l letterView) show(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "Dead letter\t%d/%d\nTime\t%s\nReason\t%s\nWas\t%s\nOrg\t%s\nSubject\t%s\nKey\t%s\nBytes\t%d\n",
		l.Partition, l.Offset, when(&l.Time), dash(l.Reason), dash(l.Source.String()), dash(l.Org), dash(l.Subject), dash(l.KeyPrefix), l.Bytes)
	var names []string
	for name := range l.Headers {
		if !strings.HasPrefix(name, deadHeaders) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(t, "%s\t%s\n", name, l.Headers[name])
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if l.Body == nil {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n%s\n", *l.Body)
	return err
}

// headerOf is the last header of that name; "" where there is none.
func headerOf(m kafka.Message, name string) string {
	value := ""
	for _, h := range m.Headers {
		if h.Key == name {
			value = string(h.Value)
		}
	}
	return value
}

func dash(s string) string { return cmp.Or(s, "-") }
