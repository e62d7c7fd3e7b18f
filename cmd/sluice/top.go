package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// topWindow is over how long sluice top takes its rates, once it has looked for so long: edges write each second, so less would jump about.
const topWindow = 10 * time.Second

// topSorts are the columns of sluice top, and what of a usage stands in each.
var topSorts = []struct {
	name string
	of   func(auth.Usage) int64
}{
	{"sent", func(u auth.Usage) int64 { return u.Accepted }},
	{"filtered", func(u auth.Usage) int64 { return u.Filtered }},
	{"refused", func(u auth.Usage) int64 { return u.Refused }},
	{"bytes", func(u auth.Usage) int64 { return u.Bytes }},
	{"requests", func(u auth.Usage) int64 { return u.Requests }},
	{"invalid", func(u auth.Usage) int64 { return u.Invalid }},
	{"unavailable", func(u auth.Usage) int64 { return u.Unavailable }},
}

func newTopCommand() *cobra.Command {
	var cfg config
	var t top
	cmd := &cobra.Command{Use: "top", Short: "Show which accounts send, are filtered and are refused, now", Args: cobra.NoArgs,
		Long: "Show the accounts of a fleet, and persons and detectors, by what they send: rates over the last 10 seconds, and totals since --since. It reads what the edges\n" +
			"write to the database each second, so what it shows is one to two seconds behind; the first line says when an edge last wrote. Sent, filtered, invalid and\n" +
			"unavailable are records, as the ledger counts them; refused are requests with the right key (over its limit, revoked), bytes are bodies as sent. Requests\n" +
			"without a good key belong to nobody: sluice tail --refused shows them.",
		Example: "  sluice top\n  sluice top --sort refused --org acme\n  sluice top --once --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := t.check(); err != nil {
				return err
			}
			store, closeStore, err := openStore(cmd.Context(), &cfg)
			if err != nil {
				return err
			}
			defer closeStore()
			t.store, t.out = store, cmd.OutOrStdout()
			if f, ok := t.out.(*os.File); ok {
				t.terminal = isatty.IsTerminal(f.Fd())
			}
			return t.run(cmd.Context())
		}}
	names := make([]string, len(topSorts))
	for i, s := range topSorts {
		names[i] = s.name
	}
	f := cmd.Flags()
	cfg.storeFlags(f)
	f.StringVar(&t.org, "org", "", "org (default: all of them)")
	f.StringVar(&t.sort, "sort", "sent", "what comes first: "+strings.Join(names, ", "))
	f.IntVar(&t.rows, "rows", 20, "how many lines")
	f.DurationVar(&t.since, "since", 24*time.Hour, "how far back totals go, in whole hours")
	f.DurationVar(&t.interval, "interval", 2*time.Second, "time between two looks, at least 500ms")
	f.BoolVar(&t.once, "once", false, "look twice, --interval apart, print once and end")
	f.BoolVar(&t.asJSON, "json", false, "print one JSON line for each look")
	layered(cmd)
	return cmd
}

// A top looks again and again. Rates come of what was added between two looks.
type top struct {
	store           *accounts.Store
	out             io.Writer
	terminal        bool
	org, sort       string
	rows            int
	since, interval time.Duration
	once, asJSON    bool

	from, split time.Time           // totals begin at from; hours from split on are read at each look, those before once
	before      map[string]topUsage // of the hours before split
	looks       []look              // of the last topWindow, oldest first
	of          func(auth.Usage) int64
}

type topUsage struct {
	org   string
	who   accounts.Subject
	usage auth.Usage
}

type look struct {
	at   time.Time
	live map[string]topUsage
}

func (t *top) check() error {
	for _, s := range topSorts {
		if s.name == t.sort {
			t.of = s.of
		}
	}
	switch {
	case t.of == nil:
		return usagef("--sort: %q is not one of the columns: see sluice top --help", t.sort)
	case t.rows <= 0:
		return usagef("--rows must be positive")
	case t.interval < 500*time.Millisecond:
		return usagef("--interval: edges write once a second; give 500ms or more")
	case t.since < 0:
		return usagef("--since must not be negative")
	}
	return nil
}

func (t *top) run(ctx context.Context) error {
	tick := time.NewTicker(t.interval)
	defer tick.Stop()
	for n := 1; ; n++ {
		if err := t.look(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		if !t.once || n > 1 {
			if err := t.print(ctx); err != nil {
				return err
			}
		}
		if t.once && n > 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (t *top) look(ctx context.Context) error {
	now := time.Now().UTC()
	if t.before == nil {
		// An edge whose clock is behind may write to the hour before for a while.
		t.split = now.Truncate(time.Hour).Add(-time.Hour)
		t.from = now.Add(-t.since).Truncate(time.Hour)
		if t.from.After(t.split) {
			t.split = t.from
		}
		var err error
		if t.before, err = t.read(ctx, t.from, t.split); err != nil {
			return err
		}
	}
	live, err := t.read(ctx, t.split, now.Add(1000*time.Hour))
	if err != nil {
		return err
	}
	t.looks = append(t.looks, look{now, live})
	for len(t.looks) > 2 && now.Sub(t.looks[1].at) >= topWindow {
		t.looks = t.looks[1:]
	}
	return nil
}

func (t *top) read(ctx context.Context, since, until time.Time) (map[string]topUsage, error) {
	rows, err := t.store.UsageBySubject(ctx, t.org, since, until)
	out := make(map[string]topUsage, len(rows))
	for _, r := range rows {
		out[r.Org+"/"+r.Subject.Kind+"/"+r.Subject.ID] = topUsage{r.Org, r.Subject, r.Usage}
	}
	return out, err
}

// topRates are of a second.
type topRates struct {
	Requests    float64 `json:"requests"`
	Sent        float64 `json:"sent"`
	Filtered    float64 `json:"filtered"`
	Invalid     float64 `json:"invalid"`
	Unavailable float64 `json:"unavailable"`
	Refused     float64 `json:"refused"`
	Bytes       float64 `json:"bytes"`
}

type topLine struct {
	Org     string `json:"org"`
	Subject struct {
		Kind  string `json:"kind"`
		ID    string `json:"id"`
		Label string `json:"label"`
	} `json:"subject"`
	Rate  topRates    `json:"per_second"`
	Total usageTotals `json:"total"`

	added, all int64 // what it is sorted by
}

type topView struct {
	At            time.Time  `json:"at"`
	Since         time.Time  `json:"since"`
	WindowSeconds float64    `json:"window_seconds"`
	Edges         int        `json:"edges"`
	WrittenAt     *time.Time `json:"written_at"` // null: no edge has written yet
	Items         []topLine  `json:"items"`
	More          int        `json:"more"` // subjects beyond --rows
}

func (t *top) view(ctx context.Context) (topView, error) {
	first, last := t.looks[0], t.looks[len(t.looks)-1]
	v := topView{At: last.at, Since: t.from, WindowSeconds: last.at.Sub(first.at).Seconds(), Items: []topLine{}}
	edges, written, err := t.store.UsageFreshness(ctx)
	if err != nil {
		return v, err
	}
	v.Edges = edges
	if !written.IsZero() {
		v.WrittenAt = &written
	}
	keys := map[string]topUsage{}
	for k, u := range t.before {
		keys[k] = u
	}
	for k, u := range last.live {
		keys[k] = u
	}
	for k, who := range keys {
		total := t.before[k].usage
		total.Add(last.live[k].usage)
		added := last.live[k].usage
		minus := first.live[k].usage
		added.Add(auth.Usage{Requests: -minus.Requests, Accepted: -minus.Accepted, Filtered: -minus.Filtered, Invalid: -minus.Invalid,
			Unavailable: -minus.Unavailable, Refused: -minus.Refused, Bytes: -minus.Bytes})
		l := topLine{Org: who.org, Total: usageTotals{total.Requests, total.Accepted, total.Filtered, total.Invalid, total.Unavailable, total.Refused, total.Bytes},
			added: t.of(added), all: t.of(total)}
		l.Subject.Kind, l.Subject.ID, l.Subject.Label = who.who.Kind, who.who.ID, who.who.Label
		if s := v.WindowSeconds; s > 0 {
			per := func(n int64) float64 { return float64(n) / s }
			l.Rate = topRates{per(added.Requests), per(added.Accepted), per(added.Filtered), per(added.Invalid), per(added.Unavailable), per(added.Refused), per(added.Bytes)}
		}
		v.Items = append(v.Items, l)
	}
	slices.SortFunc(v.Items, func(a, b topLine) int {
		return cmp.Or(cmp.Compare(b.added, a.added), cmp.Compare(b.all, a.all), strings.Compare(a.Org, b.Org), strings.Compare(a.Subject.Label, b.Subject.Label))
	})
	if len(v.Items) > t.rows {
		v.More = len(v.Items) - t.rows
		v.Items = v.Items[:t.rows]
	}
	return v, nil
}

func (t *top) print(ctx context.Context) error {
	v, err := t.view(ctx)
	if err != nil {
		return err
	}
	if t.asJSON {
		return json.NewEncoder(t.out).Encode(v)
	}
	var s strings.Builder
	if t.terminal && !t.once {
		s.WriteString("\x1b[H\x1b[J")
	}
	wrote := "no edge has written yet"
	if v.WrittenAt != nil {
		wrote = "an edge last wrote " + ago(v.At.Sub(*v.WrittenAt))
	}
	fmt.Fprintf(&s, "%s  %d edges, %s  rates over %.0f s, totals since %s  by %s\n\n", when(&v.At), v.Edges, wrote, v.WindowSeconds, when(&v.Since), t.sort)
	tw := tabwriter.NewWriter(&s, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "SENT/S\tFILTERED/S\tREFUSED/S\tBYTES/S\tSENT\tFILTERED\tINVALID\tUNAVAILABLE\tREFUSED\tBYTES\t  ACCOUNT")
	for _, l := range v.Items {
		who := strings.TrimPrefix(l.Subject.Label, "service: ")
		if t.org == "" {
			who += "  [" + l.Org + "]"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t  %s\n", rate(l.Rate.Sent), rate(l.Rate.Filtered), rate(l.Rate.Refused), byteCount(l.Rate.Bytes),
			l.Total.Sent, l.Total.Filtered, l.Total.Invalid, l.Total.Unavailable, l.Total.Refused, byteCount(float64(l.Total.Bytes)), who)
	}
	_ = tw.Flush() // a strings.Builder takes everything
	if len(v.Items) == 0 {
		fmt.Fprintf(&s, "Nobody has sent anything since %s.\n", when(&v.Since))
	}
	if v.More > 0 {
		fmt.Fprintf(&s, "and %d more: see --rows\n", v.More)
	}
	if !t.terminal && !t.once {
		s.WriteString("\n")
	}
	_, err = io.WriteString(t.out, s.String())
	return err
}

func rate(n float64) string {
	if n == 0 || n >= 9.95 {
		return fmt.Sprintf("%.0f", n)
	}
	return fmt.Sprintf("%.1f", n)
}

// ago is how long something is past; clocks of two machines may differ.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return "just now"
	case d < time.Minute:
		return fmt.Sprintf("%.0f s ago", d.Seconds())
	}
	return d.Truncate(time.Second).String() + " ago"
}
