package ingest

import (
	"context"
	"encoding/json"
	"errors"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// A signalsAnswer is the body of 200 and of 400 on /v1/signals (design §9).
type signalsAnswer struct {
	Accepted int            `json:"accepted"`
	Filtered []filteredItem `json:"filtered"`
	Invalid  []invalidItem  `json:"invalid"`
}

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
func (e *Edge) signals(ctx context.Context, r *request, id auth.Identity) response {
	raw, scratch, err := e.bodies.decode(r.contentEncoding, r.body)
	if err != nil {
		f := bodyRefusal(err)
		return e.problem(r, f.code, f.reason, f.detail)
	}
	raised, err := signals.ParseRequest(r.contentType, raw, r.idempotencyKey, signals.Limits{})
	e.bodies.put(scratch)
	if err != nil {
		return e.parseRefusal(r, err)
	}
	b := &batch{}
	answer := signalsAnswer{Filtered: []filteredItem{}, Invalid: []invalidItem{}}
	for i := range raised {
		v := e.cfg.Decider.Decide(ctx, id.Principal, &raised[i], r.received)
		if v.Outcome == signals.Unavailable {
			var t tally
			t.add(kindSignals, signals.Unavailable, v.Reason, len(raised))
			e.ledger.settle(&t)
			return e.laterProblem(r, subjectUnknown(i))
		}
		switch {
		case e.addVerdict(b, &v, i):
			answer.Accepted++
		case v.Outcome == signals.Filtered:
			answer.Filtered = append(answer.Filtered, filteredItem{i, v.Type, v.Reason})
		default:
			answer.Invalid = append(answer.Invalid, invalidItem{i, v.Reason, v.Detail})
		}
	}
	if fail := e.forward(ctx, b, id, r.received); fail != nil {
		return e.laterProblem(r, fail)
	}
	for _, i := range b.tooLarge {
		answer.Accepted--
		answer.Invalid = append(answer.Invalid, invalidItem{i, signals.TooLarge, tooLargeForKafka})
	}
	body, err := json.Marshal(answer)
	if err != nil {
		panic("BUG: answer does not marshal: " + err.Error())
	}
	res := response{code: 200, reason: served, contentType: typeJSON, body: append(body, '\n')}
	if len(raised) > 0 && len(answer.Invalid) == len(raised) {
		res.code, res.reason = 400, nothingValid
	}
	return res
}

func (e *Edge) laterProblem(r *request, f *refused) response {
	res := e.problem(r, f.code, f.reason, f.detail)
	res.retryAfter = f.retryAfter
	return res
}

// parseRefusal answers a body that holds no items at all.
func (e *Edge) parseRefusal(r *request, err error) response {
	switch {
	case errors.Is(err, signals.ErrContentType):
		return e.problem(r, 415, wrongContentType, err.Error())
	case errors.Is(err, signals.ErrTooManyItems):
		return e.problem(r, 413, bodyTooLarge, err.Error())
	default:
		return e.problem(r, 400, malformedBody, err.Error())
	}
}
