package ingest

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"go.opentelemetry.io/otel/attribute"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// A signalsAnswer is the body of 200 and of 400 on /v1/signals (design §9).
type signalsAnswer struct {
	Accepted int            `json:"accepted"`
	Filtered []filteredItem `json:"filtered"`
	Invalid  []invalidItem  `json:"invalid"`
	// The types that were accepted although nobody has declared them, at most maxUnknownTypes: a typing error is kept as category other, and its sender
	// would not know.
	Unknown []string `json:"unknown_types,omitempty"`
}

const maxUnknownTypes = 20

type filteredItem struct {
	Index  int            `json:"index"`
	Type   string         `json:"type"`
	Reason signals.Reason `json:"reason"`
}

type invalidItem struct {
	Index  int            `json:"index"`
	Reason signals.Reason `json:"reason"`
	Error  string         `json:"error"`
}

// signals answers POST /v1/signals: one object, an array, NDJSON or CloudEvents.
func (e *Edge) signals(ctx context.Context, r *request, id auth.Identity, body *buffer, c *charge) response {
	rt := routes["/v1/signals"]
	// What is read out of the body is about as large as the body, and lives until the answer is decided.
	if err := c.take(len(body.b)); err != nil {
		e.bodies.put(c, body)
		return e.refuse(r, rt, e.bodyRefusal(err))
	}
	contentType, content := string(r.contentType), body.b
	var raised []signals.Raised
	var err error
	if r.event != nil {
		contentType, content, err = r.event.Request(contentType, content)
	}
	if err == nil {
		raised, err = signals.ParseRequest(contentType, content, string(r.idempotencyKey), signals.Limits{})
	}
	e.bodies.put(c, body)
	if err != nil {
		return e.refuse(r, rt, parseRefusal(err))
	}
	b := e.batch()
	b.request = &r.id
	answer := signalsAnswer{Filtered: []filteredItem{}, Invalid: []invalidItem{}}
	deciding, decided := e.deciding(ctx, id.Principal)
	defer decided()
	deciding, span := childSpan(deciding, "decide")
	if span != nil {
		span.SetAttributes(attribute.Int("sluice.signals", len(raised)))
		defer span.End() // for the early answer; the first end counts
	}
	for i := range raised {
		v := e.cfg.Decider.Decide(deciding, id.Principal, &raised[i], r.received)
		if v.Outcome == signals.Unavailable {
			e.noneTaken(id, r.span, v.Outcome, v.Reason, kindSignals, len(raised), 0)
			e.done(b)
			return e.refuse(r, rt, *subjectUnknown(i))
		}
		ok, err := e.addVerdict(b, &v, i, c)
		switch {
		case err != nil:
			e.done(b)
			return e.refuse(r, rt, *e.crowded(id, r.span, err, kindSignals, len(raised), 0))
		case ok:
			answer.Accepted++
			if !e.cfg.Decider.Taxonomy().Known(v.Type) && !slices.Contains(answer.Unknown, v.Type) && len(answer.Unknown) < maxUnknownTypes {
				answer.Unknown = append(answer.Unknown, v.Type)
			}
		case v.Outcome == signals.Filtered:
			answer.Filtered = append(answer.Filtered, filteredItem{i, v.Type, v.Reason})
		default:
			answer.Invalid = append(answer.Invalid, invalidItem{i, v.Reason, v.Detail})
		}
	}
	if span != nil {
		span.End()
	}
	c.release() // the sink counts the events from the next step on
	if fail := e.forward(ctx, b, id, r); fail != nil {
		e.done(b)
		return e.refuse(r, rt, *fail)
	}
	answer.Accepted -= len(b.refused)
	answer.Invalid = append(answer.Invalid, b.refused...)
	e.done(b)
	out, err := json.Marshal(answer)
	if err != nil {
		panic("BUG: answer does not marshal: " + err.Error())
	}
	res := response{code: 200, reason: served, contentType: typeJSON, body: append(out, '\n')}
	if len(raised) > 0 && len(answer.Invalid) == len(raised) {
		res.code, res.reason = 400, nothingValid
	}
	return res
}

// parseRefusal answers a body that holds no items at all.
func parseRefusal(err error) refused {
	switch {
	case errors.Is(err, signals.ErrContentType):
		return refused{code: 415, reason: wrongContentType, detail: err.Error()}
	case errors.Is(err, signals.ErrTooManyItems):
		return refused{code: 413, reason: bodyTooLarge, detail: err.Error()}
	default:
		return refused{code: 400, reason: malformedBody, detail: err.Error()}
	}
}
