package signals

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// attrs makes attributes from key and JSON value in turn.
func attrs(kv ...string) []Attribute {
	var out []Attribute
	for i := 0; i < len(kv); i += 2 {
		out = append(out, Attribute{kv[i], json.RawMessage(kv[i+1])})
	}
	return out
}

func TestFromLogRecord(t *testing.T) {
	at := time.Date(2026, 11, 23, 22, 40, 12, 345, time.UTC)
	as := attrs("event.name", `"flowstate.signal"`, "signal.type", `"Forecast-Breach"`, "signal.severity", `"WARN"`, "signal.id", `"s-1"`, "session.id", `"sess"`,
		"flowstate.org", `"forged"`, "signal.subject.kind", `"session"`, "signal.subject.id", `"x"`, "signal.subject.owner.kind", `"person"`, "signal.subject.owner.id", `"ada"`,
		"budget.usd", ` 12.5`, "tags", `["a", "b"]`, "empty", ``, "quote\"d", `{"k":{"v":1}}`)
	r := FromLogRecord(as, uint64(at.UnixNano()), 1, []byte("raw"), 3, &Ordinals{}, Limits{})
	for i := range as {
		for j := range as[i].Value {
			as[i].Value[j] = 0xdb
		}
	}
	if r.Fault != nil {
		t.Fatal(*r.Fault)
	}
	if r.Index != 3 || r.Type != "forecast_breach" || r.Severity != Warn || r.SourceID != "s-1" || r.SessionID != "sess" || !r.DetectedAt.Equal(at) {
		t.Errorf("got %+v", r)
	}
	if r.Subject == nil || r.Subject.Kind != "session" || r.Subject.ID != "x" || *r.Subject.Owner != (OwnerRef{"person", "ada"}) {
		t.Errorf("subject %+v", r.Subject)
	}
	if want := `{"budget.usd":12.5,"tags":["a","b"],"empty":null,"quote\"d":{"k":{"v":1}}}`; string(r.Details) != want {
		t.Errorf("details are %s, want %s", r.Details, want)
	}
	plain := FromLogRecord(attrs("signal.type", `"a"`), 0, 0, nil, 0, &Ordinals{}, Limits{})
	if plain.Fault != nil || plain.Subject != nil || plain.Details != nil || !plain.DetectedAt.IsZero() || plain.identity.how != 0 {
		t.Errorf("plain: %+v", plain)
	}
	observed := FromLogRecord(attrs("signal.type", `"a"`), 0, uint64(at.UnixNano()), nil, 0, &Ordinals{}, Limits{})
	if !observed.DetectedAt.Equal(at) || observed.identity.how != 'c' {
		t.Errorf("observed: %+v", observed)
	}
	last := FromLogRecord(attrs("signal.type", `"a"`), 1<<64-1, 0, nil, 0, &Ordinals{}, Limits{})
	if last.DetectedAt.Year() != 2554 {
		t.Errorf("the last time of OTLP is read as %v", last.DetectedAt)
	}
}

func TestFromLogRecordFaults(t *testing.T) {
	f := func(as []Attribute, reason Reason, detail string) {
		t.Helper()
		r := FromLogRecord(as, 1, 1, nil, 0, &Ordinals{}, Limits{})
		if r.Fault == nil || r.Fault.Reason != reason || !strings.Contains(r.Fault.Detail, detail) {
			t.Errorf("%s: %+v, want %s with %q", as, r.Fault, reason, detail)
		}
	}
	f(nil, BadType, "missing")
	f(attrs("Signal.Type", `"a"`), BadType, "missing")
	f(attrs("signal.type ", `"a"`), BadType, "missing")
	f(attrs("signal.type", `7`), BadType, "string")
	f(attrs("signal.type", ``), BadType, "string")
	f(attrs("signal.type", `["pii_detected"]`), BadType, "string")
	f(attrs("signal.type", `"\u212aey"`), BadType, "not a type")
	f(attrs("signal.type", `"a"`, "signal.type", `"a"`), DuplicateField, "signal.type")
	f(attrs("signal.type", `"a"`, "x", `1`, "x", `1`), DuplicateField, "x")
	f(attrs("signal.type", `"a"`, "flowstate.x", `1`, "flowstate.x", `1`), DuplicateField, "flowstate.x")
	f(attrs("signal.type", `"a"`, "signal.severity", `"LOUD"`), BadSeverity, "LOUD")
	f(attrs("signal.type", `"a"`, "signal.severity", `17`), BadSeverity, "string")
	f(attrs("signal.type", `"a"`, "signal.id", `1`), Malformed, "signal.id")
	f(attrs("signal.type", `"a"`, "session.id", `""`), Malformed, "empty")
	f(attrs("signal.type", `"a"`, "signal.subject.kind", `1`), BadSubject, "signal.subject.kind")
	f(attrs("signal.type", `"a"`, "x", `{`), Malformed, "x")
	f(attrs("signal.type", `"a"`, "x", strings.Repeat("[", 32)+strings.Repeat("]", 32)), TooDeep, "32")
	f(attrs("signal.type", `"a"`, "x", `"`+strings.Repeat("x", 256<<10)+`"`), TooLarge, "262144")
}

func TestEqualLogRecordsHaveIDsOfTheirOwn(t *testing.T) {
	ids := func() []string {
		var o Ordinals
		var out []string
		for i := range 2 {
			r := FromLogRecord(attrs("signal.type", `"a"`), 5, 0, []byte("same"), i, &o, Limits{})
			out = append(out, eventID("acme", "person", "ada", r.identity))
		}
		return out
	}
	a, b := ids(), ids()
	if a[0] == a[1] || a[0] != b[0] || a[1] != b[1] {
		t.Errorf("ids of two equal records, twice: %v %v", a, b)
	}
}

func FuzzFromLogRecord(f *testing.F) {
	f.Add("signal.type", []byte(`"a"`), "signal.type", []byte(`"personal_use_company_account"`), "x", []byte(`{"a":1,"a":2}`), uint64(1), uint64(0))
	f.Add("signal.type", []byte(`"A b"`), "session.id", []byte(`"s"`), "signal.subject.owner.id", []byte(`"x"`), uint64(0), uint64(1<<64-1))
	f.Add("a", []byte(nil), "\xff", []byte(` 5 `), "flowstate.org", []byte(`"x"`), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, k1 string, v1 []byte, k2 string, v2 []byte, k3 string, v3 []byte, at, observed uint64) {
		as := []Attribute{{k1, v1}, {k2, v2}, {k3, v3}}
		var r Raised
		size := len(k1) + len(v1) + len(k2) + len(v2) + len(k3) + len(v3)
		if n := allocated(func() {
			r = FromLogRecord(as, at, observed, []byte("raw"), 0, &Ordinals{}, Limits{DetailsBytes: 1000, DetailsDepth: 8})
		}); n > uint64(64*size+64<<10) {
			t.Fatalf("%d bytes allocated for %d", n, size)
		}
		before := fmt.Sprintf("%+v", r)
		for _, a := range as {
			for i := range a.Value {
				a.Value[i] = 0xdb
			}
		}
		if fmt.Sprintf("%+v", r) != before {
			t.Fatal("the signal aliases an attribute")
		}
		if r.Fault != nil {
			if !knownReason(Invalid, r.Fault.Reason) || len(r.Fault.Detail) > 1024 {
				t.Fatalf("fault %+v", *r.Fault)
			}
			return
		}
		if name, ok := NormaliseType(r.Type); !ok || name != r.Type {
			t.Fatalf("type %q passes", r.Type)
		}
		if k1 == k2 || k2 == k3 || k1 == k3 {
			t.Fatal("an attribute given twice passes")
		}
		if r.Details == nil {
			return
		}
		var m map[string]json.RawMessage
		if err := json.Unmarshal(r.Details, &m); err != nil {
			t.Fatalf("details %q: %v", r.Details, err)
		}
		for name := range m {
			if strings.HasPrefix(name, "flowstate.") {
				t.Fatalf("details %q hold a badge", r.Details)
			}
		}
	})
}
