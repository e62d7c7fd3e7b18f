package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"strconv"

	"github.com/valyala/fastjson"
)

var (
	errJSON = errors.New("not OTLP/JSON")
	parsers fastjson.ParserPool
)

// fromJSON turns the log records of the benchmark into protobuf: the fields that they have, and no others.
func fromJSON(dst, src []byte) ([]byte, error) {
	p := parsers.Get()
	defer parsers.Put(p)
	v, err := p.ParseBytes(src)
	if err != nil {
		return dst, err
	}
	for _, rl := range v.GetArray("resourceLogs") {
		var outer, at int
		dst, outer = open(dst, 1)
		dst, at = open(dst, 1)
		if dst, err = jsonAttributes(dst, 1, rl.Get("resource", "attributes")); err != nil {
			return dst, err
		}
		shut(dst, at)
		for _, sl := range rl.GetArray("scopeLogs") {
			dst, at = open(dst, 2)
			var scope int
			dst, scope = open(dst, 1)
			dst = appendField(dst, 1, sl.GetStringBytes("scope", "name"))
			dst = appendField(dst, 2, sl.GetStringBytes("scope", "version"))
			shut(dst, scope)
			for _, r := range sl.GetArray("logRecords") {
				var record int
				dst, record = open(dst, 2)
				if dst, err = jsonRecord(dst, r); err != nil {
					return dst, err
				}
				shut(dst, record)
			}
			shut(dst, at)
		}
		dst = appendField(dst, 3, rl.GetStringBytes("schemaUrl"))
		shut(dst, outer)
	}
	return dst, nil
}

var ids = [...]struct {
	number int
	name   string
}{{9, "traceId"}, {10, "spanId"}}

func jsonRecord(dst []byte, r *fastjson.Value) ([]byte, error) {
	var err error
	if dst, err = jsonTime(append(dst, 1<<3|1), r.GetStringBytes("timeUnixNano")); err != nil {
		return dst, err
	}
	dst = binary.AppendUvarint(append(dst, 2<<3), r.GetUint64("severityNumber"))
	dst = appendField(dst, 3, r.GetStringBytes("severityText"))
	var at int
	dst, at = open(dst, 5)
	dst = appendField(dst, 1, r.GetStringBytes("body", "stringValue"))
	shut(dst, at)
	if dst, err = jsonAttributes(dst, 6, r.Get("attributes")); err != nil {
		return dst, err
	}
	for _, id := range ids {
		dst, at = open(dst, id.number)
		if dst, err = hex.AppendDecode(dst, r.GetStringBytes(id.name)); err != nil {
			return dst, err
		}
		shut(dst, at)
	}
	return jsonTime(append(dst, 11<<3|1), r.GetStringBytes("observedTimeUnixNano"))
}

func jsonTime(dst, text []byte) ([]byte, error) {
	n, err := strconv.ParseUint(string(text), 10, 64)
	return binary.LittleEndian.AppendUint64(dst, n), err
}

func jsonAttributes(dst []byte, number int, list *fastjson.Value) ([]byte, error) {
	if list == nil {
		return dst, errJSON
	}
	attrs, err := list.Array()
	if err != nil {
		return dst, err
	}
	for _, a := range attrs {
		var at, value int
		dst, at = open(dst, number)
		dst = appendField(dst, 1, a.GetStringBytes("key"))
		dst, value = open(dst, 2)
		v := a.Get("value")
		switch {
		case v.Exists("stringValue"):
			dst = appendField(dst, 1, v.GetStringBytes("stringValue"))
		case v.Exists("intValue"):
			n, err := strconv.ParseInt(string(v.GetStringBytes("intValue")), 10, 64)
			if err != nil {
				return dst, err
			}
			dst = binary.AppendUvarint(append(dst, 3<<3), uint64(n))
		case v.Exists("doubleValue"):
			dst = binary.LittleEndian.AppendUint64(append(dst, 4<<3|1), math.Float64bits(v.GetFloat64("doubleValue")))
		default:
			return dst, errJSON
		}
		shut(dst, value)
		shut(dst, at)
	}
	return dst, nil
}
