package otlp

// maxLook bounds how many attributes, and fields of a message, ServiceName looks at: a body must not buy work with a long list.
const maxLook = 128

// ServiceName is the attribute service.name of the first Resource of an export request of any kind, nil where it names none as a string among its
// first 128 attributes. payload need not be valid: what cannot be read is no name. The result borrows payload. It allocates nothing.
func ServiceName(payload []byte) []byte {
	// In logs, spans and metrics alike field 1 of the request is its ResourceX, whose field 1 is the Resource, whose field 1 are its attributes.
	of, ok := firstField(payload)
	if !ok {
		return nil
	}
	resource, ok := firstField(of)
	if !ok {
		return nil
	}
	attributes := fields{b: resource}
	for range maxLook {
		if !attributes.next() {
			return nil
		}
		if attributes.num != 1 || attributes.wire != wireBytes {
			continue
		}
		var key, value []byte
		pair := fields{b: attributes.val}
		for range maxLook {
			if !pair.next() {
				break
			}
			switch {
			case pair.num == 1 && pair.wire == wireBytes:
				key = pair.val
			case pair.num == 2 && pair.wire == wireBytes:
				value = pair.val
			}
		}
		if string(key) == "service.name" {
			name, _ := firstField(value) // AnyValue's string_value is its field 1 too
			return name
		}
	}
	return nil
}

// firstField is the first field 1 of a message, where it is length-delimited.
func firstField(b []byte) ([]byte, bool) {
	f := fields{b: b}
	for range maxLook {
		if !f.next() {
			return nil, false
		}
		if f.num == 1 && f.wire == wireBytes {
			return f.val, true
		}
	}
	return nil, false
}
