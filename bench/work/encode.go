package work

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math"
	"strconv"
)

const (
	scopeName    = "com.anthropic.claude_code.events"
	scopeVersion = "2.1.14"
	schemaURL    = "https://opentelemetry.io/schemas/1.37.0"
)

// appendProtobuf writes an ExportLogsServiceRequest.
func appendProtobuf(dst []byte, resource []attr, records []record) []byte {
	var res, scope, scopeLogs, all []byte
	for _, a := range resource {
		res = field(res, 1, pbAttr(a))
	}
	scope = field(field(scope, 1, []byte(scopeName)), 2, []byte(scopeVersion))
	scopeLogs = field(scopeLogs, 1, scope)
	for i := range records {
		scopeLogs = field(scopeLogs, 2, pbRecord(&records[i]))
	}
	all = field(field(all, 1, res), 2, scopeLogs)
	all = field(all, 3, []byte(schemaURL))
	return field(dst, 1, all)
}

func pbRecord(r *record) []byte {
	var b []byte
	b = append(b, 1<<3|1)
	b = binary.LittleEndian.AppendUint64(b, r.time)
	b = append(b, 2<<3, 9) // severity INFO
	b = field(b, 3, []byte("INFO"))
	b = field(b, 5, field(nil, 1, []byte(r.body)))
	for _, a := range r.attrs {
		b = field(b, 6, pbAttr(a))
	}
	b = field(b, 9, r.trace[:])
	b = field(b, 10, r.span[:])
	b = append(b, 11<<3|1)
	return binary.LittleEndian.AppendUint64(b, r.time+1200)
}

func pbAttr(a attr) []byte {
	var v []byte
	switch x := a.value.(type) {
	case string:
		v = field(nil, 1, []byte(x))
	case int64:
		v = binary.AppendUvarint([]byte{3 << 3}, uint64(x))
	case float64:
		v = binary.LittleEndian.AppendUint64([]byte{4<<3 | 1}, math.Float64bits(x))
	}
	return field(field(nil, 1, []byte(a.key)), 2, v)
}

func field(dst []byte, number int, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(number)<<3|2)
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

// appendJSON writes the same as OTLP/JSON: ids in hex, 64-bit integers as strings.
func appendJSON(dst []byte, resource []attr, records []record) []byte {
	dst = append(dst, `{"resourceLogs":[{"resource":{"attributes":`...)
	dst = jsonAttrs(dst, resource)
	dst = append(dst, `},"scopeLogs":[{"scope":{"name":"`+scopeName+`","version":"`+scopeVersion+`"},"logRecords":[`...)
	for i := range records {
		r := &records[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"timeUnixNano":"`...)
		dst = strconv.AppendUint(dst, r.time, 10)
		dst = append(dst, `","observedTimeUnixNano":"`...)
		dst = strconv.AppendUint(dst, r.time+1200, 10)
		dst = append(dst, `","severityNumber":9,"severityText":"INFO","body":{"stringValue":`...)
		dst = jsonString(dst, r.body)
		dst = append(dst, `},"attributes":`...)
		dst = jsonAttrs(dst, r.attrs)
		dst = append(dst, `,"traceId":"`...)
		dst = hex.AppendEncode(dst, r.trace[:])
		dst = append(dst, `","spanId":"`...)
		dst = hex.AppendEncode(dst, r.span[:])
		dst = append(dst, `"}`...)
	}
	return append(dst, `]}],"schemaUrl":"`+schemaURL+`"}]}`...)
}

func jsonAttrs(dst []byte, attrs []attr) []byte {
	dst = append(dst, '[')
	for i, a := range attrs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"key":`...)
		dst = jsonString(dst, a.key)
		switch x := a.value.(type) {
		case string:
			dst = append(dst, `,"value":{"stringValue":`...)
			dst = jsonString(dst, x)
		case int64:
			dst = append(dst, `,"value":{"intValue":"`...)
			dst = strconv.AppendInt(dst, x, 10)
			dst = append(dst, '"')
		case float64:
			dst = append(dst, `,"value":{"doubleValue":`...)
			dst = strconv.AppendFloat(dst, x, 'g', -1, 64)
		}
		dst = append(dst, `}}`...)
	}
	return append(dst, ']')
}

func jsonString(dst []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("BUG: a string that JSON does not take: " + base64.StdEncoding.EncodeToString([]byte(s)))
	}
	return append(dst, b...)
}
