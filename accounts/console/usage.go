package console

import (
	"bytes"
	"context"
	"fmt"
	"html/template"
	"math"
	"strconv"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

const (
	usageDays = 7
	usageBars = 28 // of six hours each
	usageStep = usageDays * 24 * time.Hour / usageBars
	// usageHeight is the drawing's own; the style sheet says how high it is.
	usageHeight = 100
	// latestRefusals is how many refused requests the section shows; their page has them all.
	latestRefusals = 5
)

// A usageView is the card of an account's page that says what its keys were used for, by whom, and what was refused.
type usageView struct {
	Days     int
	Any      bool
	Chart    usageChart
	Facts    []usageFact
	Keys     []usageKey
	Refused  []refusalView
	AllURL   string
	Unfilled bool // no senders yet
}

type usageFact struct{ Label, Value, Note string }

// A usageKey is a key with its last senders.
type usageKey struct {
	Prefix  string
	Active  bool
	Senders []senderView
}

type senderView struct {
	Address, UserAgent, Service string
	First, Last                 whenView
	Requests                    string
}

// A usageChart is drawn on the server, with a table of the same numbers for those who do not see it.
type usageChart struct {
	Title  string
	Width  int
	Height int
	Ticks  []string // of the upright axis, from the top
	Days   []string // of the other
	Bars   []usageBar
}

type usageBar struct {
	X, Width             int
	Sent, Filtered, Lost segment
	Counts               [3]string // sent, filtered, neither
	Label                string
	Any                  bool
}

// usageSection is a Section.
func (c *Console) usageSection(ctx context.Context, admin auth.Admin, a accounts.Account) (template.HTML, error) {
	if !admin.Can(auth.SettingsIntegrationsUpdate) {
		return "", nil
	}
	until := c.now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour) // whole days, today among them
	since := until.Add(-usageDays * 24 * time.Hour)
	use, err := c.store.AccountUsage(ctx, a.Org, a.ID, since, until)
	if err != nil {
		return "", err
	}
	refused, err := c.store.Refusals(ctx, a.Org, accounts.RefusalFilter{Account: a.ID, Limit: latestRefusals})
	if err != nil {
		return "", err
	}
	v := usageView{Days: usageDays, AllURL: withParam(refusalsPath, "account", a.ID)}
	var total auth.Usage
	var bars [usageBars]auth.Usage
	for _, k := range use.Keys {
		total.Add(k.Total)
		for _, b := range k.Buckets {
			if i := int(b.At.Sub(since) / usageStep); i >= 0 && i < usageBars {
				bars[i].Add(b.Usage)
			}
		}
		key := usageKey{Prefix: k.Key.Prefix, Active: k.Key.Active()}
		for _, s := range k.Senders {
			key.Senders = append(key.Senders, c.senderView(s))
		}
		if len(key.Senders) > 0 {
			v.Keys = append(v.Keys, key)
		}
	}
	for _, r := range refused.Items {
		v.Refused = append(v.Refused, c.refusalView(r))
	}
	v.Any = total != (auth.Usage{})
	if v.Any {
		v.Chart = drawUsage(since, bars)
		v.Facts = []usageFact{
			{"Sent", grouped(total.Accepted) + " records", "in " + grouped(total.Requests) + " requests, " + bytesInWords(total.Bytes)},
			{"Filtered", grouped(total.Filtered) + " records", ""},
			{"Invalid", grouped(total.Invalid) + " records", ""},
			{"Told to send again", grouped(total.Unavailable) + " records", ""},
			{"Refused", grouped(total.Refused) + " requests", "over a limit, or with a revoked key"},
		}
	}
	var buf bytes.Buffer
	if err := c.render.pages["usage"].ExecuteTemplate(&buf, "usage", v); err != nil {
		return "", fmt.Errorf("render the usage: %w", err)
	}
	return template.HTML(buf.String()), nil
}

func (c *Console) senderView(s accounts.KeySender) senderView {
	return senderView{s.Address, s.UserAgent, s.Service, c.render.when(s.First), c.render.when(s.Last), grouped(s.Requests)}
}

func drawUsage(since time.Time, bars [usageBars]auth.Usage) usageChart {
	const step, width = 20, 16
	ch := usageChart{Title: fmt.Sprintf("Records a quarter of a day, last %d days", usageDays), Width: usageBars * step, Height: usageHeight}
	most := int64(1)
	for _, b := range bars {
		most = max(most, b.Accepted+b.Filtered+b.Invalid+b.Unavailable)
	}
	top := niceTop(most)
	for _, share := range []int64{2, 1, 0} {
		ch.Ticks = append(ch.Ticks, shortNumber(float64(top)*float64(share)/2))
	}
	for day := range usageDays {
		ch.Days = append(ch.Days, since.AddDate(0, 0, day).Format("Mon 2"))
	}
	for i, b := range bars {
		at := since.Add(time.Duration(i) * usageStep)
		lost := b.Invalid + b.Unavailable
		bar := usageBar{X: i*step + (step-width)/2, Width: width, Counts: [3]string{grouped(b.Accepted), grouped(b.Filtered), grouped(lost)},
			Label: at.Format("Mon 2 Jan, 15:04") + " to " + at.Add(usageStep).Format("15:04") + " UTC", Any: b.Accepted+b.Filtered+lost > 0}
		y := usageHeight
		for _, part := range []struct {
			n  int64
			at *segment
		}{{b.Accepted, &bar.Sent}, {b.Filtered, &bar.Filtered}, {lost, &bar.Lost}} {
			if part.n == 0 {
				continue
			}
			height := max(2, int(math.Round(float64(part.n)/float64(top)*usageHeight))) // whatever there is shows
			y = max(0, y-height)
			*part.at = segment{Y: y, Height: height}
		}
		ch.Bars = append(ch.Bars, bar)
	}
	return ch
}

// niceTop is the least of 2, 4, 10, 20, 40, 100, … that is not below n, so that half of it is a round number too.
func niceTop(n int64) int64 {
	for unit := int64(1); ; unit *= 10 {
		for _, m := range []int64{2, 4, 10} {
			if m*unit >= n || unit > math.MaxInt64/100 {
				return m * unit
			}
		}
	}
}

// shortNumber writes an axis: 1500 is 1.5 k.
func shortNumber(n float64) string {
	for _, u := range []struct {
		at   float64
		name string
	}{{1e9, " bn"}, {1e6, " m"}, {1e3, " k"}} {
		if n >= u.at {
			return strconv.FormatFloat(n/u.at, 'f', -1, 64) + u.name
		}
	}
	return strconv.FormatFloat(n, 'f', -1, 64)
}

// grouped writes a number with its thousands apart.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func bytesInWords(n int64) string {
	v := float64(n)
	for _, unit := range []string{"bytes", "kB", "MB", "GB"} {
		if v < 1000 {
			if unit == "bytes" {
				return grouped(n) + " bytes"
			}
			return strconv.FormatFloat(v, 'f', 1, 64) + " " + unit
		}
		v /= 1000
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + " TB"
}
