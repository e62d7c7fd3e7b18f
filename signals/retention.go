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
// logged, counted, and tried again at the next turn.
func Retain(ctx context.Context, cfg RetentionConfig) error {
	if cfg.Every == 0 {
		cfg.Every = 10 * time.Minute
	}
	if cfg.Batch == 0 {
		cfg.Batch = 1_000
	}
	removed := newCounter(cfg.Registerer, prometheus.CounterOpts{Name: "sluice_alerts_expired_total", Help: "Alerts that retention removed."})
	failed := newCounter(cfg.Registerer, prometheus.CounterOpts{Name: "sluice_alerts_retention_failures_total", Help: "Turns of retention that failed and come again."})
	if cfg.Keep <= 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	t := time.NewTicker(cfg.Every)
	defer t.Stop()
	for {
		n, err := cfg.Store.Prune(ctx, cfg.Store.now().Add(-cfg.Keep), cfg.Batch)
		removed.Add(float64(n))
		if err != nil && ctx.Err() == nil {
			failed.Inc()
			cfg.Logger.Warn("old alerts cannot be removed", "error", err, "removed", n)
		} else if n > 0 {
			cfg.Logger.Info("old alerts removed", "removed", n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}
