package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/ingest/spool"
)

func newSpoolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "spool", Short: "Look into an edge's spool, check it, or send it to Kafka", Args: cobra.NoArgs,
		Long: "Look into an edge's spool, check it, or send it to Kafka. A running edge drains its own; these are for what a stopped one has left.\n" +
			"DIR/quarantine holds what Kafka refused, what was too old, and copies of damage. It is a spool like any other: give it as --dir.",
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSpoolLs(), newSpoolVerify(), newSpoolDrain())
	return cmd
}

// A spoolView is what ls and verify answer.
type spoolView struct {
	Dir        string        `json:"dir"`
	OK         bool          `json:"ok"`
	Segments   []segmentView `json:"segments"`
	Quarantine []segmentView `json:"quarantine"`
	Damage     []string      `json:"damage_files"` // copies in the quarantine of bytes that were no record
}

type segmentView struct {
	Name       string           `json:"name"`
	Bytes      int64            `json:"bytes"`
	Records    int64            `json:"records"`
	Pending    int64            `json:"pending"`
	Topics     map[string]int64 `json:"topics,omitempty"`
	Oldest     *time.Time       `json:"oldest"`
	Newest     *time.Time       `json:"newest"`
	AckDamaged bool             `json:"ack_damaged"`
	TornBytes  int64            `json:"torn_bytes"`
	Damage     []damageView     `json:"damage"`
	Error      string           `json:"error,omitempty"`

	verified bool // every byte was read
}

type damageView struct {
	Offset    int64 `json:"offset"`
	Bytes     int64 `json:"bytes"`
	Records   int64 `json:"records"`
	Delivered bool  `json:"delivered"`
}

func newSpoolLs() *cobra.Command {
	return spoolLook("ls", "List a spool's segments, by their records' heads",
		"List a spool's segments, by their records' heads: what is in them is for verify to check. It changes nothing, and may run beside the edge that has the spool.", spool.Ls)
}

func newSpoolVerify() *cobra.Command {
	return spoolLook("verify", "Read a spool and check every byte of it",
		"Read a spool and check every byte of it. Exit status 1 where something is damaged. It changes nothing, and may run beside the edge that has the spool.", spool.Verify)
}

func spoolLook(use, short, long string, look func(string) ([]spool.SegmentInfo, error)) *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		view, err := lookIntoSpool(dir, look)
		if err != nil {
			return err
		}
		for _, segments := range [][]segmentView{view.Segments, view.Quarantine} {
			for i := range segments {
				segments[i].verified = use == "verify"
			}
		}
		if asJSON {
			err = json.NewEncoder(cmd.OutOrStdout()).Encode(view)
		} else {
			err = view.print(cmd.OutOrStdout())
		}
		if err == nil && !view.OK {
			err = fmt.Errorf("%s is damaged; what can be read is still sent", dir)
		}
		return err
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the spool's directory: an edge's --spool-dir, or the quarantine in it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	needsDir(cmd, &dir)
	return cmd
}

func needsDir(cmd *cobra.Command, dir *string) {
	next := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if next != nil {
			if err := next(cmd, args); err != nil {
				return err
			}
		}
		if *dir == "" {
			return usagef("--dir is needed")
		}
		return spool.Check(*dir)
	}
}

func lookIntoSpool(dir string, look func(string) ([]spool.SegmentInfo, error)) (*spoolView, error) {
	segments, err := look(dir)
	if err != nil {
		return nil, err
	}
	view := &spoolView{Dir: dir, OK: true, Segments: []segmentView{}, Quarantine: []segmentView{}, Damage: []string{}}
	for i := range segments {
		view.OK = view.OK && segments[i].OK()
		view.Segments = append(view.Segments, viewSegment(&segments[i]))
	}
	quarantine := filepath.Join(dir, "quarantine")
	segments, err = look(quarantine)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for i := range segments {
		view.OK = view.OK && segments[i].OK()
		view.Quarantine = append(view.Quarantine, viewSegment(&segments[i]))
	}
	for _, d := range []string{dir, quarantine} {
		files, err := filepath.Glob(filepath.Join(d, "damaged-*.bin"))
		if err != nil {
			return nil, err
		}
		view.Damage = append(view.Damage, files...)
	}
	return view, nil
}

func viewSegment(s *spool.SegmentInfo) segmentView {
	v := segmentView{Name: s.Name, Bytes: s.Bytes, Records: s.Records, Pending: s.Pending, Topics: s.Topics, AckDamaged: s.AckDamaged, TornBytes: s.TornBytes,
		Damage: []damageView{}}
	for _, d := range s.Damage {
		v.Damage = append(v.Damage, damageView(d))
	}
	if !s.Oldest.IsZero() {
		oldest, newest := s.Oldest.UTC(), s.Newest.UTC()
		v.Oldest, v.Newest = &oldest, &newest
	}
	if s.Err != nil {
		v.Error = s.Err.Error()
	}
	return v
}

func (v *spoolView) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "SEGMENT\tSIZE\tRECORDS\tWAITING\tOLDEST\tNEWEST\tSTATE")
	var records, pending, bytes int64
	row := func(prefix string, s *segmentView) {
		records, pending, bytes = records+s.Records, pending+s.Pending, bytes+s.Bytes
		fmt.Fprintf(t, "%s%s\t%s\t%d\t%d\t%s\t%s\t%s\n", prefix, s.Name, byteSize(s.Bytes), s.Records, s.Pending, when(s.Oldest), when(s.Newest), s.state())
	}
	for i := range v.Segments {
		row("", &v.Segments[i])
	}
	for i := range v.Quarantine {
		row("quarantine/", &v.Quarantine[i])
	}
	fmt.Fprintf(t, "total\t%s\t%d\t%d\n", byteSize(bytes), records, pending)
	if err := t.Flush(); err != nil {
		return err
	}
	topics := map[string]int64{}
	for _, s := range slices.Concat(v.Segments, v.Quarantine) {
		for topic, n := range s.Topics {
			topics[topic] += n
		}
	}
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		fmt.Fprintf(w, "topic %s: %d records wait\n", topic, topics[topic])
	}
	for _, f := range v.Damage {
		fmt.Fprintf(w, "damaged bytes: %s\n", f)
	}
	return nil
}

// state is what is wrong with a segment, in words.
func (s *segmentView) state() string {
	var parts []string
	if s.Error != "" {
		parts = append(parts, "unreadable: "+s.Error)
	}
	for _, d := range s.Damage {
		what := "damaged: %d bytes at %d, %d records lost"
		if d.Delivered {
			what = "damaged: %d bytes at %d, %d records that were delivered before"
		}
		parts = append(parts, fmt.Sprintf(what, d.Bytes, d.Offset, d.Records))
	}
	if s.AckDamaged {
		parts = append(parts, "ack file damaged: its records come again")
	}
	if s.TornBytes > 0 {
		parts = append(parts, fmt.Sprintf("torn tail of %d bytes", s.TornBytes))
	}
	if len(parts) == 0 && !s.verified {
		return "heads ok"
	}
	if len(parts) == 0 {
		return "ok"
	}
	return strings.Join(parts, "; ")
}

// A drainView is what drain answers.
type drainView struct {
	Dir        string            `json:"dir"`
	Replayed   int64             `json:"replayed"`
	Quarantine int64             `json:"quarantined"`
	Left       int64             `json:"left"`
	Paused     map[string]string `json:"paused_topics"`
}

func newSpoolDrain() *cobra.Command {
	var cfg config
	var dir string
	var asJSON bool
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "drain", Short: "Send what is in a spool to Kafka, and empty it", Args: cobra.NoArgs,
		Long: "Send what is in a spool to Kafka, in order and marked flowstate-replayed: 1, and empty it. No edge may run on it meanwhile.\n" +
			"Records go to the topics that they were meant for. What Kafka refuses for good moves to DIR/quarantine. Exit status 1 where something is left.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(cfg.kafkaBrokers) == 0 {
				return usagef("--kafka-brokers (or %s) is needed", envName("kafka-brokers"))
			}
			if _, err := os.Stat(dir); err != nil {
				return fmt.Errorf("--dir: %w", err) // a spool must not be made here by a slip of the pen
			}
			view, err := cfg.drainSpool(cmd.Context(), cmd.ErrOrStderr(), dir, patience)
			if err != nil {
				return err
			}
			if asJSON {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(view)
			} else {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d records sent to Kafka, %d moved to the quarantine, %d left.\n", view.Replayed, view.Quarantine, view.Left)
			}
			if err == nil && view.Left > 0 {
				err = fmt.Errorf("%d records are left in %s%s", view.Left, dir, pausedText(view.Paused))
			}
			return err
		},
	}
	f := cmd.Flags()
	cfg.kafkaFlags(f)
	f.StringVar(&dir, "dir", "", "the spool's directory")
	f.DurationVar(&patience, "patience", time.Minute, "give up when nothing has gone through for so long")
	f.IntVar(&cfg.spool.replayBytesPerSecond, "spool-replay-bytes-per-second", 0, "most to send to Kafka (0: as fast as it takes them)")
	f.StringVar(&cfg.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.StringVar(&cfg.logFormat, "log-format", "auto", "json, text, or auto: text on a terminal")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	layered(cmd)
	needsDir(cmd, &dir)
	return cmd
}

func pausedText(paused map[string]string) string {
	var b strings.Builder
	for _, topic := range slices.Sorted(maps.Keys(paused)) {
		fmt.Fprintf(&b, "; topic %s: %s", topic, paused[topic])
	}
	return b.String()
}

// unlimited is what a spool that only shrinks may hold.
const unlimited = 1 << 62

func (c *config) drainSpool(ctx context.Context, errOut io.Writer, dir string, patience time.Duration) (*drainView, error) {
	log, _, err := newLogger(errOut, c.logLevel, c.logFormat)
	if err != nil {
		return nil, err
	}
	k, err := c.kafkaConfig()
	if err != nil {
		return nil, err
	}
	kept, err := spool.Open(spool.Config{Dir: dir, MaxBytes: unlimited, MinFreeBytes: -1, Logger: log})
	if err != nil {
		return nil, err
	}
	defer closeSpool(kept, log)
	topics, err := topicsOf(dir)
	if err != nil {
		return nil, err
	}
	view := &drainView{Dir: dir, Paused: map[string]string{}}
	before := kept.Stats()
	if len(topics) == 0 {
		view.Left = before.Records
		return view, nil
	}
	producer, err := ingest.NewProducer(ingest.ProducerConfig{KafkaConfig: k, Topics: topics, Logger: log})
	if err != nil {
		return nil, &usageError{err}
	}
	rate := c.spool.replayBytesPerSecond
	if rate == 0 {
		rate = unlimited
	}
	d := ingest.NewSink(ingest.SinkConfig{Producer: producer, Spool: kept, ReplayBytesPerSecond: rate, Logger: log}).NewDrain()
	view.Left = d.Finish(ctx, patience)
	view.Replayed, view.Quarantine = d.Sent()
	view.Paused = d.Paused()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = producer.Close(stop) // what it had under way is left, and counted so
	return view, nil
}

func closeSpool(kept *spool.Log, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := kept.Close(ctx); err != nil {
		log.Error("spool: not closed", "error", err)
	}
}

// topicsOf are the topics that a spool's waiting records are for.
func topicsOf(dir string) ([]string, error) {
	segments, err := spool.Verify(dir)
	if err != nil {
		return nil, err
	}
	topics := map[string]bool{}
	for _, s := range segments {
		for topic, n := range s.Topics {
			if n > 0 {
				topics[topic] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(topics)), nil
}
