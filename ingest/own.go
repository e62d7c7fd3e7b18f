package ingest

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// Raise sends a signal that Sluice raises itself about p: decided and badged like any other, and counted apart from the ledger, because nobody
// sent it. It waits for Kafka, or the spool, as a request does.
func (e *Edge) Raise(ctx context.Context, p *auth.Principal, own signals.Own) error {
	return e.raiser.Raise(ctx, p, own)
}

// A Raiser sends the signals that Sluice raises itself; an Edge has one, and a process without an edge may have one alone. Its metric is the same, so a registry
// takes one of either.
type Raiser struct {
	sink    *Sink
	decider *signals.Decider
	topic   string
	own     *prometheus.CounterVec
}

// NewRaiser returns a Raiser that writes to a topic through a sink.
func NewRaiser(sink *Sink, decider *signals.Decider, topic string, reg prometheus.Registerer) *Raiser {
	r := &Raiser{sink: sink, decider: decider, topic: topic, own: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_ingest_own_signals_total",
		Help: "Signals that Sluice raised itself, which no sender is told about, by what became of them.",
	}, []string{"outcome"})}
	reg.MustRegister(r.own)
	for outcome := range signals.Reasons {
		r.own.WithLabelValues(string(outcome)) // from the start: an increase from nothing is not seen
	}
	return r
}

// Raise is Edge.Raise.
func (r *Raiser) Raise(ctx context.Context, p *auth.Principal, own signals.Own) error {
	raised, err := signals.NewRaised(own)
	if err != nil {
		return err
	}
	v := r.decider.Decide(ctx, p, &raised, time.Now())
	if v.Outcome == signals.Accepted {
		var fates [1]fate
		err = r.sink.deliver(ctx, time.Time{}, p.KeyPrefix, []Message{signalMessage(r.topic, v.Event, nil)}, fates[:])
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
	r.own.WithLabelValues(string(v.Outcome)).Inc()
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
