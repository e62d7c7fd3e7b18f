// Package ingest is the edge: it takes a request from the socket to the sink.
//
// One goroutine does it all: the listener's worker authenticates, decodes, filters, splices the badge and waits for the
// acknowledgement. A 2xx means that every record of the request is acknowledged by all in-sync replicas of Kafka, or fsynced in the spool, or
// named in the answer as filtered or invalid; nothing else gets a 2xx. Every record decoded from an authenticated request ends in exactly one outcome
// of signals.Reasons, and sluice_ingest_records_received_total equals the sum of sluice_ingest_records_total.
//
// What Kafka does not take within 4 s a [Sink] keeps in the spool, where there is one, within another; a [Drain] sends it later, in order per
// key and marked flowstate-replayed: 1, under the same flowstate-msg-id.
//
// How it fails: "later" is 503 with a jittered Retry-After (Kafka away and no spool or a full one, too much in flight, nobody can say whose key it is), "never" is a
// 4xx that says what to do. A 500 is a bug of ours. OTLP errors come in the request's own encoding, the others as RFC 9457. No answer, log
// line or label holds a key or what was sent.
//
// server.go alone sees fasthttp: the bytes it hands down are borrowed and end with the call.
package ingest
