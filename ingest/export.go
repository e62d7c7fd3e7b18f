package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"github.com/zeebo/xxh3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/otlp"
	"flowstate.inc/sluice/ingest/spool"
	"flowstate.inc/sluice/signals"
)

// maxSignals is how many signals one OTLP request may hold, as many as POST /v1/signals takes.
const maxSignals = 10_000

// otlp answers one OTLP export, whose body is protobuf by now.
func (e *Edge) otlp(ctx context.Context, r *request, rt route, id auth.Identity, body *buffer, c *charge) response {
	b := e.batch()
	b.request = &r.id
	fail := e.prepare(ctx, b, id, rt, body, r.received, c)
	// What waits for Kafka must hold neither the scratch nor a part of the budget: at saturation that is most of the memory. The messages were charged
	// while they were made; from the next step on the sink counts them, which refuses what is too much at once.
	b.found.reset()
	c.release()
	if fail == nil {
		fail = e.forward(ctx, b, id, r)
	}
	if fail != nil {
		e.done(b)
		return e.refuse(r, rt, *fail)
	}
	enc := otlp.Protobuf
	if !r.grpc {
		enc = encodingOf(r.contentType)
	}
	res := response{code: 200, reason: served, contentType: enc.ContentType()}
	if b.rejected > 0 || b.warned || enc == otlp.JSON { // else it is empty
		r.answer = otlp.AppendExportResponse(r.answer[:0], rt.payload, enc, int64(b.rejected), b.message())
		res.body = r.answer
	}
	e.done(b)
	return res
}

// prepare makes the messages of one decoded protobuf payload, in b. It gives the body back as soon as it is copied; nothing of the batch aliases it.
func (e *Edge) prepare(ctx context.Context, b *batch, id auth.Identity, rt route, body *buffer, received time.Time, c *charge) *refused {
	if err := b.rewriter.Check(rt.payload, body.b); err != nil {
		hint := protobufHint(body.b)
		e.bodies.put(c, body)
		return &refused{code: 400, reason: malformedBody, detail: "The body is not an OTLP export request: " + err.Error() + hint}
	}
	p := id.Principal
	var badgeRoom [512]byte
	badge := appendBadge(badgeRoom[:0], p, received)
	size := b.rewriter.Size(len(badge))
	if err := c.take(size); err != nil { // of the copy with the badges
		e.bodies.put(c, body)
		fail := e.bodyRefusal(err)
		return &fail
	}
	b.payload = e.leases.get(size)
	f := &b.found
	f.begin(e.cfg.Decider, p, c)
	out, result := b.rewriter.Copy(b.payload.value, badge, f.visitor)
	b.payload.value = out
	var sum xxh3.Uint128
	if result.Records > 0 {
		sum = payloadID(p, rt.kind, body.b)
	}
	if body.strange {
		b.warn("body", nothingFound, "none of its members is OTLP's, which has the records in "+placeOf[rt.payload]+" and has us pass over what we do not know. A signal goes to /v1/signals")
	}
	e.bodies.put(c, body)
	request := trace.SpanFromContext(ctx)
	crowded := func(err error) *refused { return e.crowded(id, request, err, rt.kind, result.Records, result.Signals) }
	if f.fault != nil {
		return crowded(f.fault)
	}
	if result.Signals > maxSignals {
		e.noneTaken(id, request, signals.Invalid, signals.TooLarge, rt.kind, result.Records, result.Signals)
		return &refused{code: 413, reason: bodyTooLarge, detail: fmt.Sprintf("The request holds %d signals; %d is the most. Send smaller batches.", result.Signals, maxSignals)}
	}
	if result.Stripped > 0 {
		e.ledger.forged.Add(float64(result.Stripped))
	}
	if result.Records > 0 {
		if err := e.addPayload(b, p, rt, sum, result.Records, c); err != nil {
			return crowded(err)
		}
		if b.payload == nil { // it was split
			c.give(size)
		}
	}
	for i := range f.early {
		e.filter(b, &f.early[i].verdict, f.early[i].n)
	}
	if len(f.raised) == 0 {
		return nil
	}
	ctx, decided := e.deciding(ctx, p)
	defer decided()
	ctx, span := childSpan(ctx, "decide")
	if span != nil {
		span.SetAttributes(attribute.Int("sluice.signals", len(f.raised)))
		defer span.End()
	}
	for i := range f.raised {
		v := e.cfg.Decider.Decide(ctx, p, &f.raised[i], received)
		if v.Outcome == signals.Unavailable {
			e.noneTaken(id, request, v.Outcome, v.Reason, rt.kind, result.Records, result.Signals)
			return subjectUnknown(f.raised[i].Index)
		}
		ok, err := e.addVerdict(b, &v, f.raised[i].Index, c)
		if err != nil {
			return crowded(err)
		}
		if ok && f.raised[i].Warning != "" {
			b.warn(v.Type, unknownAttribute, f.raised[i].Warning)
		}
	}
	return nil
}

// placeOf says where in OTLP/JSON the records are.
var placeOf = map[otlp.Kind]string{
	otlp.Logs:    "resourceLogs[].scopeLogs[].logRecords[]",
	otlp.Spans:   "resourceSpans[].scopeSpans[].spans[]",
	otlp.Metrics: "resourceMetrics[].scopeMetrics[].metrics[], as data points",
}

// neverFitting refuses a request for what it needs at once.
func neverFitting(err *tooMuch) *refused {
	return &refused{code: 413, reason: bodyTooLarge, detail: "The request is too large for this edge: " + err.Error() + ". Send smaller batches."}
}

// crowded refuses a request that was decoded because of the memory that it needs, and settles its records: a kind's, and the signals.
func (e *Edge) crowded(id auth.Identity, request trace.Span, err error, kind string, records, found int) *refused {
	fail := e.bodyRefusal(err)
	outcome, reason := signals.Unavailable, signals.Overloaded
	if fail.reason == bodyTooLarge {
		outcome, reason = signals.Invalid, signals.TooLarge
	}
	e.noneTaken(id, request, outcome, reason, kind, records, found)
	return &fail
}

// noneTaken settles the records of a kind and the signals of a request that is refused although it was decoded.
func (e *Edge) noneTaken(id auth.Identity, request trace.Span, outcome signals.Outcome, reason signals.Reason, kind string, records, found int) {
	var t tally
	t.add(kind, outcome, reason, records)
	t.add(kindSignals, outcome, reason, found)
	e.settle(id, &t, nil, time.Now())
	traceRecords(request, &t)
}

// deciding bounds the look-ups of all subjects that one request names, which only a detector's may: each has its own limit, but a request of
// many must still be answered within 8 s.
func (e *Edge) deciding(ctx context.Context, p *auth.Principal) (context.Context, context.CancelFunc) {
	if p.Kind != auth.KindDetector {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, e.cfg.AuthTimeout)
}

// subjectUnknown refuses a whole request because nobody can say who one of its signals is about.
func subjectUnknown(index int) *refused {
	return &refused{code: 503, reason: subjectAway, retryAfter: later(),
		detail: "Nobody can say who the subject of signal " + strconv.Itoa(index) + " is at the moment. Nothing of the request was taken. Try again later."}
}

// addPayload adds the telemetry payload, split where it is over the broker's limit: then the parts, which are copies, are charged, and b.payload goes.
func (e *Edge) addPayload(b *batch, p *auth.Principal, rt route, sum xxh3.Uint128, records int, charged *charge) error {
	m := b.payload.message(e.topicOf(rt.kind), p, sum, b.request.bytes())
	c := carried{kind: rt.kind, payload: rt.payload, records: records}
	if len(m.Value) <= e.cfg.MaxMessageBytes {
		b.messages = b.payload.one[:0]
		b.add(m, c)
		return nil
	}
	if err := b.split(m, c, e.cfg.MaxMessageBytes, charged); err != nil {
		return err
	}
	b.payload.release()
	b.payload = nil
	return nil
}

// filter counts n signals that had the same filtered verdict.
func (e *Edge) filter(b *batch, v *signals.Verdict, n int) {
	b.reject(kindSignals, v.Type, v.Outcome, v.Reason, v.Detail, n)
	if e.cfg.Drops != nil {
		b.filtered = addTo(b.filtered, v, n)
	}
}

// addVerdict adds a decided signal: its event, which is charged, because the badge makes it many times what was sent, or what became of it instead. It reports
// whether there is an event to forward.
func (e *Edge) addVerdict(b *batch, v *signals.Verdict, index int, c *charge) (bool, error) {
	switch v.Outcome {
	case signals.Accepted:
	case signals.Filtered:
		e.filter(b, v, 1)
		return false, nil
	default:
		what := v.Type
		if what == "" {
			what = "signal"
		}
		b.reject(kindSignals, what, v.Outcome, v.Reason, v.Detail, 1)
		return false, nil
	}
	m := signalMessage(e.cfg.Topics.Signals, v.Event, b.requestID())
	if len(m.Value) > e.cfg.MaxMessageBytes {
		v.Outcome, v.Reason, v.Detail = signals.Invalid, signals.TooLarge, "the event is larger than "+strconv.Itoa(e.cfg.MaxMessageBytes)+" bytes"
		b.reject(kindSignals, v.Type, v.Outcome, v.Reason, v.Detail, 1)
		return false, nil
	}
	if err := c.take(heldBy(&m)); err != nil {
		return false, err
	}
	b.add(m, carried{kind: kindSignals, records: 1, index: index})
	return true, nil
}

// heldBy is about how much memory a message that owns its bytes takes.
func heldBy(m *Message) int {
	return recordSize(m) + cap(m.Value) - len(m.Value) + entryOverhead + len(m.Headers)*int(unsafe.Sizeof(Header{}))
}

// forward waits until every message is durable, settles the ledger and stamps the key. Nothing to forward needs no Kafka.
func (e *Edge) forward(ctx context.Context, b *batch, id auth.Identity, r *request) *refused {
	fail := e.produce(ctx, b, id.KeyPrefix, r)
	if fail != nil {
		outcome, reason := signals.Unavailable, signals.KafkaAway
		switch fail.reason {
		case bodyTooLarge:
			outcome, reason = signals.Invalid, signals.TooLarge
		case overloaded:
			reason = signals.Overloaded
		case stopping:
			reason = signals.Stopping
		case spoolFull:
			reason = signals.SpoolFull
		}
		for _, d := range b.ended {
			b.tally.add(d.kind, outcome, reason, d.records)
		}
		b.tally.refuse(outcome, reason) // also what was filtered or invalid: the sender hears of nothing but "later", or "never"
		e.settle(id, &b.tally, nil, r.received)
		traceRecords(r.span, &b.tally)
		return fail
	}
	for _, d := range b.ended {
		where := signals.InKafka
		if d.fate == inSpool {
			where = signals.InSpool
		}
		b.tally.add(d.kind, signals.Accepted, where, d.records)
	}
	e.settle(id, &b.tally, b.notes, r.received)
	traceRecords(r.span, &b.tally)
	for i := range b.filtered {
		e.cfg.Drops.Count(id.Org, &b.filtered[i].verdict, int64(b.filtered[i].n), r.received)
	}
	if b.tally.total(signals.Accepted)+b.tally.total(signals.Filtered) > 0 {
		id.Touch(r.received)
	}
	return nil
}

// answerWithin is how long after the last byte of a body the wait for Kafka ends at the latest, whatever took the time before: what is left of the
// promised 8 s is the spool's second and slack.
const answerWithin = 6500 * time.Millisecond

// ended is a message whose fate is known.
type ended struct {
	carried
	fate fate
}

// produce makes the messages durable and leaves what became of them in b.ended; with a refusal, as far as that is known. Where the broker's own limit turns
// out to be below ours, a payload is cut in two, by records, until its parts pass or the broker has refused a single record, which is invalid; so is an event.
func (e *Edge) produce(ctx context.Context, b *batch, key string, r *request) *refused {
	if len(b.messages) == 0 {
		return nil
	}
	// The body may have been here, unread, while the key was looked up: nobody can tell, so that time is counted too.
	deadline := time.Now().Add(e.cfg.KafkaTimeout)
	if latest := r.received.Add(answerWithin - r.admitted); latest.Before(deadline) {
		deadline = latest
	}
	for len(b.messages) > 0 {
		b.fates = append(b.fates[:0], make([]fate, len(b.messages))...)
		err := e.cfg.Sink.deliver(ctx, deadline, key, b.messages, b.fates)
		messages, carry := b.messages, b.carried
		b.messages, b.carried = nil, nil
		for i, m := range messages {
			c := carry[i]
			switch {
			case err != nil || b.fates[i] != neverFits && b.fates[i] != neverTaken:
				b.ended = append(b.ended, ended{c, b.fates[i]})
			case c.payload != 0 && c.records > 1:
				b.halve(m, c)
			case b.fates[i] == neverTaken:
				b.refuse(&m, c, signals.Refused, invalidToKafka)
			default:
				b.refuse(&m, c, signals.TooLarge, tooLargeForKafka)
			}
		}
		if err != nil {
			return unavailable(err)
		}
		if len(b.messages) == 0 {
			b.carried = carry[:0] // its memory is of use again
			continue
		}
		b.payload.release() // the halves are copies
		b.payload = nil
	}
	return nil
}

const (
	tooLargeForKafka = "a single record is larger than Kafka takes"
	invalidToKafka   = "refused by Kafka as invalid, now and later"
)

func unavailable(err error) *refused {
	var never *tooMuch
	if errors.As(err, &never) {
		return neverFitting(never)
	}
	f := &refused{code: 503, reason: kafkaAway, retryAfter: later(), detail: "The records could not be made durable in time. Try again later."}
	switch {
	case errors.Is(err, spool.ErrFull):
		f.reason, f.detail = spoolFull, "Kafka is away and the spool of this edge is full. Try again later."
	case errors.Is(err, ErrOverloaded), errors.Is(err, spool.ErrBusy):
		f.reason, f.detail = overloaded, "Too much is in flight. Try again later."
	case errors.Is(err, ErrProducerClosed), errors.Is(err, spool.ErrClosed):
		f.reason, f.detail = stopping, "This edge is stopping. Try again."
	}
	return f
}

func (e *Edge) topicOf(kind string) string {
	switch kind {
	case kindSpans:
		return e.cfg.Topics.Spans
	case kindMetrics:
		return e.cfg.Topics.Metrics
	default:
		return e.cfg.Topics.Logs
	}
}

// appendBadge encodes who sent it, as attributes of a Resource.
func appendBadge(dst []byte, p *auth.Principal, received time.Time) []byte {
	dst = otlp.AppendBadgeString(dst, "flowstate.org", p.Org)
	dst = otlp.AppendBadgeString(dst, "flowstate.subject.kind", string(p.Kind))
	dst = otlp.AppendBadgeString(dst, "flowstate.subject.id", p.ID)
	if p.Kind == auth.KindServiceAccount {
		dst = otlp.AppendBadgeString(dst, "flowstate.service_account.name", p.Name)
		dst = otlp.AppendBadgeString(dst, "flowstate.service_account.environment", p.Environment)
		dst = otlp.AppendBadgeBool(dst, "flowstate.service_account.abuse_detection", p.AbuseDetection)
	}
	dst = otlp.AppendBadgeString(dst, "flowstate.key_prefix", p.KeyPrefix)
	var room [40]byte
	return otlp.AppendBadgeString(dst, "flowstate.received_at", string(appendFixedTime(room[:0], received)))
}

// appendFixedTime appends RFC 3339 in UTC with nine digits of a second, always: where a payload is cut must not depend on when it came.
func appendFixedTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	dst = t.AppendFormat(dst, time.RFC3339) // a layout that package time knows, without parsing it
	dst = append(dst[:len(dst)-1], '.')
	for n, unit := t.Nanosecond(), 100_000_000; unit > 0; unit /= 10 {
		dst = append(dst, '0'+byte(n/unit%10))
	}
	return append(dst, 'Z')
}

// signalMessage is an event as a Kafka message: CloudEvents in binary mode, and Sluice's own headers. requestID is the message's from here on; empty where the
// event comes of no request.
func signalMessage(topic string, ev *signals.Event, requestID []byte) Message {
	events := ev.Headers()
	headers := append(make([]Header, 0, 6+len(events)),
		Header{headerOrg, []byte(ev.Org)},
		Header{headerKind, []byte(ev.Subject.Kind)},
		Header{headerID, []byte(ev.Subject.ID)},
		Header{headerSchema, schemaOne},
		Header{headerMsgID, []byte(ev.ID)},
	)
	if len(requestID) > 0 {
		headers = append(headers, Header{headerRequestID, requestID})
	}
	m := Message{Topic: topic, Key: ev.Key(), Value: ev.AppendJSON(nil), Headers: headers}
	for _, h := range events {
		m.Headers = append(m.Headers, Header(h))
	}
	return m
}

// encodingOf is the encoding that an OTLP request is answered in. Who sent neither of the two is likelier to read JSON.
func encodingOf(contentType []byte) otlp.Encoding {
	if isProtobuf(contentType) {
		return otlp.Protobuf
	}
	return otlp.JSON
}

const (
	grpcUnimplemented = 12
	grpcInternal      = 13
)

// grpcCodes are the codes of google.rpc.Status that go with ours.
var grpcCodes = map[int]int32{
	400: 3,  // INVALID_ARGUMENT
	401: 16, // UNAUTHENTICATED
	404: grpcUnimplemented,
	405: grpcUnimplemented,
	408: 4, // DEADLINE_EXCEEDED
	413: 8, // RESOURCE_EXHAUSTED; without RetryInfo it means: do not retry
	415: 3,
	429: 8,
	431: 3,
	500: grpcInternal,
	503: 14, // UNAVAILABLE
}

func isJSON(contentType []byte) bool     { return foldsTo(mediaType(contentType), typeJSON) }
func isProtobuf(contentType []byte) bool { return foldsTo(mediaType(contentType), typeProtobuf) }

func mediaType(b []byte) []byte {
	b, _, _ = bytes.Cut(b, []byte(";"))
	return bytes.TrimSpace(b)
}

// bodyRefusal says what is wrong with a body that could not be read or decoded.
func (e *Edge) bodyRefusal(err error) refused {
	var timeout interface{ Timeout() bool }
	var junk *malformedJSON
	var stray *otlp.MalformedError
	var broken *brokenBody
	var never *tooMuch
	switch {
	case errors.As(err, &never):
		return *neverFitting(never)
	case errors.Is(err, errTooLarge):
		return refused{code: 413, reason: bodyTooLarge, detail: "The body is too large: the limits are " + strconv.Itoa(e.cfg.MaxRequestBytes) +
			" bytes as sent and " + strconv.Itoa(e.cfg.MaxDecodedBytes) + " after decompression. Send smaller batches."}
	case errors.Is(err, errBudget):
		return refused{code: 503, reason: overloaded, retryAfter: later(), detail: "Too many request bodies are in memory. Nothing of the request was taken: try again later."}
	case errors.Is(err, errEncoding):
		return refused{code: 415, reason: wrongEncoding, detail: "The body must be compressed by gzip or zstd, once, or not at all."}
	case errors.Is(err, errUnnamed):
		return refused{code: 400, rpc: grpcInternal, reason: malformedBody, detail: "The request is malformed: " + err.Error() + "."}
	case errors.As(err, &stray) && stray.Reason == otlp.OtherKind:
		return refused{code: 400, reason: malformedBody, detail: "The body holds " + stray.Holds.String() + ", which go to " + pathOf(stray.Holds) + ". Nothing of it was taken."}
	case errors.As(err, &junk):
		return refused{code: 400, reason: malformedBody, detail: "The body is not an OTLP/JSON export request: " + err.Error() + junk.hint}
	case errors.As(err, &broken):
		if errors.As(err, &timeout) && timeout.Timeout() {
			return refused{code: 408, reason: readTimeout, detail: "The body did not arrive in time."}
		}
		return refused{code: 400, reason: bodyCut, detail: "The body ended before its end, or its framing is broken."}
	default:
		return refused{code: 400, reason: malformedBody, detail: "The body does not decompress: " + err.Error()}
	}
}
