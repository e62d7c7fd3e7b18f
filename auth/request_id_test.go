package auth

import (
	"strings"
	"testing"
)

func TestUsableRequestID(t *testing.T) {
	raw, _ := MintKey(KindServiceAccount)
	admin, _ := MintAdminToken()
	for id, want := range map[string]bool{
		"a": true, "0.9_Z-": true, strings.Repeat("x", 64): true, "7f0c3f0e-8a52-4d5e-9f0e-0d7f5a3b1c2d": true,
		"": false, strings.Repeat("x", 65): false, "a b": false, "a\n": false, "ä": false, "a/b": false, "a\x00": false, `a"`: false,
		raw: false, raw[:64]: false, raw[:20]: false, raw[:16]: false, "x-" + raw[:40]: false, admin[:60]: false,
	} {
		if got := UsableRequestID(id); got != want {
			t.Errorf("%q: %v", id, got)
		}
	}
}
