package signals

import (
	"bytes"
	"regexp"

	"flowstate.inc/sluice/auth"
)

// keys finds whole keys and admin tokens of ours; its first group is the prefix, which may be shown.
var keys = regexp.MustCompile(`(` + auth.KeyPattern[:len(auth.KeyPattern)-len(keySecret)] + `)` + keySecret)

// keySecret is the end of auth.KeyPattern, after the prefix; a test holds the two together.
const keySecret = `_[0-9A-Za-z]{49}`

// redact cuts every key of ours that stands in a text to its prefix: a detector that finds one in a prompt may well send it
// as it was, and no store, topic or page may have it.
func redact(s string) string {
	if !hasKey([]byte(s)) {
		return s
	}
	return keys.ReplaceAllString(s, "${1}_[redacted]")
}

// Redact is redact, for what another package of this room sends or keeps.
func Redact(s string) string { return redact(s) }

// redactBytes is redact for JSON, where a key stands as it is: its characters need no escape.
func redactBytes(b []byte) []byte {
	if !hasKey(b) {
		return b
	}
	return keys.ReplaceAll(b, []byte("${1}_[redacted]"))
}

// hasKey is a cheap look before the expensive one.
func hasKey(b []byte) bool {
	for _, tag := range [...]string{"fsk_", "fpk_", "fdk_", "fat_"} {
		if bytes.Contains(b, []byte(tag)) {
			return true
		}
	}
	return false
}
