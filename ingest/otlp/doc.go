// Package otlp reads, stamps and cuts OTLP export requests as bytes on the wire.
//
// It exists so that the edge can say who sent a payload without building a single object of it. One walk validates the
// whole nested body and counts its records; a second, cheap one copies it with the badge (see [AppendBadgeString]) spliced into
// every Resource. Only when the walk met something to take out does a slower copy run: an attribute that a client wrote
// under `flowstate.`, or a log record that is really a signal.
//
// What it promises:
//   - [Rewrite] accepts nothing that the official generated types would refuse, never panics, and recurses no deeper than
//     [MaxDepth]. It refuses more than they do, with a reason, where a lenient reading would let two consumers read two
//     different things: see [Reason].
//   - Every Resource of the output carries the badge exactly once, whether the client sent the field once, twice (protobuf
//     merges the two) or not at all, and no attribute position holds any other `flowstate.` key in any ASCII case.
//   - The output is larger than the body by the badges alone, of which there are [MaxResources] at most.
//   - Unknown fields are kept, byte for byte.
//   - JSON becomes the same protobuf first ([JSONToProto]), so that there is one path and one set of rules.
//
// It fails by returning a [*MalformedError], which is [ErrMalformed] and says where and why. Nothing here logs, waits,
// or keeps a reference to bytes that it was given.
package otlp

import (
	"errors"
	"strconv"
)

// Kind is one of the three OTLP signals that the edge takes. The zero Kind is none of them.
type Kind uint8

// The kinds, named as the `kind` label of the ledger names them.
const (
	Logs Kind = iota + 1
	Spans
	Metrics
)

// String returns "logs", "spans" or "metrics".
func (k Kind) String() string {
	switch k {
	case Logs:
		return "logs"
	case Spans:
		return "spans"
	case Metrics:
		return "metrics"
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

// MaxDepth is how many AnyValues may stand inside one another, the outermost included. Real telemetry uses three or
// four; the bound keeps a hostile body from choosing how much stack the edge needs.
const MaxDepth = 64

// MaxResources is how many Resources a request may hold. A body can name one in two bytes, and each gets the badge: without
// a bound a small request would become a payload hundreds of times its size. The Collector's batches hold 8192 records.
const MaxResources = 1 << 15

// ErrMalformed is what errors.Is finds in every refusal of this package. A client must not send the same bytes again.
var ErrMalformed = errors.New("malformed OTLP")

// Reason says why a body was refused. It is a closed list, fit for a metric's label.
type Reason string

// Refusals that any protobuf or JSON reader would make.
const (
	Truncated    Reason = "truncated"
	BadVarint    Reason = "invalid varint"
	BadNumber    Reason = "invalid field number"
	BadUTF8      Reason = "invalid UTF-8 in a string"
	BadPacked    Reason = "packed field of a wrong length"
	BadWireType  Reason = "invalid wire type"
	BadJSON      Reason = "invalid JSON"
	BadJSONValue Reason = "value does not fit its field"
)

// Refusals of bodies that a generated type may accept. No encoder writes such bodies; each is a way of making two readers
// disagree about one payload, or (ids, groups) one that a consumer of the topic chokes on.
const (
	WrongWireType Reason = "wrong wire type for a known field"
	Group         Reason = "groups are not part of OTLP"
	TooDeep       Reason = "values nested too deeply"
	KeyTwice      Reason = "a KeyValue with more than one key"
	ValueTwice    Reason = "more than one value where one belongs"
	TwoKinds      Reason = "a Metric with more than one kind of data"
	IDLength      Reason = "trace ids have 16 bytes and span ids 8"
	TooMany       Reason = "too many resources in one request"
	MemberTwice   Reason = "a JSON member given twice"
	OtherKind     Reason = "records of another kind than the request's" // an unknown member to a generated type, which loses them
)

// MalformedError is the refusal of a body: which message type was being read, and what was wrong with it. It holds nothing
// of the body itself.
type MalformedError struct {
	In     string // the protobuf message, such as "LogRecord"
	Reason Reason
	Offset int  // of the byte in a JSON body; -1 for protobuf
	Holds  Kind // with OtherKind: what the body holds
}

// Error is fit to be sent back to the client.
func (e *MalformedError) Error() string {
	s := ErrMalformed.Error() + ": " + e.In + ": " + string(e.Reason)
	if e.Offset >= 0 {
		s += " at byte " + strconv.Itoa(e.Offset)
	}
	return s
}

// Is makes every MalformedError an [ErrMalformed].
func (e *MalformedError) Is(target error) bool { return target == ErrMalformed }

func malformed(in string, r Reason) error { return &MalformedError{In: in, Reason: r, Offset: -1} }
