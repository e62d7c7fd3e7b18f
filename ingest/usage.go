package ingest

import (
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/otlp"
	"flowstate.inc/sluice/signals"
)

// settle adds a decided tally to the ledger and to the usage of the key, which are so the same numbers.
func (e *Edge) settle(id auth.Identity, t *tally) {
	e.ledger.settle(t)
	id.Use(auth.Usage{
		Accepted: int64(t.total(signals.Accepted)), Filtered: int64(t.total(signals.Filtered)),
		Invalid: int64(t.total(signals.Invalid)), Unavailable: int64(t.total(signals.Unavailable)),
	})
}

// noteSender remembers who uses the key. body is protobuf where the path is OTLP's.
func noteSender(id auth.Identity, r *request, rt route, body []byte) {
	var service []byte
	if rt.payload != 0 {
		service = otlp.ServiceName(body)
	}
	id.NoteSender(r.remote, r.userAgent, service, r.received)
}
