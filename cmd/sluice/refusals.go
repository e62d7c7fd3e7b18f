package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/ingest"
)

// keepRefusals writes what the edge refused into the database each second, for the admin API, the console and sluice tail --refused, until ctx
// ends. It is for people to look at: what cannot be written is dropped, the metrics count all of it.
func (p *process) keepRefusals(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failing := false
	for {
		last := false
		select {
		case <-ctx.Done():
			last = true
		case <-tick.C:
		}
		var rows []accounts.Refusal
		for _, r := range p.signalEdge.TakeRefusals() {
			rows = append(rows, accounts.Refusal{At: r.At, Code: r.Code, Reason: r.Reason, Address: r.Address, Prefix: r.Prefix, Path: r.Path,
				UserAgent: r.UserAgent, RequestID: r.RequestID, Count: r.Count})
		}
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		err := p.store.AddRefusals(call, rows)
		cancel()
		if err != nil && !failing {
			p.log.Warn("refused requests cannot be kept for people to see; they are counted", "error", err)
		}
		if len(rows) > 0 {
			failing = err != nil
		}
		if last {
			return
		}
	}
}

// serveRefusals is the ops side's list: the last refused requests of this process, oldest first, whoever they belong to.
func (p *process) serveRefusals(w http.ResponseWriter, _ *http.Request) {
	items := []ingest.Refused{}
	if p.signalEdge != nil {
		items = append(items, p.signalEdge.Refusals()...)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(map[string]any{"items": items}) // the client has gone; nobody is left to tell
}

// A refusedView is how sluice tail --refused was asked.
type refusedView struct {
	fromStart, asJSON, once bool
	count                   int // stop after so many; 0: never
	last                    int // how many of those before now are shown
}

// limit is how many of the refusals before now are shown.
func (v refusedView) limit() int {
	if v.fromStart {
		return 10_000
	}
	return max(v.last, v.count)
}

// A refusalSource returns refused requests since a time, oldest first, at most limit of the latest.
type refusalSource func(ctx context.Context, since time.Time, limit int) ([]refusalLine, error)

// A refusalLine is one line of sluice tail --refused.
type refusalLine struct {
	id  string
	Org string `json:"org,omitempty"`
	ingest.Refused
}

// refusedByOps asks the ops port of one process, which needs no database and knows of strangers too.
func refusedByOps(ops string) refusalSource {
	client := &http.Client{Timeout: 10 * time.Second}
	return func(ctx context.Context, since time.Time, limit int) ([]refusalLine, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, ops+"/refusals", nil)
		if err != nil {
			return nil, err
		}
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s/refusals: %s", ops, res.Status)
		}
		var page struct{ Items []ingest.Refused }
		if err := json.NewDecoder(res.Body).Decode(&page); err != nil {
			return nil, fmt.Errorf("%s/refusals: %w", ops, err)
		}
		var out []refusalLine
		for _, r := range page.Items {
			// Not by its request id, which is the sender's to choose; nor by its number alone, which begins anew with the process.
			if !r.At.Before(since) {
				out = append(out, refusalLine{id: r.At.Format(time.RFC3339Nano) + "/" + r.Reason + "/" + strconv.FormatUint(r.Seq, 10), Refused: r})
			}
		}
		return out[max(0, len(out)-limit):], nil
	}
}

// refusedByStore asks the database, where the edges of a fleet write what they refused.
func refusedByStore(store *accounts.Store) refusalSource {
	return func(ctx context.Context, since time.Time, limit int) ([]refusalLine, error) {
		items, err := store.LastRefusals(ctx, since, limit)
		var out []refusalLine
		for _, r := range items {
			out = append(out, refusalLine{r.ID, r.Org, ingest.Refused{At: r.At, Code: r.Code, Reason: r.Reason, Address: r.Address, Prefix: r.Prefix,
				Path: r.Path, UserAgent: r.UserAgent, RequestID: r.RequestID, Count: r.Count}})
		}
		return out, err
	}
}

// tailRefused is sluice tail --refused.
func (c *config) tailRefused(cmd *cobra.Command, v refusedView) error {
	from := "the fleet on --postgres-url"
	var source refusalSource
	if c.postgresURL != "" {
		writer, reader, err := openPostgres(c.postgresURL)
		if err != nil {
			return err
		}
		defer writer.Close()
		defer reader.Close()
		source = refusedByStore(accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.Postgres}))
	} else {
		run, err := readRunFile(c.dataDir)
		if err != nil {
			return fmt.Errorf("%w; or give --postgres-url", err)
		}
		source, from = refusedByOps(run.Ops), "the edge behind "+run.Ops
	}
	if !v.once {
		fmt.Fprintf(cmd.ErrOrStderr(), "Refused requests of %s, the last %d and those that follow; Ctrl-C ends it. Times are in UTC.\n", from, v.limit())
	}
	return followRefused(cmd.Context(), cmd.OutOrStdout(), source, v)
}

// followRefused prints refused requests until ctx ends or v has enough.
func followRefused(ctx context.Context, out io.Writer, source refusalSource, v refusedView) error {
	// Edges write within a second or two, by clocks of their own: what is new is looked for a little back.
	const overlap = 10 * time.Second
	limit := v.limit()
	var since time.Time
	seen := map[string]time.Time{}
	enc := json.NewEncoder(out)
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for left := v.count; ; {
		lines, err := source(ctx, since, limit)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		limit = 10_000
		for _, l := range lines {
			if _, known := seen[l.id]; known {
				continue
			}
			seen[l.id] = l.At
			if v.asJSON {
				err = enc.Encode(l)
			} else {
				_, err = fmt.Fprintln(out, l.String())
			}
			if err != nil {
				return err
			}
			if left--; v.count > 0 && left == 0 {
				return nil
			}
		}
		if v.once {
			return nil
		}
		if n := len(lines); n > 0 {
			since = lines[n-1].At.Add(-overlap)
		} else if since.IsZero() {
			since = time.Now().Add(-overlap)
		}
		for id, at := range seen {
			if at.Before(since) {
				delete(seen, id)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// String is the line for people.
func (l refusalLine) String() string {
	s := fmt.Sprintf("%s  %d %-18s %-16s  from %-15s %s", when(&l.At), l.Code, l.Reason, cmp.Or(l.Prefix, "no key"), cmp.Or(l.Address, "?"), l.Path)
	if l.UserAgent != "" {
		s += "  " + l.UserAgent
	}
	if l.Count > 1 {
		s += fmt.Sprintf("  ×%d", l.Count)
	}
	if l.Org != "" {
		s += "  [" + l.Org + "]"
	}
	return s + "  request " + l.RequestID
}
