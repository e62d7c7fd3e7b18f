package signals

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// RetentionConfig says how long alerts are kept.
type RetentionConfig struct {
	Store      *Store
	Keep       time.Duration // alerts received longer ago go, open ones included; 0: all are kept
	Every      time.Duration // default 10 min
	Batch      int           // rows in one statement; default 1,000
	Registerer prometheus.Registerer
	Logger     *slog.Logger
}

// Retain removes what is too old until ctx ends, and returns ctx's error. Several processes may do so at once. A failure is
// logged, counted, and tried again at the next turn. Each turn also recounts the hours of the last day, and of one day before
// it, turn by turn further back, so that the charts become true again after an upgrade, however large the table is.
func Retain(ctx context.Context, cfg RetentionConfig) error {
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Minute
	}
	if cfg.Batch == 0 {
		cfg.Batch = 1_000
	}
	removed := newCounter(cfg.Registerer, prometheus.CounterOpts{Name: "sluice_alerts_expired_total", Help: "Alerts that retention removed."})
	failed := newCounter(cfg.Registerer, prometheus.CounterOpts{Name: "sluice_alerts_retention_failures_total", Help: "Turns of retention that failed and come again."})
	t := time.NewTicker(cfg.Every)
	defer t.Stop()
	for back := 1; ; back++ {
		if cfg.Keep > 0 {
			n, err := cfg.Store.Prune(ctx, cfg.Store.now().Add(-cfg.Keep), cfg.Batch)
			removed.Add(float64(n))
			if err != nil && ctx.Err() == nil {
				failed.Inc()
				cfg.Logger.Warn("old alerts cannot be removed", "error", err, "removed", n)
			} else if n > 0 {
				cfg.Logger.Info("old alerts removed", "removed", n)
			}
		}
		if back > recountDays {
			back = 1
		}
		if n, err := recount(ctx, cfg.Store, back); err != nil && ctx.Err() == nil {
			cfg.Logger.Warn("alerts cannot be counted anew by the hour", "error", err)
		} else if n > 0 {
			cfg.Logger.Info("counts of alerts by the hour were set right", "rows", n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// recountDays is how far back a recount goes: as far as the charts of a quarter.
const recountDays = 92

// recount sets right the hours to come and of the last day, and those of the day that ended so many days ago.
func recount(ctx context.Context, s *Store, back int) (int, error) {
	const day = 24 * time.Hour
	now := s.now().Truncate(time.Hour)
	recent, err := s.RecountHours(ctx, now.Add(-day), now.Add(day))
	if err != nil {
		return recent, err
	}
	older, err := s.RecountHours(ctx, now.Add(-time.Duration(back+1)*day), now.Add(-time.Duration(back)*day))
	return recent + older, err
}
