package console

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"flowstate.inc/sluice/signals"
)

const (
	liveEvery = 500 * time.Millisecond // how often the store is asked what is new, for all viewers of an org together; a page waits as long on top
	liveAgain = 10 * time.Second       // how far each question reaches back: consumers commit out of order
	liveKeep  = 5 * time.Minute        // how long an arrival is told of; who was away longer reloads
	liveMost  = 50_000                 // arrivals told of, so that a flood does not fill the memory
)

// A liveFeed asks the store twice a second what is new, however many pages wait for it.
type liveFeed struct {
	mu   sync.Mutex
	orgs map[string]*orgFeed
}

type orgFeed struct {
	mu      sync.Mutex // held while the store is asked, so that the others wait for its answer instead of asking too
	asked   time.Time
	counted time.Time
	unacked int
	last    time.Time // the latest StoredAt that was seen, by the clock of whoever stored it, which need not be ours
	recent  []arrival
}

// An arrival is an alert with the time at which this process first saw it: pages compare that with the time at which they
// were made, by the same clock.
type arrival struct {
	signals.Arrival
	seen time.Time
}

func newLiveFeed() *liveFeed { return &liveFeed{orgs: map[string]*orgFeed{}} }

func (l *liveFeed) org(name string) *orgFeed {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, ok := l.orgs[name]
	if !ok {
		f = &orgFeed{}
		l.orgs[name] = f
	}
	return f
}

// forget has the next page count anew, after a change made here.
func (l *liveFeed) forget(org string) {
	f := l.org(org)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counted = time.Time{}
}

// unacknowledged counts open alerts of WARN and above, at most half a second late.
func (l *liveFeed) unacknowledged(ctx context.Context, store *signals.Store, org string, now time.Time) (int, error) {
	f := l.org(org)
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.counted) < liveEvery {
		return f.unacked, nil
	}
	n, err := store.Unacknowledged(ctx, org)
	if err != nil {
		return 0, err
	}
	f.unacked, f.counted = n, now
	return n, nil
}

// arrived counts what matches and was first seen after a time.
func (l *liveFeed) arrived(ctx context.Context, store *signals.Store, org string, now, after time.Time, match func(*signals.Arrival) bool) (int, error) {
	f := l.org(org)
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.asked) >= liveEvery {
		if err := f.ask(ctx, store, org, now); err != nil {
			return 0, err
		}
	}
	n := 0
	for i := range f.recent {
		if f.recent[i].seen.After(after) && match(&f.recent[i].Arrival) {
			n++
		}
	}
	return n, nil
}

// catchUp asks at once, for a page that is about to be made: what it lists is then no arrival.
func (l *liveFeed) catchUp(ctx context.Context, store *signals.Store, org string, now time.Time) error {
	f := l.org(org)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ask(ctx, store, org, now)
}

func (f *orgFeed) ask(ctx context.Context, store *signals.Store, org string, now time.Time) error {
	begins := f.asked.IsZero()
	if begins {
		f.last = now.Add(-liveKeep)
	}
	found, err := store.Arrived(ctx, org, f.last.Add(-liveAgain))
	if err != nil {
		return err
	}
	f.asked = now
	known := map[string]bool{}
	for i := range f.recent {
		known[f.recent[i].ID] = true
	}
	for _, a := range found {
		if a.StoredAt.After(f.last) {
			f.last = a.StoredAt
		}
		if known[a.ID] {
			continue
		}
		seen := now
		if begins { // the process has just started; pages that are open knew of these
			seen = a.StoredAt
		}
		f.recent = append(f.recent, arrival{a, seen})
	}
	// What the next question will find again must stay, however old, or it would be taken for new.
	again := f.last.Add(-liveAgain)
	spare := len(f.recent) - liveMost
	f.recent = slices.DeleteFunc(f.recent, func(a arrival) bool {
		spare--
		return (now.Sub(a.seen) > liveKeep || spare >= 0) && a.StoredAt.Before(again)
	})
	return nil
}

// matcher reports whether an alert that has just arrived belongs on a page with this filter. All that arrives is open.
func (s alertState) matcher() func(*signals.Arrival) bool {
	f := s.filter()
	return func(a *signals.Arrival) bool {
		return slices.Contains(f.Severities, a.Severity) &&
			(len(f.Categories) == 0 || slices.Contains(f.Categories, a.Category)) &&
			(len(f.Types) == 0 || slices.Contains(f.Types, a.Type)) &&
			(len(f.Environments) == 0 || slices.Contains(f.Environments, a.Environment)) &&
			(f.Account == "" || f.Account == a.Account) && !a.DetectedAt.Before(f.Since)
	}
}

// alertsNew answers a page that is open: how many signals have arrived that belong on it, and the counter of the menu.
func (c *Console) alertsNew(w http.ResponseWriter, r *http.Request, v *visit) error {
	s := readAlertState(r.URL.Query())
	after, err := time.Parse(time.RFC3339Nano, r.URL.Query().Get("after"))
	if err != nil || s.badValues {
		return &badRequestError{text: "The address lacks the time of the page."}
	}
	now := c.now()
	n, err := c.live.arrived(r.Context(), c.signals, v.admin.Org, now, after, s.matcher())
	if err != nil {
		return err
	}
	unacked, err := c.live.unacknowledged(r.Context(), c.signals, v.admin.Org, now)
	if err != nil {
		return err
	}
	body, err := json.Marshal(struct {
		New            int    `json:"new"`
		Unacknowledged string `json:"unacknowledged"`
	}{n, countWords(unacked)})
	if err != nil {
		return fmt.Errorf("encode what is new: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	send(w, r, http.StatusOK, body)
	return nil
}

// countWords is a counter that stops counting: "999+".
func countWords(n int) string {
	if n >= signals.MaxCounted {
		return strconv.Itoa(signals.MaxCounted-1) + "+"
	}
	return strconv.Itoa(n)
}
