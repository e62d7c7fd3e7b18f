package signals

import (
	"strings"
	"testing"

	"flowstate.inc/sluice/auth"
)

func TestKeysAreCutToTheirPrefix(t *testing.T) {
	if !strings.HasSuffix(auth.KeyPattern, keySecret) {
		t.Fatalf("auth.KeyPattern is %s now", auth.KeyPattern)
	}
	tokens := []string{}
	for _, k := range []auth.Kind{auth.KindServiceAccount, auth.KindPerson, auth.KindDetector} {
		raw, _ := auth.MintKey(k)
		tokens = append(tokens, raw)
	}
	raw, _ := auth.MintAdminToken()
	for _, raw := range append(tokens, raw) {
		secret := raw[len("fsk_")+12:]
		r := one(t, "", `{"type":"api_key_in_prompt","id":"`+raw+`","session_id":"`+raw+`","subject":{"kind":"person","id":"`+raw+`"},"details":{"found":"x`+raw+`y","`+raw+`":1}}`)
		e := Event{SourceID: r.SourceID, SessionID: r.SessionID, Subject: EventSubject{ID: r.Subject.ID}, Details: r.Details}
		b := string(e.AppendJSON(nil))
		if r.Fault != nil || strings.Contains(b, secret) || strings.Count(b, raw[:16]+"_[redacted]") != 5 {
			t.Errorf("%v %s", r.Fault, b)
		}
		l := FromLogRecord(attrs("signal.type", `"a"`, "x", `"`+raw+`"`, "session.id", `"`+raw+`"`), 1, 0, nil, 0, &Ordinals{}, Limits{})
		if l.Fault != nil || strings.Contains(string(l.Details)+l.SessionID, secret) {
			t.Errorf("%+v", l)
		}
	}
	for _, s := range []string{"", "fsk_", "fsk_abcdefghijkl", "fsk_abcdefghijkl_short", "plain"} {
		if redact(s) != s {
			t.Errorf("%q is cut to %q", s, redact(s))
		}
	}
}
