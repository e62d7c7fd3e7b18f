package console

import (
	"context"
	"errors"
	"fmt"
	"time"

	"flowstate.inc/sluice/signals"
)

const (
	chartBars = 28
	chartDays = 7 // while no time is chosen
	// The drawing's own units: a bar is barStep wide with its gap, and barHeight high at most.
	barStep   = 20
	barWidth  = 16
	barHeight = 56
)

// A chart is the number of signals over time, drawn on the server, with a table of the same numbers for those who do not
// see it.
type chart struct {
	Title, From, To string
	Width, Height   int
	Most            int
	Bars            []bar
}

type bar struct {
	X                 int
	Block, Warn, Info segment
	Counts            [3]int // block, warn, info
	Label, URL        string // URL: only this time; "" where there is nothing
}

type segment struct{ Y, Height int }

// chart counts what the filter matches, over its own time or the last week.
func (c *Console) chart(ctx context.Context, org string, s alertState) (*chart, error) {
	f := s.filter()
	now := c.now().UTC()
	if f.Until.IsZero() {
		f.Until = now.Truncate(time.Hour).Add(time.Hour)
	}
	if f.Since.IsZero() || !f.Since.Before(f.Until) {
		f.Since = f.Until.AddDate(0, 0, -chartDays)
	}
	buckets, err := c.signals.Histogram(ctx, org, f, chartBars)
	if errors.Is(err, signals.ErrBadQuestion) {
		return nil, nil // the list answers for the filter; a picture of it is not there
	}
	if err != nil {
		return nil, err
	}
	ch := &chart{From: f.Since.UTC().Format("2 Jan, 15:04"), To: f.Until.UTC().Format("2 Jan, 15:04") + " UTC", Width: chartBars * barStep, Height: barHeight}
	total := 0
	for _, b := range buckets {
		ch.Most = max(ch.Most, b.Info+b.Warn+b.Block)
		total += b.Info + b.Warn + b.Block
	}
	if total == 0 {
		return nil, nil
	}
	ch.Title = fmt.Sprintf("%d signals over time", total)
	if total == 1 {
		ch.Title = "1 signal over time"
	}
	for i, b := range buckets {
		end := f.Until
		if i+1 < len(buckets) {
			end = buckets[i+1].At
		}
		drawn := bar{X: i*barStep + (barStep-barWidth)/2, Counts: [3]int{b.Block, b.Warn, b.Info},
			Label: fmt.Sprintf("%s to %s: %d BLOCK, %d WARN, %d INFO", b.At.UTC().Format("Mon 2 Jan, 15:04"), end.UTC().Format("15:04"), b.Block, b.Warn, b.Info)}
		top := barHeight
		for _, part := range []struct {
			n  int
			at *segment
		}{{b.Block, &drawn.Block}, {b.Warn, &drawn.Warn}, {b.Info, &drawn.Info}} {
			if part.n == 0 {
				continue
			}
			height := max(2, part.n*barHeight/ch.Most) // whatever there is shows
			top = max(0, top-height)
			*part.at = segment{Y: top, Height: height}
		}
		if b.Info+b.Warn+b.Block > 0 {
			drawn.URL = s.with(func(s *alertState) {
				s.SinceText, s.UntilText = b.At.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339)
			}).url()
		}
		ch.Bars = append(ch.Bars, drawn)
	}
	return ch, nil
}
