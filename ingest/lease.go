package ingest

import (
	"encoding/hex"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/zeebo/xxh3"

	"flowstate.inc/sluice/auth"
)

// A lease is the memory of one telemetry message: its payload, its key, the values of its headers. It goes back to where it came from once nobody may read it
// any more: the request that made the message, and the producer until the last attempt to send it has ended, which may be long after the request.
type lease struct {
	from *sync.Pool // nil: too large to be kept
	held atomic.Int32

	value   []byte
	room    [256]byte // what key and header values are written into, where they fit
	headers [6]Header
	one     [1]Message // a request with one message needs no list of its own
}

// leases are pools of leases by the size of their payloads: powers of two from leastLease to maxPooled. What a message holds is so less than twice what the
// producer counts for it, however large the payload was that the memory was made for.
type leases [11]sync.Pool

const leastLease = 1 << 10

// get returns a lease held once, with room for n bytes of payload.
func (l *leases) get(n int) *lease {
	class := max(bits.Len(uint(max(n, 1)-1))-bits.Len(leastLease-1), 0)
	if class >= len(l) {
		m := &lease{value: make([]byte, 0, n)}
		m.held.Store(1)
		return m
	}
	m, ok := l[class].Get().(*lease)
	if !ok {
		m = &lease{from: &l[class], value: make([]byte, 0, leastLease<<class)}
	}
	m.held.Store(1)
	return m
}

// hold says that one more may read it; nil is allowed, here and below, and is nobody's.
func (l *lease) hold() {
	if l != nil {
		l.held.Add(1)
	}
}

// release says that one of those who hold it reads it no more.
func (l *lease) release() {
	if l == nil || l.held.Add(-1) > 0 {
		return
	}
	l.value = l.value[:0]
	l.headers, l.one = [6]Header{}, [1]Message{}
	if l.from != nil {
		l.from.Put(l)
	}
}

// message makes the payload the message of p to a topic, with an id that is set before the first attempt and stays on retries and replays. requestID is copied.
func (l *lease) message(topic string, p *auth.Principal, id xxh3.Uint128, requestID []byte) Message {
	room := l.room[:0]
	cut := func(from int) []byte { return room[from:len(room):len(room)] }
	room = append(append(append(append(append(room, p.Org...), '/'), p.Kind...), '/'), p.ID...)
	key := cut(0)
	at := len(room)
	room = append(room, requestID...)
	request := cut(at)
	at = len(room)
	room = append(room, msgPrefix...)
	sum := id.Bytes()
	room = hex.AppendEncode(room, sum[:])
	org, kind := len(p.Org), len(p.Kind)
	l.headers = [6]Header{
		{headerOrg, key[:org:org]},
		{headerKind, key[org+1 : org+1+kind : org+1+kind]},
		{headerID, key[org+kind+2:]},
		{headerSchema, schemaOne},
		{headerRequestID, request},
		{headerMsgID, cut(at)}, // the last: partsOf counts on it
	}
	return Message{Topic: topic, Key: key, Value: l.value, Headers: l.headers[:], lease: l}
}

const (
	msgPrefix   = "msg_"
	msgIDLength = len(msgPrefix) + 32 // with the hash in hexadecimal; what follows is the range of a part
)

// The headers of every message; what Sluice raises itself comes of no request.
const (
	headerOrg       = "flowstate-org"
	headerKind      = "flowstate-subject-kind"
	headerID        = "flowstate-subject-id"
	headerSchema    = "flowstate-schema"
	headerRequestID = "flowstate-request-id"
	headerMsgID     = "flowstate-msg-id"
)

var schemaOne = []byte("1")

// payloadID is a hash of who sent which bytes, so that a client's retry of the same request has the same id.
func payloadID(p *auth.Principal, kind string, raw []byte) xxh3.Uint128 {
	var room [256]byte
	who := room[:0]
	for _, s := range [...]string{p.Org, string(p.Kind), p.ID, kind} {
		who = append(append(who, s...), 0)
	}
	return xxh3.Hash128Seed(raw, xxh3.Hash(who))
}
