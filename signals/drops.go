package signals

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"flowstate.inc/sluice/auth"
)

// maxDropKinds bounds what Drops holds between two flushes, should the store be away; beyond it counts are lost, and logged.
const maxDropKinds = 100_000

// Drops counts what the filter dropped and what was invalid, per subject, and writes the counts once a second, so that an admin sees them beside
// the account's signals. It is a courtesy beside the ledger, not part of it: counts since the last flush die with the process.
type Drops struct {
	add    func(ctx context.Context, drops []Drop) error
	logger *slog.Logger

	mu      sync.Mutex
	pending map[dropKey]Drop // guarded by mu
	lost    int64            // guarded by mu
}

type dropKey struct {
	org, kind, id, typ string
	reason             Reason
	day                int64
}

// NewDrops returns Drops that write with add: Store.AddDrops.
func NewDrops(add func(ctx context.Context, drops []Drop) error, logger *slog.Logger) *Drops {
	return &Drops{add: add, logger: logger, pending: map[dropKey]Drop{}}
}

// Count counts n signals of org that had the same filtered verdict, by the time when they came. Other verdicts are not counted.
func (d *Drops) Count(org string, v *Verdict, n int64, at time.Time) {
	if v.Outcome != Filtered {
		return
	}
	d.merge(Drop{Org: org, SubjectKind: v.About.Kind, SubjectID: v.About.ID, Type: v.Type, Reason: v.Reason, Count: n, LastAt: at})
}

// CountInvalid counts n records of a key's holder that were invalid. Of signals what is the type where the taxonomy has it: a sender chooses names.
func (d *Drops) CountInvalid(p *auth.Principal, what string, reason Reason, n int64, at time.Time) {
	d.merge(Drop{Org: p.Org, SubjectKind: string(p.Kind), SubjectID: p.ID, Type: what, Reason: reason, Count: n, LastAt: at})
}

func (d *Drops) merge(one Drop) {
	k := dropKey{one.Org, one.SubjectKind, one.SubjectID, one.Type, one.Reason, day(one.LastAt)}
	d.mu.Lock()
	defer d.mu.Unlock()
	sum, there := d.pending[k]
	if !there && len(d.pending) >= maxDropKinds {
		d.lost += one.Count
		return
	}
	one.Count += sum.Count
	if sum.LastAt.After(one.LastAt) {
		one.LastAt = sum.LastAt
	}
	d.pending[k] = one
}

// Run writes the counts once a second until ctx ends, and then once more. It returns ctx's error.
func (d *Drops) Run(ctx context.Context) error {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCommit)
			defer cancel()
			d.Flush(last)
			return ctx.Err()
		case <-t.C:
			d.Flush(ctx)
		}
	}
}

// Flush writes what was counted; what the store does not take is kept for the next time.
func (d *Drops) Flush(ctx context.Context) {
	d.mu.Lock()
	pending, lost := d.pending, d.lost
	d.pending, d.lost = map[dropKey]Drop{}, 0
	d.mu.Unlock()
	if lost > 0 {
		d.logger.Error("counts of filtered signals were lost: the store was away for too long", "signals", lost)
	}
	if len(pending) == 0 {
		return
	}
	drops := make([]Drop, 0, len(pending))
	for _, one := range pending {
		drops = append(drops, one)
	}
	sortDrops(drops)
	if err := d.add(ctx, drops); err != nil {
		d.logger.Warn("counts of filtered signals cannot be written; they wait", "error", err, "subjects", len(drops))
		for _, one := range drops {
			d.merge(one)
		}
	}
}
