package scope

import (
	"context"
	"encoding/json"
	"time"

	"flowstate.inc/sluice/signals"
)

// A Presence is a process that judges telemetry, as it last said of itself: whoever shows what is judged is often another process, with other settings or none.
type Presence struct {
	ID            string
	Since, SeenAt time.Time
	Away          bool // its judge does not answer
	Settings
}

// Settings are what a process judges by.
type Settings struct {
	Model  string `json:"model"` // "" while it is not known
	Shares Shares `json:"shares"`
	All    Budget `json:"all"` // of a day, in all
	Each   Budget `json:"each"`
}

// Shares say how much of the prompts of an account is judged, 0 to 1.
type Shares struct {
	Default float64            `json:"default"`
	By      map[string]float64 `json:"by,omitempty"` // of single accounts, by NAME/ENVIRONMENT
}

// Of is the share of an account.
func (s Shares) Of(name, environment string) float64 {
	if n, ok := s.By[name+"/"+environment]; ok {
		return n
	}
	return s.Default
}

const (
	beatEvery = 5 * time.Second
	// presentFor is how long after its last word a process is taken to judge. Past it nobody knows, until a day is over.
	presentFor   = time.Minute
	presentKnown = 24 * time.Hour
)

// Live says whether the process was heard of so lately, as of now, that it is there.
func (p *Presence) Live(now time.Time) bool { return now.Sub(p.SeenAt) < presentFor }

// Present writes what a process says of itself.
func (s *Store) Present(ctx context.Context, p *Presence) error {
	settings, err := json.Marshal(p.Settings)
	if err != nil {
		return wrap("say who judges", err)
	}
	away := 0
	if p.Away {
		away = 1
	}
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err = s.w.ExecContext(ctx, `INSERT INTO scope_judges (id, since, seen_at, away, settings) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, away = excluded.away, settings = excluded.settings`,
		p.ID, p.Since.UnixMilli(), p.SeenAt.UnixMilli(), away, string(settings))
	return wrap("say who judges", err)
}

// Leave removes a process that judges no more.
func (s *Store) Leave(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	_, err := s.w.ExecContext(ctx, `DELETE FROM scope_judges WHERE id = $1`, id)
	return wrap("say who judges", err)
}

// Judges lists the processes that judge, or may: those that were heard of within a day and did not say that they stopped, the latest first.
func (s *Store) Judges(ctx context.Context) ([]Presence, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT id, since, seen_at, away, settings FROM scope_judges WHERE seen_at > $1 ORDER BY seen_at DESC, id`,
		s.now().Add(-presentKnown).UnixMilli())
	if err != nil {
		return nil, wrap("read who judges", err)
	}
	defer rows.Close()
	var out []Presence
	for rows.Next() {
		var p Presence
		var since, seen, away int64
		var settings string
		if err := rows.Scan(&p.ID, &since, &seen, &away, &settings); err != nil {
			return nil, wrap("read who judges", err)
		}
		if err := json.Unmarshal([]byte(settings), &p.Settings); err != nil {
			return nil, wrap("read who judges", err)
		}
		p.Since, p.SeenAt, p.Away = time.UnixMilli(since).UTC(), time.UnixMilli(seen).UTC(), away != 0
		out = append(out, p)
	}
	return out, wrap("read who judges", rows.Err())
}

// present says that this process judges, and returns once that is written: nothing is judged before. It goes on saying so until ctx ends; the function that it
// returns waits for that and says that it is over. nil when ctx ended before.
func (c *Consumer) present(ctx context.Context) func() {
	store := c.cfg.Assessor.cfg.Store
	me := Presence{ID: signals.NewID("scj", c.cfg.Now()), Since: c.cfg.Now()}
	beat := func() error {
		all, each := c.cfg.Assessor.Budgets()
		me.SeenAt, me.Away = c.cfg.Now(), c.cfg.Assessor.Judge().Away()
		me.Settings = Settings{Model: c.cfg.Assessor.Judge().Model(), Shares: c.cfg.Shares, All: all, Each: each}
		return store.Present(ctx, &me)
	}
	if _, alive := c.retry(ctx, "presence", noEnd, beat); !alive {
		return nil
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(beatEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if err := beat(); err != nil && ctx.Err() == nil {
				c.metrics.failures.WithLabelValues("presence").Inc()
				c.cfg.Logger.Warn("it cannot be said that this process judges; pages will not know", "error", err)
			}
		}
	}()
	return func() {
		<-stopped
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCommit)
		defer cancel()
		if err := store.Leave(ctx, me.ID); err != nil {
			c.cfg.Logger.Warn("it cannot be said that this process judges no more", "error", err)
		}
	}
}
