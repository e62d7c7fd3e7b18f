package otlp

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// Encoding is how a request, and therefore its answer, is encoded.
type Encoding uint8

// The two encodings of OTLP/HTTP. OTLP/gRPC answers in Protobuf.
const (
	Protobuf Encoding = iota
	JSON
)

// ContentType is the media type of the encoding, for the answer's header.
func (e Encoding) ContentType() string {
	if e == JSON {
		return "application/json"
	}
	return "application/x-protobuf"
}

// MaxMessage is the most bytes of text that an answer carries; longer text is cut at a character.
const MaxMessage = 4 << 10

// AppendExportResponse appends an Export…ServiceResponse. rejected counts the records that will not be stored; message says
// which and why, and may be given with none rejected, as a warning. With neither the answer is full success, which in
// protobuf is no bytes at all.
func AppendExportResponse(dst []byte, kind Kind, enc Encoding, rejected int64, message string) []byte {
	message = fitMessage(message)
	if enc == JSON {
		return appendResponseJSON(dst, kind, rejected, message)
	}
	if rejected == 0 && message == "" {
		return dst
	}
	dst = append(dst, 1<<3|wireBytes)
	dst, at := openLen(dst, 2)
	if rejected != 0 {
		dst = append(dst, 1<<3|wireVarint)
		dst = binary.AppendUvarint(dst, uint64(rejected))
	}
	if message != "" {
		dst = appendStringField(dst, 2, message)
	}
	return closeLen(dst, at, 2)
}

func appendResponseJSON(dst []byte, kind Kind, rejected int64, message string) []byte {
	if rejected == 0 && message == "" {
		return append(dst, "{}"...)
	}
	dst = append(dst, `{"partialSuccess":{`...)
	if rejected != 0 {
		switch kind {
		case Logs:
			dst = append(dst, `"rejectedLogRecords":"`...)
		case Spans:
			dst = append(dst, `"rejectedSpans":"`...)
		default:
			dst = append(dst, `"rejectedDataPoints":"`...)
		}
		dst = append(appendInt(dst, rejected), '"')
		if message != "" {
			dst = append(dst, ',')
		}
	}
	if message != "" {
		dst = appendJSONString(append(dst, `"errorMessage":`...), message)
	}
	return append(dst, "}}"...)
}

// AppendStatus appends a google.rpc.Status, the body of every OTLP answer that is not a success. code is a gRPC code.
func AppendStatus(dst []byte, enc Encoding, code int32, message string) []byte {
	message = fitMessage(message)
	if enc == JSON {
		dst = appendInt(append(dst, `{"code":`...), int64(code))
		dst = appendJSONString(append(dst, `,"message":`...), message)
		return append(dst, '}')
	}
	if code != 0 {
		dst = append(dst, 1<<3|wireVarint)
		dst = binary.AppendUvarint(dst, uint64(int64(code)))
	}
	if message != "" {
		dst = appendStringField(dst, 2, message)
	}
	return dst
}

// AppendBadRequest appends a google.rpc.Status of INVALID_ARGUMENT whose details hold a google.rpc.BadRequest with the same message, as the
// specification asks of an answer to bad data.
func AppendBadRequest(dst []byte, enc Encoding, message string) []byte {
	const (
		invalidArgument = 3
		typeURL         = "type.googleapis.com/google.rpc.BadRequest"
	)
	message = fitMessage(message)
	dst = AppendStatus(dst, enc, invalidArgument, message)
	if enc == JSON {
		dst = append(dst[:len(dst)-1], `,"details":[{"@type":"`+typeURL+`","fieldViolations":[{"description":`...)
		return append(appendJSONString(dst, message), "}]}]}"...)
	}
	violation := appendStringField(nil, 2, message)
	detail := appendStringField(nil, 1, string(violation))
	wrapped := appendStringField(appendStringField(nil, 1, typeURL), 2, string(detail))
	return appendStringField(dst, 3, string(wrapped))
}

func fitMessage(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= MaxMessage {
		return s
	}
	n := MaxMessage
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
