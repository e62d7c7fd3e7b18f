package otlp

import "encoding/binary"

// keyValue reads an object as a KeyValue and writes its length and content. depth counts the AnyValues around it. It has
// code of its own, as any has, because a body is made of little else.
func (d *decoder) keyValue(depth int) error {
	d.in = "KeyValue"
	if err := d.need('{'); err != nil {
		return err
	}
	dst, at := openLen(d.dst, 1)
	d.dst = dst
	seen := 0
	for first := true; ; first = false {
		ok, err := d.more(first, '}')
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		bit, err := d.keyValueMember()
		if err != nil {
			return err
		}
		if bit == 0 {
			if err := d.skip(0); err != nil {
				return err
			}
			continue
		}
		if seen&bit != 0 {
			return d.fail(MemberTwice)
		}
		seen |= bit
		if null, err := d.null(); null || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		switch bit {
		case 1:
			d.dst = append(d.dst, tagKey)
			err = d.text()
		case 2:
			d.dst = append(d.dst, tagValue)
			err = d.any(depth + 1)
		case 4:
			d.dst = append(d.dst, tagStrindex)
			err = d.scalar(&strindex)
		}
		if err != nil {
			return err
		}
		d.in = "KeyValue"
	}
	d.dst = closeLen(d.dst, at, 1)
	return nil
}

// keyValueMember reads the name of a member of a KeyValue, and gives each its bit; 0 is an unknown one.
func (d *decoder) keyValueMember() (int, error) {
	if d.at(`"key":`) {
		return 1, nil
	}
	if d.at(`"value":`) {
		return 2, nil
	}
	name, err := d.member()
	switch string(name) {
	case "key":
		return 1, err
	case "value":
		return 2, err
	case "keyStrindex", "key_strindex":
		return 4, err
	}
	return 0, err
}

// strindex is a reference to a table of strings that only profiles have.
var strindex = field{typ: typeInt32}

// any reads an object as an AnyValue and writes its length and content. It is the depth-th of those inside one another.
func (d *decoder) any(depth int) error {
	d.in = "AnyValue"
	if depth > MaxDepth {
		return d.fail(TooDeep)
	}
	if err := d.need('{'); err != nil {
		return err
	}
	dst, at := openLen(d.dst, 1)
	d.dst = dst
	seen, set := uint32(0), false
	for first := true; ; first = false {
		ok, err := d.more(first, '}')
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		tag, err := d.anyMember()
		if err != nil {
			return err
		}
		if tag == 0 {
			if err := d.skip(0); err != nil {
				return err
			}
			continue
		}
		if seen&(1<<(tag>>3)) != 0 {
			return d.fail(MemberTwice)
		}
		seen |= 1 << (tag >> 3)
		if null, err := d.null(); null || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if set {
			return d.fail(ValueTwice)
		}
		set = true
		d.dst = append(d.dst, tag)
		if err := d.anyContent(tag, depth); err != nil {
			return err
		}
		d.in = "AnyValue"
	}
	d.dst = closeLen(d.dst, at, 1)
	return nil
}

// anyMember reads the name of a member of an AnyValue and returns its tag, 0 for an unknown one.
func (d *decoder) anyMember() (byte, error) {
	if d.at(`"stringValue":`) {
		return tagString, nil
	}
	if d.at(`"intValue":`) {
		return tagInt, nil
	}
	name, err := d.member()
	return anyTag(name), err
}

// anyTag is the tag of the member of an AnyValue that has this name, 0 for an unknown one.
func anyTag(name []byte) byte {
	switch string(name) {
	case "stringValue", "string_value":
		return tagString
	case "boolValue", "bool_value":
		return tagBool
	case "intValue", "int_value":
		return tagInt
	case "doubleValue", "double_value":
		return tagDouble
	case "arrayValue", "array_value":
		return tagArray
	case "kvlistValue", "kvlist_value":
		return tagKvlist
	case "bytesValue", "bytes_value":
		return tagBytes
	case "stringValueStrindex", "string_value_strindex":
		return tagAnyString
	}
	return 0
}

func (d *decoder) anyContent(tag byte, depth int) error {
	switch tag {
	case tagString:
		return d.text()
	case tagBool:
		return d.scalar(&field{typ: typeBool})
	case tagInt:
		s, err := d.numeral()
		if err != nil {
			return err
		}
		v, ok := parseInteger(s, true, 64)
		if !ok {
			return d.fail(BadJSONValue)
		}
		d.dst = binary.AppendUvarint(d.dst, v)
		return nil
	case tagDouble:
		return d.double()
	case tagBytes:
		return d.base64()
	case tagAnyString:
		return d.scalar(&strindex)
	}
	return d.values(tag, depth)
}

// values reads {"values": […]} as an ArrayValue or a KeyValueList, and writes its length and content.
func (d *decoder) values(kind byte, depth int) error {
	in := "ArrayValue"
	if kind == tagKvlist {
		in = "KeyValueList"
	}
	d.in = in
	if err := d.need('{'); err != nil {
		return err
	}
	dst, at := openLen(d.dst, 1)
	d.dst = dst
	seen := false
	for first := true; ; first = false {
		ok, err := d.more(first, '}')
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		name, err := d.member()
		if err != nil {
			return err
		}
		if string(name) != "values" {
			if err := d.skip(0); err != nil {
				return err
			}
			continue
		}
		if seen {
			return d.fail(MemberTwice)
		}
		seen = true
		if null, err := d.null(); null || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := d.elements(kind, depth); err != nil {
			return err
		}
		d.in = in
	}
	d.dst = closeLen(d.dst, at, 1)
	return nil
}

func (d *decoder) elements(kind byte, depth int) error {
	if err := d.need('['); err != nil {
		return err
	}
	for first := true; ; first = false {
		ok, err := d.more(first, ']')
		if err != nil || !ok {
			return err
		}
		d.dst = append(d.dst, 1<<3|wireBytes)
		if kind == tagKvlist {
			err = d.keyValue(depth)
		} else if null, nullErr := d.null(); null || nullErr != nil {
			d.dst, err = append(d.dst, 0), nullErr // an empty AnyValue keeps the others in their places
		} else {
			err = d.any(depth + 1)
		}
		if err != nil {
			return err
		}
	}
}
