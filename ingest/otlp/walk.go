package otlp

// namespace is Flowstate's own part of the attributes: no client writes there. Keys are compared in any ASCII case, because
// a consumer may fold them.
const namespace = "flowstate."

// signalEvent is the event name that makes a log record a signal.
const signalEvent = "flowstate.signal"

// unknown stands for every field that the schema does not have.
var unknown = field{}

// walker is the validating pass over one body: it refuses or counts, and notes what the copy will have to look for.
//
// The notes replace a search of the body for "flowstate.": the walk looks at each key anyway, so they cost two comparisons
// of a length, see any case, and are not misled by a prompt that mentions the product.
type walker struct {
	kind      Kind
	body      []byte
	records   int
	resources int
	forged    bool    // an attribute's key, or an EntityRef's, begins with the namespace
	signals   bool    // some attribute or event_name says that its record may be a signal
	marked    []int32 // the places among all records of those that may be signals, in order
	legacy    bool    // scopes stand in field 1000
}

// mark notes that the record under way, if there is one, may be a signal.
func (w *walker) mark() {
	w.signals = true
	if at := int32(w.records - 1); at >= 0 && (len(w.marked) == 0 || w.marked[len(w.marked)-1] != at) {
		w.marked = append(w.marked, at)
	}
}

func (w *walker) message(m *message, b []byte) error {
	if m.record {
		w.records++
	}
	if m.container {
		if w.resources++; w.resources > MaxResources {
			return malformed(m.name, TooMany)
		}
	}
	data := uint64(0)
	for i := 0; i < len(b); {
		tag := uint64(b[i])
		i++
		if tag >= 0x80 {
			v, n := uvarint(b[i-1:])
			if n <= 0 {
				return malformed(m.name, varintReason(n))
			}
			tag = v
			i += n - 1
		}
		num := tag >> 3
		f := &unknown
		switch {
		case num < uint64(len(m.fields)):
			if num == 0 {
				return malformed(m.name, BadNumber)
			}
			f = &m.fields[num]
		case num > maxFieldNumber:
			return malformed(m.name, BadNumber)
		case num == legacyScopes && m.container:
			w.legacy = true
			f = &m.fields[2]
		}
		if tag&7 != wireBytes {
			if f.typ != typeUnknown && f.typ.wire() != tag&7 {
				return malformed(m.name, WrongWireType)
			}
			n, reason := sizeScalar(tag&7, b[i:])
			if reason != "" {
				return malformed(m.name, reason)
			}
			i += n
			continue
		}
		if i >= len(b) {
			return malformed(m.name, Truncated)
		}
		size := uint64(b[i])
		i++
		if size >= 0x80 {
			v, n := uvarint(b[i-1:])
			if n <= 0 {
				return malformed(m.name, varintReason(n))
			}
			size = v
			i += n - 1
		}
		if size > uint64(len(b)-i) {
			return malformed(m.name, Truncated)
		}
		v := b[i : i+int(size)]
		i += int(size)
		if f.typ == typeAttribute {
			if err := w.keyValue(v, 0, true); err != nil {
				return err
			}
			continue
		}
		if f.data {
			if data != 0 && data != num {
				return malformed(m.name, TwoKinds)
			}
			data = num
		}
		if err := w.content(m, f, v); err != nil {
			return err
		}
	}
	return nil
}

// content validates the length-delimited value v of field f.
func (w *walker) content(m *message, f *field, v []byte) error {
	switch f.typ {
	case typeUnknown:
		return nil
	case typeMessage:
		return w.message(f.msg, v)
	case typeAny:
		return w.any(v, 1)
	case typeString, typeEventName, typeEntityKey:
		if !validUTF8(v) {
			return malformed(m.name, BadUTF8)
		}
		switch f.typ {
		case typeEventName:
			if namesSignal(v) {
				w.mark()
			}
		case typeEntityKey:
			w.forged = w.forged || isForged(v)
		}
		return nil
	case typeTraceID:
		if len(v) != 16 && len(v) != 0 {
			return malformed(m.name, IDLength)
		}
		return nil
	case typeSpanID:
		if len(v) != 8 && len(v) != 0 {
			return malformed(m.name, IDLength)
		}
		return nil
	case typePackedFixed64, typePackedDouble:
		if len(v)%8 != 0 {
			return malformed(m.name, BadPacked)
		}
		return nil
	case typePackedUint64:
		for len(v) > 0 {
			_, n := uvarint(v)
			if n <= 0 {
				return malformed(m.name, varintReason(n))
			}
			v = v[n:]
		}
		return nil
	}
	return malformed(m.name, WrongWireType)
}

// sizeScalar is the size of the value at the head of b, whose wire type is not length-delimited.
func sizeScalar(wire uint64, b []byte) (int, Reason) {
	n := 0
	switch wire {
	case wireVarint:
		if len(b) > 0 && b[0] < 0x80 {
			return 1, ""
		}
		if _, n = uvarint(b); n <= 0 {
			return 0, varintReason(n)
		}
		return n, ""
	case wireFixed64:
		n = 8
	case wireFixed32:
		n = 4
	case 3, 4:
		return 0, Group
	default:
		return 0, BadWireType
	}
	if n > len(b) {
		return 0, Truncated
	}
	return n, ""
}

// step reads the field at b[i:], for the two small messages that make up most of a body: its tag, its content if it is
// length-delimited, and where the next one begins.
func step(b []byte, i int) (uint64, []byte, int, Reason) {
	if i+1 < len(b) && b[i]&0x87 == wireBytes && b[i] > 7 && b[i+1] < 0x80 {
		if end := i + 2 + int(b[i+1]); end <= len(b) {
			return uint64(b[i]), b[i+2 : end], end, ""
		}
		return 0, nil, 0, Truncated
	}
	tag, n := uvarint(b[i:])
	if n <= 0 {
		return 0, nil, 0, varintReason(n)
	}
	if tag>>3 == 0 || tag>>3 > maxFieldNumber {
		return 0, nil, 0, BadNumber
	}
	i += n
	if tag&7 != wireBytes {
		n, reason := sizeScalar(tag&7, b[i:])
		return tag, nil, i + n, reason
	}
	size, n := uvarint(b[i:])
	if n <= 0 {
		return 0, nil, 0, varintReason(n)
	}
	i += n
	if size > uint64(len(b)-i) {
		return 0, nil, 0, Truncated
	}
	return tag, b[i : i+int(size)], i + int(size), ""
}

const (
	tagKey      = 1<<3 | wireBytes
	tagValue    = 2<<3 | wireBytes
	tagStrindex = 3<<3 | wireVarint

	tagString    = 1<<3 | wireBytes
	tagBool      = 2<<3 | wireVarint
	tagInt       = 3<<3 | wireVarint
	tagDouble    = 4<<3 | wireFixed64
	tagArray     = 5<<3 | wireBytes
	tagKvlist    = 6<<3 | wireBytes
	tagBytes     = 7<<3 | wireBytes
	tagAnyString = 8<<3 | wireVarint // string_value_strindex
)

// keyValue validates a KeyValue; depth counts the AnyValues around it. attribute is false inside a kvlist, whose keys are
// part of a value and the client's own.
func (w *walker) keyValue(b []byte, depth int, attribute bool) error {
	key, value, ok := plainKeyValue(b)
	if ok {
		if !validUTF8(key) {
			return malformed("KeyValue", BadUTF8)
		}
		if err := w.any(value, depth+1); err != nil {
			return err
		}
	} else {
		var err error
		if key, value, err = w.oddKeyValue(b, depth); err != nil {
			return err
		}
	}
	if attribute && len(key) >= len(namespace) {
		if isForged(key) {
			w.forged = true
		} else if string(key) == eventNameKey && namesSignal(stringOf(value)) {
			w.mark()
		}
	}
	return nil
}

// plainKeyValue cuts a KeyValue of the form that nearly all have: a key and a value, each shorter than 128 bytes.
func plainKeyValue(b []byte) ([]byte, []byte, bool) {
	if len(b) < 4 || b[0] != tagKey || b[1] >= 0x80 {
		return nil, nil, false
	}
	at := 2 + int(b[1])
	if at+2 > len(b) || b[at] != tagValue || b[at+1] >= 0x80 || at+2+int(b[at+1]) != len(b) {
		return nil, nil, false
	}
	return b[2:at], b[at+2:], true
}

// oddKeyValue validates a KeyValue of any form, and returns its key and its value.
func (w *walker) oddKeyValue(b []byte, depth int) ([]byte, []byte, error) {
	var key, value []byte
	hasKey, hasValue := false, false
	for i := 0; i < len(b); {
		tag, v, next, reason := step(b, i)
		if reason != "" {
			return nil, nil, malformed("KeyValue", reason)
		}
		i = next
		switch tag {
		case tagKey:
			if hasKey {
				return nil, nil, malformed("KeyValue", KeyTwice)
			}
			if !validUTF8(v) {
				return nil, nil, malformed("KeyValue", BadUTF8)
			}
			key, hasKey = v, true
		case tagValue:
			if hasValue {
				return nil, nil, malformed("KeyValue", ValueTwice)
			}
			if err := w.any(v, depth+1); err != nil {
				return nil, nil, err
			}
			value, hasValue = v, true
		case tagStrindex:
		default:
			if tag>>3 <= 3 {
				return nil, nil, malformed("KeyValue", WrongWireType)
			}
		}
	}
	return key, value, nil
}

// any validates an AnyValue that is the depth-th of those inside one another, itself included.
func (w *walker) any(b []byte, depth int) error {
	if depth > MaxDepth {
		return malformed("AnyValue", TooDeep)
	}
	if len(b) >= 2 && b[0] == tagString && b[1] < 0x80 && int(b[1]) == len(b)-2 { // as most are
		if !validUTF8(b[2:]) {
			return malformed("AnyValue", BadUTF8)
		}
		return nil
	}
	set := false
	for i := 0; i < len(b); {
		tag, v, next, reason := step(b, i)
		if reason != "" {
			return malformed("AnyValue", reason)
		}
		i = next
		if tag>>3 <= 8 {
			if set {
				return malformed("AnyValue", ValueTwice)
			}
			set = true
		}
		switch tag {
		case tagString:
			if !validUTF8(v) {
				return malformed("AnyValue", BadUTF8)
			}
		case tagBool, tagInt, tagDouble, tagBytes, tagAnyString:
		case tagArray, tagKvlist:
			if err := w.values(tag, v, depth); err != nil {
				return err
			}
		default:
			if tag>>3 <= 8 {
				return malformed("AnyValue", WrongWireType)
			}
		}
	}
	return nil
}

// values validates an ArrayValue or a KeyValueList, which differ only in what their field 1 holds.
func (w *walker) values(kind uint64, b []byte, depth int) error {
	in := "ArrayValue"
	if kind == tagKvlist {
		in = "KeyValueList"
	}
	for i := 0; i < len(b); {
		tag, v, next, reason := step(b, i)
		if reason != "" {
			return malformed(in, reason)
		}
		i = next
		var err error
		switch {
		case tag>>3 != 1:
		case tag&7 != wireBytes:
			err = malformed(in, WrongWireType)
		case kind == tagArray:
			err = w.any(v, depth+1)
		default:
			err = w.keyValue(v, depth, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func isForged(key []byte) bool {
	return len(key) >= len(namespace) && key[0]|0x20 == 'f' && foldEqual(key[:len(namespace)], namespace)
}

// foldEqual compares b in any ASCII case with lower, which has no capitals.
func foldEqual(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}
