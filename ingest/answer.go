package ingest

import (
	"encoding/json"
	"math/rand/v2"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// A refusal is the reason label of sluice_ingest_requests_total. The list is closed.
type refusal string

const (
	served           refusal = "ok"
	noCredentials    refusal = refusal(auth.NoCredentials)
	malformedKey     refusal = refusal(auth.Malformed)
	ambiguousKey     refusal = "ambiguous_key"
	unknownKey       refusal = refusal(auth.Unknown) // and the other reasons of auth.Refusal
	authAway         refusal = "auth_unavailable"
	rateLimited      refusal = "rate_limited"
	unknownPath      refusal = "path"
	wrongMethod      refusal = "method"
	wrongContentType refusal = "content_type"
	wrongEncoding    refusal = "content_encoding"
	malformedBody    refusal = "malformed_body"
	bodyTooLarge     refusal = "body_too_large"
	headersTooLarge  refusal = "headers_too_large"
	readTimeout      refusal = "timeout"
	bodyCut          refusal = "body_cut" // the client left in the middle of it
	malformedRequest refusal = "malformed_request"
	nothingValid     refusal = "nothing_valid"
	kafkaAway        refusal = "kafka_unavailable"
	spoolFull        refusal = refusal(signals.SpoolFull)
	overloaded       refusal = "overloaded"
	subjectAway      refusal = "subject_lookup_unavailable"
	stopping         refusal = "stopping"
	panicked         refusal = "panic"
)

// A response is one answer of the edge. Its bytes are its own.
type response struct {
	code        int
	reason      refusal
	contentType string
	body        []byte
	detail      string        // of a refusal, for gRPC; the others have it in body
	rpc         int32         // gRPC's code, where it is not the one that goes with code
	retryAfter  int           // seconds; 0: none
	allow       string        // with 405
	challenge   bool          // with 401: WWW-Authenticate
	limit       auth.Decision // of the key; no headers where it has none
}

// later is a jittered Retry-After in whole seconds, so that clients refused together do not come back together.
func later() int { return 1 + rand.IntN(5) }

const (
	typeProtobuf = "application/x-protobuf"
	typeJSON     = "application/json"
	typeProblem  = "application/problem+json"
)

// A problem is RFC 9457's.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

var titles = map[int]string{
	400: "Bad request", 401: "Unauthorized", 404: "Not found", 405: "Method not allowed", 408: "Request timeout", 413: "Content too large",
	415: "Unsupported media type", 429: "Too many requests", 431: "Request header fields too large", 500: "Internal error",
	503: "Service unavailable",
}

func problemBody(code int, detail string, id requestID) []byte {
	b, err := json.Marshal(problem{Type: "about:blank", Title: titles[code], Status: code, Detail: detail, RequestID: id.String()})
	if err != nil {
		panic("BUG: problem does not marshal: " + err.Error())
	}
	return b
}

// A requestID finds one request in the log: the sender's own, where it sent one that can be used, else 16 hex digits, unique enough for a day.
type requestID struct {
	text [auth.MaxRequestID]byte
	n    uint8
}

func (id *requestID) String() string { return string(id.bytes()) }

// bytes is the id in its own memory.
func (id *requestID) bytes() []byte { return id.text[:id.n] }

func newRequestID() requestID {
	const digits = "0123456789abcdef"
	id := requestID{n: 16}
	n := rand.Uint64()
	for i := range id.bytes() {
		id.text[i] = digits[n&15]
		n >>= 4
	}
	return id
}

// requestIDOf takes what a sender calls its request, where that can be used. It copies it.
func requestIDOf(sent []byte) requestID {
	if len(sent) == 0 || !auth.UsableRequestID(string(sent)) {
		return newRequestID()
	}
	var id requestID
	id.n = uint8(copy(id.text[:], sent))
	return id
}
