package otlp

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// shaper writes bodies that are valid protobuf but that no encoder would write: fields in any order, twice, merged, padded,
// unknown; keys and names that matter. Bytes decide, so that a fuzzer can steer it.
type shaper struct{ data []byte }

func (s *shaper) pick(n int) int {
	if len(s.data) == 0 {
		return 0
	}
	c := int(s.data[0])
	s.data = s.data[1:]
	return c % n
}

func (s *shaper) bytes(num protowire.Number, v []byte) []byte {
	tag := protowire.AppendTag(nil, num, protowire.BytesType)
	size := protowire.AppendVarint(nil, uint64(len(v)))
	if s.pick(16) == 1 { // a padded length is as good as any
		size[len(size)-1] |= 0x80
		size = append(size, 0)
	}
	return slices.Concat(tag, size, v)
}

func (s *shaper) message(m *message) []byte {
	var b []byte
	for range s.pick(6) {
		switch i := s.pick(len(m.list) + 2); {
		case i < len(m.list):
			b = append(b, s.field(&m.list[i])...)
		case i == len(m.list):
			b = append(b, s.unknown()...)
		case m.container:
			b = append(b, s.bytes(1, s.message(&schema.resource))...)
			b = append(b, s.bytes(2, s.message(m.fields[2].msg))...)
		}
	}
	return b
}

func (s *shaper) unknown() []byte {
	switch s.pick(4) {
	case 0:
		return protowire.AppendFixed32(protowire.AppendTag(nil, 300, protowire.Fixed32Type), 1)
	case 1:
		return varintField(1<<29-1, 1<<63)
	case 2:
		return protowire.AppendFixed64(protowire.AppendTag(nil, 19, protowire.Fixed64Type), 1)
	}
	return s.bytes(40, []byte("flowstate.unknown"))
}

func (s *shaper) field(f *field) []byte {
	num := protowire.Number(f.num)
	switch f.typ {
	case typeMessage:
		return s.bytes(num, s.message(f.msg))
	case typeAttribute:
		return s.bytes(num, s.keyValue(3))
	case typeAny:
		return s.bytes(num, s.any(3))
	case typeString, typeEventName, typeEntityKey:
		return s.bytes(num, []byte(s.text()))
	case typeTraceID:
		return s.bytes(num, make([]byte, []int{16, 16, 16, 0, 15}[s.pick(5)]))
	case typeSpanID:
		return s.bytes(num, make([]byte, []int{8, 8, 8, 0, 9}[s.pick(5)]))
	case typePackedFixed64, typePackedDouble, typePackedUint64:
		if s.pick(2) == 0 {
			return s.bytes(num, make([]byte, 8*s.pick(3)))
		}
	}
	switch f.typ.wire() {
	case wireFixed32:
		return protowire.AppendFixed32(protowire.AppendTag(nil, num, protowire.Fixed32Type), uint32(s.pick(256)))
	case wireFixed64:
		return protowire.AppendFixed64(protowire.AppendTag(nil, num, protowire.Fixed64Type), uint64(s.pick(256)))
	}
	return varintField(num, []uint64{0, 1, 300, 1<<64 - 1}[s.pick(4)])
}

func (s *shaper) text() string {
	return []string{"", "flowstate.org", "FlowState.x", "event.name", "flowstate.signal", " Flowstate.Signal\n", "flowstate", "model", "é"}[s.pick(9)]
}

func (s *shaper) keyValue(depth int) []byte {
	var b []byte
	if s.pick(8) != 0 {
		b = s.bytes(1, []byte(s.text()))
	}
	switch s.pick(10) {
	case 0:
		return append(b, s.unknown()...)
	case 1:
		return append(s.bytes(2, s.any(depth)), b...)
	case 2:
		return slices.Concat(b, varintField(3, 7), s.bytes(2, s.any(depth)))
	case 3:
		return slices.Concat(b, b)
	}
	return append(b, s.bytes(2, s.any(depth))...)
}

func (s *shaper) any(depth int) []byte {
	switch n := s.pick(12); {
	case n == 0:
		return nil
	case n == 1:
		return varintField(2, 1)
	case n == 2:
		return varintField(3, 1<<64-1)
	case n == 3 && depth > 0:
		return s.bytes(5, slices.Concat(s.bytes(1, s.any(depth-1)), s.bytes(1, s.any(depth-1))))
	case n == 4 && depth > 0:
		return s.bytes(6, slices.Concat(s.bytes(1, s.keyValue(depth-1)), s.bytes(1, s.keyValue(depth-1))))
	case n == 5:
		return s.bytes(7, []byte{0xff})
	case n == 6:
		return append(s.unknown(), s.bytes(1, []byte(s.text()))...)
	case n == 7:
		return varintField(8, 5)
	}
	return s.bytes(1, []byte(s.text()))
}

func checkShape(t *testing.T, kind Kind, data []byte) {
	t.Helper()
	s := &shaper{data: data}
	body := s.message(kind.request())
	if err := proto.Unmarshal(body, newRequest(kind)); err != nil {
		t.Fatalf("the shaper is wrong: %v", err)
	}
	if _, _, err := Rewrite(nil, kind, body, testBadge(), nil); err != nil {
		var m *MalformedError
		if !errors.As(err, &m) || !slices.Contains(stricter, m.Reason) {
			t.Fatal(err)
		}
		return
	}
	out, _ := checkRewrite(t, kind, body)
	checkSplit(t, kind, out)
}

func TestRewriteOddShapes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 400)
	for i := range 6000 {
		for j := range data {
			data[j] = byte(rng.Uint32())
		}
		checkShape(t, kinds[i%len(kinds)], data)
		if t.Failed() {
			t.Fatalf("shape %d", i)
		}
	}
}

func FuzzRewriteOddShapes(f *testing.F) {
	f.Add(byte(0), []byte("seeds enough to make a request of some size and an odd form"))
	f.Fuzz(func(t *testing.T, k byte, data []byte) { checkShape(t, kinds[int(k)%len(kinds)], data) })
}
