package otlp

import (
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// A badge is what Sluice says about the sender: encoded `attributes` fields of a Resource, ready to be spliced in. It is
// built once per principal and appended to per request:
//
//	badge := otlp.AppendBadgeString(nil, "flowstate.org", p.Org)
//	badge = otlp.AppendBadgeBool(badge, "flowstate.service_account.abuse_detection", true)

// AppendBadgeString appends the attribute key=value to the badge dst. Bytes of either that are not UTF-8 become U+FFFD,
// because one such byte would make every payload that wears the badge unreadable.
func AppendBadgeString(dst []byte, key, value string) []byte {
	value = readable(value)
	dst = appendBadgeKey(dst, key, 1+sizeUvarint(uint64(len(value)))+len(value))
	return appendStringField(dst, 1, value)
}

// AppendBadgeBool appends the attribute key=value to the badge dst.
func AppendBadgeBool(dst []byte, key string, value bool) []byte {
	dst = appendBadgeKey(dst, key, 2)
	if value {
		return append(dst, tagBool, 1)
	}
	return append(dst, tagBool, 0)
}

// appendBadgeKey writes a KeyValue up to the content of its AnyValue, which will have size bytes.
func appendBadgeKey(dst []byte, key string, size int) []byte {
	key = readable(key)
	keySize := 1 + sizeUvarint(uint64(len(key))) + len(key)
	dst = appendTag(dst, 1, wireBytes)
	dst = binary.AppendUvarint(dst, uint64(keySize+1+sizeUvarint(uint64(size))+size))
	dst = appendStringField(dst, 1, key)
	dst = append(dst, tagValue)
	return binary.AppendUvarint(dst, uint64(size))
}

// readable is s in UTF-8. Nearly always it is already, which is found out eight bytes at a time.
func readable(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
