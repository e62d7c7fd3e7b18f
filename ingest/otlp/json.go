package otlp

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"strconv"
)

// JSONToProto appends to dst the protobuf form of src, an Export…ServiceRequest of the given kind in OTLP/JSON. The result
// still has to pass through [Rewrite], which never refuses it.
//
// It follows the OTLP specification, and is liberal where that can do no harm, as the Collector is: member names in
// lowerCamelCase or as in the .proto files, trace and span ids in hexadecimal of either case, 64-bit integers as numbers
// or strings, doubles also as strings ("NaN", "Infinity"), enums as numbers or names, bytes in any usual base64, null for
// absent. Unknown members are passed over. It is strict where two readers could differ: a member given twice (in both of
// its spellings, too), more than one value in an AnyValue, and anything after the request are refused. So are records of
// another kind, which would be lost as an unknown member.
//
// src is neither kept nor changed, and dst must not overlap it. A warm dst costs no allocation. On an error, which is a
// [*MalformedError], dst comes back as it was.
func JSONToProto(dst []byte, kind Kind, src []byte) ([]byte, error) {
	d := decoder{src: src, dst: dst}
	m := kind.request()
	d.in = m.name
	if d.peek() != '{' {
		return dst, d.need('{')
	}
	if err := d.object(m); err != nil {
		return dst, err
	}
	if d.peek(); d.i < len(src) {
		return dst, d.fail(BadJSON)
	}
	return d.dst, nil
}

// NothingKnown reports whether src, a JSON object, has members and none that an Export…ServiceRequest of the given kind has.
func NothingKnown(kind Kind, src []byte) bool {
	d := decoder{src: src}
	if d.need('{') != nil {
		return false
	}
	for first := true; ; first = false {
		ok, err := d.more(first, '}')
		if err != nil || !ok {
			return err == nil && !first
		}
		name, err := d.member()
		if err != nil || kind.request().byName(name) != nil || d.skip(0) != nil {
			return false
		}
	}
}

// object reads an object as the content of a message of type m.
func (d *decoder) object(m *message) error {
	d.in = m.name
	if err := d.need('{'); err != nil {
		return err
	}
	seen, data := uint32(0), false
	for first := true; ; first = false {
		ok, err := d.more(first, '}')
		if err != nil || !ok {
			return err
		}
		name, err := d.member()
		if err != nil {
			return err
		}
		f := m.byName(name)
		if f == nil {
			if err := d.unknown(m, name); err != nil {
				return err
			}
			continue
		}
		if seen&(1<<f.num) != 0 {
			return d.fail(MemberTwice)
		}
		seen |= 1 << f.num
		if null, err := d.null(); null || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if f.data {
			if data {
				return d.fail(TwoKinds)
			}
			data = true
		}
		if f.repeated {
			err = d.list(f)
		} else {
			err = d.value(f)
		}
		if err != nil {
			return err
		}
		d.in = m.name
	}
}

// unknown passes over the value of a member that m does not know.
func (d *decoder) unknown(m *message, name []byte) error {
	holds := m.misplaced(name)
	if holds == 0 {
		return d.skip(0)
	}
	if null, err := d.null(); null || err != nil {
		return err
	}
	if d.eat('[') && d.eat(']') {
		return nil
	}
	return &MalformedError{In: m.name, Reason: OtherKind, Offset: d.i, Holds: holds}
}

func (d *decoder) list(f *field) error {
	if err := d.need('['); err != nil {
		return err
	}
	packed := f.typ == typePackedFixed64 || f.typ == typePackedDouble || f.typ == typePackedUint64
	room, at := 1, 0
	if packed {
		d.dst = appendTag(d.dst, int(f.num), wireBytes)
		d.dst, at = openLen(d.dst, room)
	}
	for first := true; ; first = false {
		ok, err := d.more(first, ']')
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if packed {
			err = d.scalar(f)
		} else {
			err = d.value(f)
		}
		if err != nil {
			return err
		}
	}
	if packed {
		d.dst = closeLen(d.dst, at, room)
	}
	return nil
}

// value reads one value of field f, and writes the field.
func (d *decoder) value(f *field) error {
	d.dst = appendTag(d.dst, int(f.num), int(f.typ.wire()))
	room, at := 1, 0
	switch f.typ {
	case typeMessage:
		d.dst, at = openLen(d.dst, f.msg.room)
		if err := d.object(f.msg); err != nil {
			return err
		}
		d.dst = closeLen(d.dst, at, f.msg.room)
		return nil
	case typeAttribute:
		return d.keyValue(0)
	case typeAny:
		return d.any(1)
	case typeString, typeEventName, typeEntityKey:
		return d.text()
	case typeTraceID, typeSpanID:
		d.dst, at = openLen(d.dst, room)
		if err := d.id(f.typ); err != nil {
			return err
		}
		d.dst = closeLen(d.dst, at, room)
		return nil
	}
	return d.scalar(f)
}

// text reads a string and writes its length and its bytes.
func (d *decoder) text() error {
	s, escaped, err := d.str()
	if err != nil {
		return err
	}
	if !escaped {
		d.dst = binary.AppendUvarint(d.dst, uint64(len(s)))
		d.dst = append(d.dst, s...)
		return nil
	}
	room := sizeUvarint(uint64(len(s)))
	dst, at := openLen(d.dst, room)
	if dst, err = d.unescape(dst, s); err != nil {
		return err
	}
	d.dst = closeLen(dst, at, room)
	return nil
}

// str reads a string's raw text where nothing but a string will do.
func (d *decoder) str() ([]byte, bool, error) {
	if c := d.peek(); c != '"' {
		if d.i >= len(d.src) {
			return nil, false, d.fail(Truncated)
		}
		return nil, false, d.fail(BadJSONValue)
	}
	return d.raw()
}

// plain is str for what has no need of escapes: ids, base64, numbers in quotes, names of enums.
func (d *decoder) plain() ([]byte, error) {
	s, escaped, err := d.str()
	if err == nil && escaped {
		s, err = d.unescape(nil, s)
	}
	return s, err
}

func (d *decoder) id(typ fieldType) error {
	s, err := d.plain()
	if err != nil {
		return err
	}
	want := 16
	if typ == typeSpanID {
		want = 8
	}
	if len(s) != 2*want && len(s) != 0 {
		return d.fail(IDLength)
	}
	for i := 0; i+1 < len(s); i += 2 {
		hi, lo := unhex(s[i]), unhex(s[i+1])
		if hi > 15 || lo > 15 {
			return d.fail(BadJSONValue)
		}
		d.dst = append(d.dst, hi<<4|lo)
	}
	return nil
}

// base64 reads bytes in the standard or the URL alphabet, padded or not, and writes their length and them.
func (d *decoder) base64() error {
	s, err := d.plain()
	if err != nil {
		return err
	}
	for len(s) > 0 && s[len(s)-1] == '=' {
		s = s[:len(s)-1]
	}
	enc := base64.RawStdEncoding
	for _, c := range s {
		switch c {
		case '-', '_':
			enc = base64.RawURLEncoding
		case '\r', '\n':
			return d.fail(BadJSONValue)
		}
	}
	dst := binary.AppendUvarint(d.dst, uint64(enc.DecodedLen(len(s))))
	if dst, err = enc.AppendDecode(dst, s); err != nil {
		return d.fail(BadJSONValue)
	}
	d.dst = dst
	return nil
}

// scalar reads a number, a bool or an enum, and writes its bare value.
func (d *decoder) scalar(f *field) error {
	switch f.typ {
	case typeBool:
		switch d.peek() {
		case 't':
			d.dst = append(d.dst, 1)
			return d.literal("true")
		case 'f':
			d.dst = append(d.dst, 0)
			return d.literal("false")
		}
		return d.fail(BadJSONValue)
	case typeDouble, typePackedDouble:
		return d.double()
	}
	s, err := d.numeral()
	if err != nil {
		return err
	}
	bitSize, signed := 64, false
	switch f.typ {
	case typeUint32, typeFixed32:
		bitSize = 32
	case typeInt32, typeSint32, typeEnum:
		bitSize, signed = 32, true
	case typeSfixed64:
		signed = true
	}
	v, ok := f.enumValue(s)
	if !ok {
		v, ok = parseInteger(s, signed, bitSize)
	}
	if !ok {
		return d.fail(BadJSONValue)
	}
	switch f.typ {
	case typeFixed32:
		d.dst = binary.LittleEndian.AppendUint32(d.dst, uint32(v))
	case typeFixed64, typeSfixed64, typePackedFixed64:
		d.dst = binary.LittleEndian.AppendUint64(d.dst, v)
	case typeSint32:
		d.dst = binary.AppendUvarint(d.dst, uint64(uint32(v)<<1)^uint64(uint32(int32(v)>>31)))
	default:
		d.dst = binary.AppendUvarint(d.dst, v)
	}
	return nil
}

// numeral reads the text of a number, in quotes or not.
func (d *decoder) numeral() ([]byte, error) {
	switch c := d.peek(); {
	case c == '"':
		return d.plain()
	case c == '-' || c >= '0' && c <= '9':
		return d.number()
	case d.i >= len(d.src):
		return nil, d.fail(Truncated)
	}
	return nil, d.fail(BadJSONValue)
}

func (d *decoder) double() error {
	s, err := d.numeral()
	if err != nil {
		return err
	}
	v := 0.0
	switch string(s) {
	case "NaN":
		v = math.NaN()
	case "Infinity":
		v = math.Inf(1)
	case "-Infinity":
		v = math.Inf(-1)
	default:
		if v, err = parseFloat(s); err != nil {
			return d.fail(BadJSONValue)
		}
	}
	d.dst = binary.LittleEndian.AppendUint64(d.dst, math.Float64bits(v))
	return nil
}

// parseInteger also takes 1.0 and 2e3, as the JSON form of protobuf does, where a float64 holds them exactly. A signed value
// comes back in two's complement.
func parseInteger(s []byte, signed bool, bitSize int) (uint64, bool) {
	v, negative, ok := parseDigits(s)
	if !ok {
		f, err := parseFloat(s)
		if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return 0, false
		}
		v, negative = uint64(math.Abs(f)), f < 0
	}
	switch {
	case negative:
		return -v, (signed && v <= 1<<(bitSize-1)) || v == 0
	case signed:
		return v, v < 1<<(bitSize-1)
	}
	return v, bitSize == 64 || v < 1<<bitSize
}

// parseDigits reads what nearly every integer is: a sign perhaps, and digits that fit 64 bits.
func parseDigits(s []byte) (uint64, bool, bool) {
	negative := len(s) > 0 && s[0] == '-'
	if negative {
		s = s[1:]
	}
	if len(s) == 0 || len(s) > 20 {
		return 0, false, false
	}
	v := uint64(0)
	for _, c := range s {
		digit := uint64(c - '0')
		if digit > 9 || v > math.MaxUint64/10 || v*10 > math.MaxUint64-digit {
			return 0, false, false
		}
		v = v*10 + digit
	}
	return v, negative, true
}

// parseFloat takes what JSON takes for a number; strconv alone reads "inf", underscores and hexadecimal too.
func parseFloat(s []byte) (float64, error) {
	d := decoder{src: s}
	if _, err := d.number(); err != nil || d.i != len(s) {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseFloat(string(s), 64) // up to 32 bytes this copy stays on the stack
}

// enumValue is the number of the enum's value that has this name.
func (f *field) enumValue(s []byte) (uint64, bool) {
	if f.typ != typeEnum || len(s) <= len(f.prefix) || string(s[:len(f.prefix)]) != f.prefix {
		return 0, false
	}
	for i, name := range f.enum {
		if string(s[len(f.prefix):]) == name {
			return uint64(i), true
		}
	}
	return 0, false
}
