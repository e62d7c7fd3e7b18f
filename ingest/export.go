package ingest

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zeebo/xxh3"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/otlp"
	"flowstate.inc/sluice/ingest/spool"
	"flowstate.inc/sluice/signals"
)

// maxMessageText is how much an answer says about what was filtered and invalid (design §6).
const maxMessageText = 4 << 10

// maxNotes bounds the kinds of what was filtered and invalid that are told apart: a sender chooses the names of types.
const maxNotes = 64

// maxSignals is how many signals one OTLP request may hold, as many as POST /v1/signals takes.
const maxSignals = 10_000

// otlp answers one OTLP export, whose body is protobuf by now.
func (e *Edge) otlp(ctx context.Context, r *request, rt route, id auth.Identity, body *buffer, c *charge) response {
	batch, fail := e.prepare(ctx, id, rt, body.b, r.received, c)
	// What waits for Kafka must hold neither the scratch nor a part of the budget: at saturation that is most of the memory, and the messages
	// are charged to the producer's own.
	e.bodies.put(c, body)
	c.release()
	if fail == nil {
		fail = e.forward(ctx, batch, id, r.received)
	}
	if fail != nil {
		return e.refuse(r, rt, *fail)
	}
	enc := otlp.Protobuf
	if !r.grpc {
		enc = encodingOf(r.contentType)
	}
	return response{code: 200, reason: served, contentType: enc.ContentType(),
		body: otlp.AppendExportResponse(nil, rt.payload, enc, int64(batch.rejected), batch.message())}
}

// A batch is what one request leaves behind: messages that own their bytes, and the outcomes to settle when they are acknowledged.
type batch struct {
	messages []Message
	carried  []carried // what each message carries
	tally    tally
	rejected int      // records filtered or invalid, for partial_success
	notes    noteList // what an answer says about them, at most maxNotes
	unnoted  int      // records beyond those
	filtered []signals.Verdict
	refused  []invalidItem // events that Kafka itself refused for good, by their places in the request
}

// carried is what one message carries.
type carried struct {
	kind    string
	payload otlp.Kind // 0: a signal's event
	records int
	index   int // of a signal in its request
}

// A noteList counts filtered and invalid records by type and reason.
type noteList []note

type note struct {
	what    string // a signal's type, or the kind of a record
	outcome signals.Outcome
	reason  signals.Reason
	detail  string // of the first
	n       int
}

func (b *batch) reject(kind, what string, o signals.Outcome, reason signals.Reason, detail string, n int) {
	b.tally.add(kind, o, reason, n)
	b.rejected += n
	for i := range b.notes {
		if b.notes[i].what == what && b.notes[i].reason == reason {
			b.notes[i].n += n
			return
		}
	}
	if len(b.notes) < maxNotes {
		b.notes = append(b.notes, note{what, o, reason, detail, n})
		return
	}
	b.unnoted += n
}

// refuse takes down a message that Kafka itself will never take.
func (b *batch) refuse(c carried, reason signals.Reason, detail string) {
	b.reject(c.kind, c.kind, signals.Invalid, reason, detail, c.records)
	if c.kind == kindSignals {
		b.refused = append(b.refused, invalidItem{c.index, reason, detail})
	}
}

func (b *batch) add(m Message, c carried) {
	b.messages = append(b.messages, m)
	b.carried = append(b.carried, c)
}

// message names type × count × reason, in at most maxMessageText bytes.
func (b *batch) message() string {
	var s strings.Builder
	for i, n := range b.notes {
		part := fmt.Sprintf("%s: %s × %d (%s)", n.outcome, n.what, n.n, n.reason)
		if n.outcome == signals.Invalid && n.detail != "" {
			part += ": " + n.detail
		}
		if s.Len()+len(part) > maxMessageText-64 {
			fmt.Fprintf(&s, "; and %d more kinds", len(b.notes)-i)
			break
		}
		if s.Len() > 0 {
			s.WriteString("; ")
		}
		s.WriteString(part)
	}
	if b.unnoted > 0 {
		fmt.Fprintf(&s, "; and %d more records", b.unnoted)
	}
	return s.String()
}

// prepare makes the messages of one decoded protobuf payload. It borrows raw; nothing of the batch aliases it.
func (e *Edge) prepare(ctx context.Context, id auth.Identity, rt route, raw []byte, received time.Time, c *charge) (*batch, *refused) {
	if err := c.take(len(raw)); err != nil { // for its copy with the badge
		fail := e.bodyRefusal(err)
		return nil, &fail
	}
	b := &batch{}
	var raised []signals.Raised
	var badgeBuf [512]byte
	badge := appendBadge(badgeBuf[:0], id.Principal, received)
	var ordinals signals.Ordinals
	found := 0
	out, result, err := otlp.Rewrite(nil, rt.payload, raw, badge, func(s *otlp.SignalRecord) {
		found++
		if found <= maxSignals {
			raised = append(raised, raisedFrom(s, len(raised), &ordinals))
		}
	})
	if err != nil {
		return nil, &refused{code: 400, reason: malformedBody, detail: "The body is not an OTLP export request: " + err.Error()}
	}
	if found > maxSignals {
		return nil, &refused{code: 413, reason: bodyTooLarge, detail: fmt.Sprintf("The request holds %d signals; %d is the most. Send smaller batches.", found, maxSignals)}
	}
	e.ledger.forged.Add(float64(result.Stripped))
	if result.Records > 0 {
		e.addPayload(b, id.Principal, rt, raw, out, result.Records)
	}
	ctx, decided := e.deciding(ctx, id.Principal)
	defer decided()
	for i := range raised {
		v := e.cfg.Decider.Decide(ctx, id.Principal, &raised[i], received)
		if v.Outcome == signals.Unavailable {
			var t tally
			t.add(rt.kind, signals.Unavailable, v.Reason, result.Records)
			t.add(kindSignals, signals.Unavailable, v.Reason, len(raised))
			e.settle(id, &t)
			return nil, subjectUnknown(i)
		}
		e.addVerdict(b, &v, i)
	}
	return b, nil
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

// addPayload adds a telemetry payload, split where it is over the broker's limit.
func (e *Edge) addPayload(b *batch, p *auth.Principal, rt route, raw, out []byte, records int) {
	m := e.message(e.topicOf(rt.kind), p, out, payloadID(p, rt.kind, raw))
	c := carried{kind: rt.kind, payload: rt.payload, records: records}
	if len(out) <= e.cfg.MaxMessageBytes {
		b.add(m, c)
		return
	}
	b.split(m, c, e.cfg.MaxMessageBytes)
}

// split adds the parts of a payload that is over max bytes. A number keeps the parts' ids apart, and equal on a client's retry.
func (b *batch) split(m Message, c carried, max int) {
	part := 0
	over, err := otlp.SplitTo(m.Value, c.payload, max, func(piece []byte, n int) error {
		headers := slices.Clone(m.Headers)
		last := &headers[len(headers)-1]
		*last = Header{last.Key, []byte(string(last.Value) + "-" + strconv.Itoa(part))}
		b.add(Message{Topic: m.Topic, Key: m.Key, Value: piece, Headers: headers}, carried{kind: c.kind, payload: c.payload, records: n})
		part++
		return nil
	})
	if err != nil {
		panic("BUG: a payload that was rewritten does not split: " + err.Error())
	}
	if over.Records > 0 {
		b.reject(c.kind, c.kind, signals.Invalid, signals.TooLarge, over.String(), over.Records)
	}
}

// addVerdict adds a decided signal: its event, or what became of it instead. It reports whether there is an event to forward.
func (e *Edge) addVerdict(b *batch, v *signals.Verdict, index int) bool {
	if v.Outcome != signals.Accepted {
		what := v.Type
		if what == "" {
			what = "signal"
		}
		b.reject(kindSignals, what, v.Outcome, v.Reason, v.Detail, 1)
		if v.Outcome == signals.Filtered && e.cfg.Drops != nil {
			b.filtered = append(b.filtered, *v)
		}
		return false
	}
	m := signalMessage(e.cfg.Topics.Signals, v.Event)
	if len(m.Value) > e.cfg.MaxMessageBytes {
		v.Outcome, v.Reason, v.Detail = signals.Invalid, signals.TooLarge, "the event is larger than "+strconv.Itoa(e.cfg.MaxMessageBytes)+" bytes"
		b.reject(kindSignals, v.Type, v.Outcome, v.Reason, v.Detail, 1)
		return false
	}
	b.add(m, carried{kind: kindSignals, records: 1, index: index})
	return true
}

// forward waits until every message is durable, settles the ledger and stamps the key. Nothing to forward needs no Kafka.
func (e *Edge) forward(ctx context.Context, b *batch, id auth.Identity, received time.Time) *refused {
	done, fail := e.produce(ctx, b, id.KeyPrefix, received)
	if fail != nil {
		reason := signals.KafkaAway
		switch fail.reason {
		case overloaded:
			reason = signals.Overloaded
		case stopping:
			reason = signals.Stopping
		case spoolFull:
			reason = signals.SpoolFull
		}
		for _, d := range done {
			b.tally.add(d.kind, signals.Unavailable, reason, d.records)
		}
		b.tally.unavailable(reason) // also what was filtered or invalid: the sender hears of nothing but "later"
		e.settle(id, &b.tally)
		return fail
	}
	for _, d := range done {
		where := signals.InKafka
		if d.fate == inSpool {
			where = signals.InSpool
		}
		b.tally.add(d.kind, signals.Accepted, where, d.records)
	}
	e.settle(id, &b.tally)
	for i := range b.filtered {
		e.cfg.Drops.Count(id.Org, &b.filtered[i], received)
	}
	if b.tally.total(signals.Accepted)+b.tally.total(signals.Filtered) > 0 {
		id.Touch(received)
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

// produce makes the messages durable and returns what they carried; with a refusal, whatever became of it. Where the broker's own limit turns
// out to be below ours, a payload is halved until its parts pass or a single record stands alone, which is invalid; so is an event.
func (e *Edge) produce(ctx context.Context, b *batch, key string, received time.Time) ([]ended, *refused) {
	deadline := time.Now().Add(e.cfg.KafkaTimeout)
	if latest := received.Add(answerWithin); latest.Before(deadline) {
		deadline = latest
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	var done []ended
	for len(b.messages) > 0 {
		fates, err := e.cfg.Sink.deliver(ctx, key, b.messages)
		messages, carry := b.messages, b.carried
		b.messages, b.carried = nil, nil
		for i, m := range messages {
			c := carry[i]
			switch {
			case err != nil || fates[i] != neverFits && fates[i] != neverTaken:
				done = append(done, ended{c, fates[i]})
			case c.payload != 0 && c.records > 1:
				b.split(m, c, len(m.Value)/2)
			case fates[i] == neverTaken:
				b.refuse(c, signals.Refused, invalidToKafka)
			default:
				b.refuse(c, signals.TooLarge, tooLargeForKafka)
			}
		}
		if err != nil {
			return done, unavailable(err)
		}
	}
	return done, nil
}

const (
	tooLargeForKafka = "a single record is larger than Kafka takes"
	invalidToKafka   = "Kafka refuses it as invalid, and would again"
)

func unavailable(err error) *refused {
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

// message makes a telemetry message. Its id is set before the first attempt and stays on retries and replays.
func (e *Edge) message(topic string, p *auth.Principal, value []byte, id string) Message {
	return Message{Topic: topic, Key: []byte(p.Org + "/" + string(p.Kind) + "/" + p.ID), Value: value, Headers: []Header{
		{"flowstate-org", []byte(p.Org)},
		{"flowstate-subject-kind", []byte(p.Kind)},
		{"flowstate-subject-id", []byte(p.ID)},
		{"flowstate-schema", []byte("1")},
		{"flowstate-msg-id", []byte(id)},
	}}
}

// payloadID is a hash of who sent which bytes, so that a client's retry of the same request has the same ids.
func payloadID(p *auth.Principal, kind string, raw []byte) string {
	h := xxh3.New()
	for _, s := range []string{p.Org, string(p.Kind), p.ID, kind} {
		h.WriteString(s)
		h.Write([]byte{0})
	}
	h.Write(raw)
	sum := h.Sum128().Bytes()
	return "msg_" + hex.EncodeToString(sum[:])
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
	return otlp.AppendBadgeString(dst, "flowstate.received_at", received.UTC().Format(time.RFC3339Nano))
}

// raisedFrom copies what it needs: s lives for the call only.
func raisedFrom(s *otlp.SignalRecord, index int, ordinals *signals.Ordinals) signals.Raised {
	attrs := make([]signals.Attribute, len(s.Attributes))
	for i, a := range s.Attributes {
		attrs[i] = signals.Attribute(a)
	}
	return signals.FromLogRecord(attrs, s.TimeUnixNano, s.ObservedTimeUnixNano, s.Raw, index, ordinals, signals.Limits{})
}

// signalMessage is an event as a Kafka message: CloudEvents in binary mode, and Sluice's own headers.
func signalMessage(topic string, ev *signals.Event) Message {
	m := Message{Topic: topic, Key: ev.Key(), Value: ev.AppendJSON(nil), Headers: []Header{
		{"flowstate-org", []byte(ev.Org)},
		{"flowstate-subject-kind", []byte(ev.Subject.Kind)},
		{"flowstate-subject-id", []byte(ev.Subject.ID)},
		{"flowstate-schema", []byte("1")},
		{"flowstate-msg-id", []byte(ev.ID)},
	}}
	for _, h := range ev.Headers() {
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

const grpcUnimplemented = 12

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
	500: 13, // INTERNAL
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
	var broken *brokenBody
	switch {
	case errors.Is(err, errTooLarge):
		return refused{code: 413, reason: bodyTooLarge, detail: "The body is too large: the limits are " + strconv.Itoa(e.cfg.MaxRequestBytes) +
			" bytes as sent and " + strconv.Itoa(e.cfg.MaxDecodedBytes) + " after decompression. Send smaller batches."}
	case errors.Is(err, errBudget):
		return refused{code: 503, reason: overloaded, retryAfter: later(), detail: "Too many request bodies are in memory. Nothing of the request was taken: try again later."}
	case errors.Is(err, errEncoding):
		return refused{code: 415, reason: wrongEncoding, detail: "The body must be compressed by gzip or zstd, once, or not at all."}
	case errors.As(err, &junk):
		return refused{code: 400, reason: malformedBody, detail: "The body is not an OTLP/JSON export request: " + err.Error()}
	case errors.As(err, &broken):
		if errors.As(err, &timeout) && timeout.Timeout() {
			return refused{code: 408, reason: readTimeout, detail: "The body did not arrive in time."}
		}
		return refused{code: 400, reason: bodyCut, detail: "The body ended before its end, or its framing is broken."}
	default:
		return refused{code: 400, reason: malformedBody, detail: "The body does not decompress: " + err.Error()}
	}
}
