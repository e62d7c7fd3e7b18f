package ingest

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"time"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// Raise sends a signal that Sluice raises itself about p: decided and badged like any other, and counted apart from the ledger, because nobody
// sent it. It waits for Kafka, or the spool, as a request does.
func (e *Edge) Raise(ctx context.Context, p *auth.Principal, own signals.Own) error {
	r, err := signals.NewRaised(own)
	if err != nil {
		return err
	}
	v := e.cfg.Decider.Decide(ctx, p, &r, time.Now())
	if v.Outcome == signals.Accepted {
		var fates []fate
		fates, err = e.cfg.Sink.deliver(ctx, p.KeyPrefix, []Message{e.signalMessage(v.Event)})
		switch {
		case err != nil:
		case fates[0] == neverFits:
			err = errors.New(tooLargeForKafka)
		case fates[0] == neverTaken:
			err = errors.New(invalidToKafka)
		}
		if err != nil {
			v.Outcome = signals.Unavailable
		}
	}
	e.ledger.own.WithLabelValues(string(v.Outcome)).Inc()
	return err
}

// KeyMisuse raises key_misuse_detected on the account of a revoked key that somebody still uses. Edges that see the same misuse within the same
// minute raise the same signal, by its id.
func (e *Edge) KeyMisuse(ctx context.Context, rec auth.Record, remote netip.Addr) error {
	now := time.Now().UTC()
	p := rec.Principal
	p.KeyPrefix = rec.Prefix
	return e.Raise(ctx, &p, signals.Own{
		Type:       signals.KeyMisuseDetected,
		ID:         "key_misuse_" + rec.Prefix + "_" + strconv.FormatInt(now.Unix()/60, 10),
		DetectedAt: now,
		Details:    map[string]any{"address": remote.String(), "key_prefix": rec.Prefix, "revoked_at": rec.RevokedAt.UTC().Format(time.RFC3339)},
	})
}
