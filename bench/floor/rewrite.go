package main

import (
	"encoding/binary"
	"errors"
)

var errProtobuf = errors.New("not protobuf")

// lengthRoom is what a length is written in when it is known only afterwards: a varint may be longer than it must.
const lengthRoom = 4

// rewrite copies an ExportLogsServiceRequest without the signals, with the badge in each resource. It returns how many records are left.
func rewrite(dst, src, badge []byte) ([]byte, int, error) {
	left := 0
	for len(src) > 0 {
		number, value, whole, rest, err := next(src)
		if err != nil {
			return dst, 0, err
		}
		src = rest
		if number != 1 {
			dst = append(dst, whole...)
			continue
		}
		var at, n int
		dst, at = open(dst, 1)
		if dst, n, err = resourceLogs(dst, value, badge); err != nil {
			return dst, 0, err
		}
		shut(dst, at)
		left += n
	}
	return dst, left, nil
}

func resourceLogs(dst, src, badge []byte) ([]byte, int, error) {
	left, badged := 0, false
	for len(src) > 0 {
		number, value, whole, rest, err := next(src)
		if err != nil {
			return dst, 0, err
		}
		src = rest
		switch number {
		case 1:
			var at int
			dst, at = open(dst, 1)
			dst = append(append(dst, value...), badge...)
			shut(dst, at)
			badged = true
		case 2:
			var at, n int
			dst, at = open(dst, 2)
			if dst, n, err = scopeLogs(dst, value); err != nil {
				return dst, 0, err
			}
			shut(dst, at)
			left += n
		default:
			dst = append(dst, whole...)
		}
	}
	if !badged {
		dst = appendField(dst, 1, badge)
	}
	return dst, left, nil
}

func scopeLogs(dst, src []byte) ([]byte, int, error) {
	left := 0
	for len(src) > 0 {
		number, value, whole, rest, err := next(src)
		if err != nil {
			return dst, 0, err
		}
		src = rest
		if number == 2 {
			signal, err := isSignal(value)
			if err != nil {
				return dst, 0, err
			}
			if signal {
				continue
			}
			left++
		}
		dst = append(dst, whole...)
	}
	return dst, left, nil
}

// isSignal walks the whole record and says whether its event.name is a signal's.
func isSignal(record []byte) (bool, error) {
	found := false
	for len(record) > 0 {
		number, value, _, rest, err := next(record)
		if err != nil {
			return false, err
		}
		record = rest
		if number != 6 {
			continue
		}
		var key, text []byte
		for len(value) > 0 {
			n, v, _, r, err := next(value)
			if err != nil {
				return false, err
			}
			value = r
			switch n {
			case 1:
				key = v
			case 2:
				text = v
			}
		}
		if string(key) == "event.name" && len(text) > 2 && string(text[2:]) == "flowstate.signal" {
			found = true
		}
	}
	return found, nil
}

// next reads one field: its number, its value where it has a length, and all of its bytes.
func next(src []byte) (number int, value, whole, rest []byte, err error) {
	tag, n := uvarint(src)
	if n <= 0 {
		return 0, nil, nil, nil, errProtobuf
	}
	at := n
	switch tag & 7 {
	case 0:
		_, n = uvarint(src[at:])
		if n <= 0 {
			return 0, nil, nil, nil, errProtobuf
		}
		at += n
	case 1:
		at += 8
	case 5:
		at += 4
	case 2:
		length, n := uvarint(src[at:])
		if n <= 0 || length > uint64(len(src)-at-n) {
			return 0, nil, nil, nil, errProtobuf
		}
		at += n
		value = src[at : at+int(length)]
		at += int(length)
	default:
		return 0, nil, nil, nil, errProtobuf
	}
	if at > len(src) {
		return 0, nil, nil, nil, errProtobuf
	}
	return int(tag >> 3), value, src[:at], src[at:], nil
}

func uvarint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return binary.Uvarint(b)
}

// open begins a field whose length is not known yet.
func open(dst []byte, number int) ([]byte, int) {
	dst = append(dst, byte(number<<3|2), 0, 0, 0, 0)
	return dst, len(dst)
}

// shut writes the length of what was appended since open.
func shut(dst []byte, at int) {
	n := len(dst) - at
	for i := range lengthRoom - 1 {
		dst[at-lengthRoom+i] = byte(n>>(7*i)) | 0x80
	}
	dst[at-1] = byte(n >> (7 * (lengthRoom - 1)))
}
