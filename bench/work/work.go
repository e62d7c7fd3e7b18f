// Package work makes the requests that the benchmarks send: what a coding agent tells about itself, as OTLP log records.
//
// The bytes are the same for every server and every run: all of it is drawn from a seed. One record in ten (or what share is asked for) is a signal that
// makes sense for a person only, so that the server has to find it and leave it out.
package work

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand/v2"
)

// An Encoding is how a request's body is written.
type Encoding string

// The encodings that exporters use.
const (
	Protobuf     Encoding = "pb"
	GzipProtobuf Encoding = "pb.gz"
	GzipJSON     Encoding = "json.gz"
)

// FilteredType is the signal type that is dropped from a machine's telemetry.
const FilteredType = "personal_use_company_account"

// EventName is the event name of a log record that is a signal.
const EventName = "flowstate.signal"

// A Shape says what the requests of one work are like.
type Shape struct {
	Encoding Encoding
	Records  int     // in a request
	Signals  float64 // share of the records that are signals
	Pad      int     // bytes added to each record
	Type     string  // of the signals; "": FilteredType
}

// Name is a short name such as pb.gz-20.
func (s Shape) Name() string { return fmt.Sprintf("%s-%d", s.Encoding, s.Records) }

// ContentType is the header of that name.
func (s Shape) ContentType() string {
	if s.Encoding == GzipJSON {
		return "application/json"
	}
	return "application/x-protobuf"
}

// Gzipped says whether the Content-Encoding is gzip.
func (s Shape) Gzipped() bool { return s.Encoding != Protobuf }

func (s Shape) signalType() string {
	if s.Type == "" {
		return FilteredType
	}
	return s.Type
}

// A Body is one request's body.
type Body struct {
	Bytes    []byte // as sent
	Raw      int    // bytes before compression
	Records  int
	Filtered int // of them, what the server leaves out
}

// Make draws n bodies.
func Make(s Shape, n int, seed uint64) ([]Body, error) {
	rng := rand.New(rand.NewPCG(seed, 0x51_0ce))
	bodies := make([]Body, n)
	made := 0
	for i := range bodies {
		b := &bodies[i]
		session := newSession(rng)
		records := make([]record, s.Records)
		for j := range records {
			signal := int(float64(made+1)*s.Signals+1e-9) > int(float64(made)*s.Signals+1e-9)
			made++
			records[j] = session.record(rng, signal, s)
			if signal && s.signalType() == FilteredType {
				b.Filtered++
			}
		}
		var raw []byte
		if s.Encoding == GzipJSON {
			raw = appendJSON(nil, session.resource, records)
		} else {
			raw = appendProtobuf(nil, session.resource, records)
		}
		b.Records, b.Raw, b.Bytes = s.Records, len(raw), raw
		if s.Gzipped() {
			var zipped bytes.Buffer
			w := gzip.NewWriter(&zipped)
			if _, err := w.Write(raw); err != nil {
				return nil, err
			}
			if err := w.Close(); err != nil {
				return nil, err
			}
			b.Bytes = zipped.Bytes()
		}
	}
	return bodies, nil
}

// An attr is a string, an integer or a float.
type attr struct {
	key   string
	value any
}

type record struct {
	time  uint64
	body  string
	trace [16]byte
	span  [8]byte
	attrs []attr
}

// A session is one run of an agent. What is the same for all its records compresses well, as it does in life.
type session struct {
	resource []attr
	fixed    []attr
	time     uint64
	trace    [16]byte
	prompt   string // several requests to the model belong to one prompt
	left     int    // of the prompt's records
}

func hexOf(rng *rand.Rand, n int) string {
	const digits = "0123456789abcdef"
	b := make([]byte, n)
	for i := range b {
		b[i] = digits[rng.IntN(16)]
	}
	return string(b)
}

func uuid(rng *rand.Rand) string {
	return hexOf(rng, 8) + "-" + hexOf(rng, 4) + "-4" + hexOf(rng, 3) + "-9" + hexOf(rng, 3) + "-" + hexOf(rng, 12)
}

func fill(rng *rand.Rand, b []byte) {
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
}

func newSession(rng *rand.Rand) *session {
	s := &session{
		resource: []attr{
			{"service.name", "claude-code"}, {"service.version", "2.1.14"}, {"host.arch", "amd64"}, {"os.type", "linux"},
		},
		fixed: []attr{
			{"session.id", uuid(rng)}, {"user.id", hexOf(rng, 64)}, {"organization.id", uuid(rng)}, {"terminal.type", "non-interactive"},
		},
		time: 1_795_473_613_000_000_000 + rng.Uint64N(1e12),
	}
	fill(rng, s.trace[:])
	return s
}

var models = []string{"claude-opus-4-6", "claude-sonnet-4-6", "claude-haiku-4-5"}
var tools = []string{"Read", "Bash", "Edit", "Grep", "WebFetch"}

func (s *session) record(rng *rand.Rand, signal bool, shape Shape) record {
	s.time += 1_000_000 * (20 + rng.Uint64N(4000))
	if s.left == 0 {
		s.prompt, s.left = uuid(rng), 4+rng.IntN(8)
	}
	s.left--
	r := record{time: s.time, trace: s.trace, body: "claude_code.api_request"}
	fill(rng, r.span[:])
	at := s.time / 1_000_000
	r.attrs = append(r.attrs, s.fixed...)
	r.attrs = append(r.attrs, attr{"event.timestamp", fmt.Sprintf("2026-11-23T22:%02d:%02d.%03dZ", at/60000%60, at/1000%60, at%1000)})
	switch {
	case signal:
		r.body = "signal"
		r.attrs = append(r.attrs, attr{"event.name", EventName}, attr{"signal.type", shape.signalType()}, attr{"signal.severity", "WARN"}, attr{"signal.id", uuid(rng)})
	case rng.IntN(3) == 0:
		r.body = "claude_code.tool_result"
		r.attrs = append(r.attrs, attr{"event.name", "tool_result"}, attr{"tool_name", tools[rng.IntN(len(tools))]}, attr{"success", "true"},
			attr{"tool_result_size_bytes", int64(rng.IntN(60000))})
	default:
		r.attrs = append(r.attrs, attr{"event.name", "api_request"}, attr{"input_tokens", int64(rng.IntN(4000))}, attr{"output_tokens", int64(rng.IntN(1200))},
			attr{"cache_read_tokens", int64(rng.IntN(120000))})
	}
	r.attrs = append(r.attrs,
		attr{"model", models[rng.IntN(len(models))]},
		attr{"cost_usd", float64(rng.IntN(900000)) / 1e7},
		attr{"duration_ms", int64(300 + rng.IntN(9000))},
		attr{"request_id", "req_011CU" + hexOf(rng, 16)},
		attr{"prompt.id", s.prompt},
		attr{"decision", "accept: allowed by rule 14 of the project's settings, no question asked of the user"},
	)
	if shape.Pad > 0 {
		b := make([]byte, shape.Pad)
		for i := range b {
			b[i] = "etaoin shrdlu\n"[rng.IntN(14)]
		}
		r.attrs = append(r.attrs, attr{"output", string(b)})
	}
	return r
}
