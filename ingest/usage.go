package ingest

import (
	"time"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/otlp"
	"flowstate.inc/sluice/signals"
)

// settle adds a decided tally to the ledger and to the usage of the key, which are so the same numbers, and counts why records were invalid.
func (e *Edge) settle(id auth.Identity, t *tally, notes noteList, received time.Time) {
	e.ledger.settle(t)
	id.Use(auth.Usage{
		Accepted: int64(t.total(signals.Accepted)), Filtered: int64(t.total(signals.Filtered)),
		Invalid: int64(t.total(signals.Invalid)), Unavailable: int64(t.total(signals.Unavailable)),
	})
	e.countInvalid(id.Principal, t, notes, received)
}

// countInvalid counts by reason what a tally has as invalid; of signals by type as far as the notes of the answer have them, which tell only so many kinds apart.
func (e *Edge) countInvalid(p *auth.Principal, t *tally, notes noteList, received time.Time) {
	if e.cfg.Drops == nil {
		return
	}
	for _, c := range t.counts {
		if c.outcome != signals.Invalid {
			continue
		}
		rest := c.n
		for i := range notes {
			n := &notes[i]
			if n.outcome != signals.Invalid || n.kind != c.kind || n.reason != c.reason {
				continue
			}
			rest -= n.n
			what := c.kind
			if tax := e.cfg.Decider.Taxonomy(); c.kind == kindSignals && tax.Known(n.what) {
				what = tax.Resolve(n.what).Type // as we spell it: a sender has many ways
			}
			e.cfg.Drops.CountInvalid(p, what, c.reason, int64(n.n), received)
		}
		if rest > 0 {
			e.cfg.Drops.CountInvalid(p, c.kind, c.reason, int64(rest), received)
		}
	}
}

// noteSender remembers who uses the key. body is protobuf where the path is OTLP's.
func noteSender(id auth.Identity, r *request, rt route, body []byte) {
	var service []byte
	if rt.payload != 0 {
		service = otlp.ServiceName(body)
	}
	id.NoteSender(r.remote, r.userAgent, service, r.received)
}
