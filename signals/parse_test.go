package signals

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

func parse(t *testing.T, contentType, body string) []Raised {
	t.Helper()
	buf := []byte(body)
	items, err := ParseRequest(contentType, buf, "", Limits{})
	if err != nil {
		t.Fatalf("ParseRequest(%s): %v", body, err)
	}
	for i := range buf {
		buf[i] = 0xdb // whoever kept a piece of the body now reads junk
	}
	for i := range items {
		if items[i].Index != i {
			t.Fatalf("item %d has index %d", i, items[i].Index)
		}
	}
	return items
}

func one(t *testing.T, contentType, body string) Raised {
	t.Helper()
	items := parse(t, contentType, body)
	if len(items) != 1 {
		t.Fatalf("%s: %d items, want 1", body, len(items))
	}
	return items[0]
}

func TestParseItem(t *testing.T) {
	r := one(t, "application/json; charset=UTF-8", ` {"type":" PII-detected","severity":"block","id":"s-1","detected_at":"2026-11-23T23:40:12.5+01:00",
		"subject":{"kind":"session","id":"sess","owner":{"kind":"person","id":"ada"}},"session_id":"sess-9",
		"details":{"n": 1.50, "deep": {"a": [1, 2, {"b": "\u00e9<"}]}, "big": 12345678901234567890}} `)
	if r.Fault != nil {
		t.Fatal(*r.Fault)
	}
	if r.Type != "pii_detected" || r.Sent != " PII-detected" || r.Severity != Block || r.SourceID != "s-1" || r.SessionID != "sess-9" {
		t.Errorf("got %+v", r)
	}
	if want := time.Date(2026, 11, 23, 22, 40, 12, 5e8, time.UTC); !r.DetectedAt.Equal(want) || r.DetectedAt.Location() != time.UTC {
		t.Errorf("detected_at is %v", r.DetectedAt)
	}
	if r.Subject.Kind != "session" || r.Subject.ID != "sess" || *r.Subject.Owner != (OwnerRef{"person", "ada"}) {
		t.Errorf("subject is %+v", r.Subject)
	}
	if want := `{"n":1.50,"deep":{"a":[1,2,{"b":"\u00e9<"}]},"big":12345678901234567890}`; string(r.Details) != want {
		t.Errorf("details are %s", r.Details)
	}
	nulls := one(t, "", `{"type":"a","severity":null,"id":null,"detected_at":null,"subject":null,"session_id":null,"details":null}`)
	if nulls.Fault != nil || nulls.Subject != nil || nulls.Details != nil {
		t.Errorf("nulls: %+v", nulls)
	}
}

func TestParseShapes(t *testing.T) {
	f := func(contentType, body string, want ...string) {
		t.Helper()
		var got []string
		for _, r := range parse(t, contentType, body) {
			if r.Fault != nil {
				got = append(got, string(r.Fault.Reason))
				continue
			}
			got = append(got, r.Type)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s %s: %v, want %v", contentType, body, got, want)
		}
	}
	f("application/json", `[]`)
	f("application/json", `[{"type":"a"},{"type":"b"}]`, "a", "b")
	f("application/json", " [ {\"type\":\"a\"} ,\n 5, \"x\", null, [], {} ] ", "a", "malformed", "malformed", "malformed", "malformed", "bad_type")
	f("application/json", "\ufeff{\"type\":\"a\"}", "a")
	f("application/json", "{\"type\":\"a\"}\n{\"type\":\"b\"}\n", "a", "b")
	f("application/json", "{\"type\":\"a\"}\r\n\r\n{\"type\":}\n", "a", "malformed")
	f("application/x-ndjson", "{\"type\":\"a\"}\n\nnot json\n[1]\n{\"type\":\"b\"}", "a", "malformed", "malformed", "b")
	f("application/x-ndjson", "{\"type\":\"a\"}\n{\"type\":\"\xff\"}", "a", "malformed")
}

func TestParseFaults(t *testing.T) {
	f := func(body string, reason Reason, detail string) {
		t.Helper()
		r := one(t, "application/json", body)
		if r.Fault == nil {
			t.Errorf("%s passes as %+v", body, r)
			return
		}
		if r.Fault.Reason != reason || !strings.Contains(r.Fault.Detail, detail) {
			t.Errorf("%s: %+v, want %s with %q", body, *r.Fault, reason, detail)
		}
	}
	f(`{}`, BadType, "missing")
	f(`{"type":7}`, BadType, "string")
	f(`{"type":null}`, BadType, "string")
	f(`{"type":["a"]}`, BadType, "string")
	f(`{"type":""}`, BadType, "not a type")
	f(`{"type":"personal_use\u200b_company_account"}`, BadType, `\u200b`)
	f(`{"type":"a","type":"a"}`, DuplicateField, "type")
	f(`{"type":"a","\u0074ype":"personal_use_company_account"}`, DuplicateField, "type")
	f(`{"t\u0079pe":"a","type":"b"}`, DuplicateField, "type")
	f(`{"type":"a","severity":"INFO","severity":"BLOCK"}`, DuplicateField, "severity")
	f(`{"type":"a","subject":{"kind":"person","\u006bind":"session"}}`, DuplicateField, "subject.kind")
	f(`{"type":"a","subject":{"kind":"session","id":"1","owner":{"id":"1","id":"2"}}}`, DuplicateField, "subject.owner.id")
	f(`{"type":"a","details":{"x":{"y":1,"\u0079":2}}}`, DuplicateField, "y")
	f(`{"type":"a","Type":"b"}`, Malformed, `unknown member "Type"`)
	f(`{"type":"a","serverity":"BLOCK"}`, Malformed, `unknown member "serverity"`)
	f(`{"type":"a","subject":{"king":"person"}}`, Malformed, "king")
	f(`{"type":"a","subject":{"owner":{"name":"person"}}}`, Malformed, "name")
	f(`{"type":"a","severity":"LOUD"}`, BadSeverity, "LOUD")
	f(`{"type":"a","severity":3}`, BadSeverity, "string")
	f(`{"type":"a","id":3}`, Malformed, "id must be a string")
	f(`{"type":"a","id":""}`, Malformed, "empty")
	f(`{"type":"a","id":"a\u0000b"}`, Malformed, "cannot be shown")
	f(`{"type":"a","id":"`+strings.Repeat("x", 257)+`"}`, Malformed, "256")
	f(`{"type":"a","detected_at":"yesterday"}`, Malformed, "RFC 3339")
	f(`{"type":"a","detected_at":"1969-12-31T23:59:59Z"}`, Malformed, "RFC 3339")
	f(`{"type":"a","detected_at":1700000000}`, Malformed, "string")
	f(`{"type":"a","subject":"me"}`, BadSubject, "object")
	f(`{"type":"a","subject":{"kind":5}}`, BadSubject, "subject.kind")
	f(`{"type":"a","subject":{"kind":"session","owner":[]}}`, BadSubject, "owner")
	f(`{"type":"a","details":[1]}`, Malformed, "object")
	f(`{"type":"a","details":"x"}`, Malformed, "object")
	f(`{"type":"a","details":`+strings.Repeat(`{"a":`, 32)+`{}`+strings.Repeat(`}`, 33), TooDeep, "32")
	f(`{"type":"a","details":{"a":`+strings.Repeat(`[`, 5000)+strings.Repeat(`]`, 5000)+`}}`, TooDeep, "32")
	f(`{"type":"a","details":{"a":"`+strings.Repeat("x", 256<<10)+`"}}`, TooLarge, "262144")
	f(`{"type":"a","specversion":"1.0"}`, Malformed, "cloudevents+json")
	if r := one(t, "", `{"type":"a","details":`+strings.Repeat(`{"a":`, 31)+`{}`+strings.Repeat(`}`, 32)); r.Fault != nil {
		t.Errorf("32 levels: %+v", *r.Fault)
	}
	// A faulty item still names its type, wherever that stands.
	if r := one(t, "", `{"severity":"LOUD","type":"a"}`); r.Type != "a" {
		t.Errorf("type of a faulty item is %q", r.Type)
	}
}

func TestParseRequestErrors(t *testing.T) {
	f := func(contentType, body, key string, want error) {
		t.Helper()
		items, err := ParseRequest(contentType, []byte(body), key, Limits{Items: 3})
		if !errors.Is(err, want) || items != nil {
			t.Errorf("ParseRequest(%q, %q) = %v, %v, want %v", contentType, body, items, err, want)
		}
	}
	f("application/x-www-form-urlencoded", `{"type":"a"}`, "", ErrContentType)
	f("application/json; charset=latin1", `{"type":"a"}`, "", ErrContentType)
	f(";", `{"type":"a"}`, "", ErrContentType)
	for _, body := range []string{"", " \n", "nope", "{", `"a"`, "5", "null", `{"type":"a"`, `{"type":"a"} trailing`, "{\"type\":\"a\",}\n{\"type\":\"b\"}", "\x1f\x8b\x08", strings.Repeat("[", 20_000), "[1,", "{\"a\":\"\xff\"}"} {
		f("application/json", body, "", ErrBody)
	}
	f("application/x-ndjson", "junk\nmore junk", "", ErrBody)
	f("application/cloudevents+json", `[]`, "", ErrBody)
	f("application/cloudevents-batch+json", `{}`, "", ErrBody)
	f("application/json", `{"type":"a"}`, "a\nb", ErrIdempotencyKey)
	f("application/json", `{"type":"a"}`, strings.Repeat("k", 257), ErrIdempotencyKey)
	f("application/json", `[1,2,3,4]`, "", ErrTooManyItems)
	f("application/x-ndjson", "1\n2\n3\n4", "", ErrTooManyItems)
	// What is wrong is said without repeating a body that may hold prompts.
	_, err := ParseRequest("", []byte(`{"details":{"prompt":"my secret" oops`), "", Limits{})
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestParseCloudEvents(t *testing.T) {
	const single, batch = "application/cloudevents+json; charset=utf-8", "application/cloudevents-batch+json"
	r := one(t, single, `{"specversion":"1.0","id":"ce-1","source":"/billing","type":"inc.flowstate.signal.v1","time":"2026-11-23T22:00:00Z","subject":"free text",
		"datacontenttype":"application/json","traceparent":"00-1","data":{"type":"forecast_breach","severity":"WARN","details":{"a":1}}}`)
	if r.Fault != nil || r.Type != "forecast_breach" || r.SourceID != "ce-1" || r.Severity != Warn || string(r.Details) != `{"a":1}` || r.DetectedAt.Hour() != 22 {
		t.Errorf("item as data: %+v %v", r, r.Fault)
	}
	r = one(t, single, `{"specversion":"1.0","id":"ce-1","source":"/billing","type":"Forecast-Breach","data":{"a":1}}`)
	if r.Fault != nil || r.Type != "forecast_breach" || string(r.Details) != `{"a":1}` || r.SourceID != "ce-1" {
		t.Errorf("details as data: %+v %v", r, r.Fault)
	}
	r = one(t, single, `{"specversion":"1.0","id":"ce-1","source":"/billing","type":"x.y","time":"2026-11-23T22:00:00Z","data":{"type":"a","id":"own","detected_at":"2026-11-23T21:00:00Z"}}`)
	if r.Fault != nil || r.SourceID != "own" || r.DetectedAt.Hour() != 21 {
		t.Errorf("the item's own id and time win: %+v %v", r, r.Fault)
	}
	r = one(t, single, `{"specversion":"1.0","id":"ce-1","source":"/b","type":"a","data_base64":"eyJ4IjoxfQ=="}`)
	if r.Fault != nil || string(r.Details) != `{"x":1}` {
		t.Errorf("data_base64: %+v %v", r, r.Fault)
	}
	r = one(t, single, `{"specversion":"1.0","id":"ce-1","source":"/b","type":"a","severity":"block","data":{"x":1}}`)
	if r.Fault != nil || r.Severity != Block || string(r.Details) != `{"x":1}` {
		t.Errorf("severity beside the data: %+v", r)
	}
	r = one(t, single, `{"specversion":"1.0","id":"ce-1","source":"/b","type":"x.y","severity":"WARN","data":{"type":"a","severity":"warn"}}`)
	if r.Fault != nil || r.Severity != Warn {
		t.Errorf("the same severity twice: %+v", r)
	}
	r = one(t, single, `{"specversion":"1.0","id":"ce-1","source":"/b","type":"forecast_breach"}`)
	if r.Fault != nil || r.Type != "forecast_breach" || r.Details != nil {
		t.Errorf("no data: %+v %v", r, r.Fault)
	}
	items := parse(t, batch, `[{"specversion":"1.0","id":"1","source":"/b","type":"a"},{"specversion":"1.0","id":"2","source":"/b","type":"b","data":{"k":"v"}},7]`)
	if len(items) != 3 || items[0].Type != "a" || items[1].Type != "b" || items[2].Fault == nil {
		t.Errorf("batch: %+v", items)
	}
	f := func(event string, reason Reason) {
		t.Helper()
		r := one(t, single, event)
		if r.Fault == nil || r.Fault.Reason != reason {
			t.Errorf("%s: %+v, want %s", event, r.Fault, reason)
		}
	}
	f(`{"id":"1","source":"/b","type":"a"}`, Malformed)
	f(`{"specversion":"0.3","id":"1","source":"/b","type":"a"}`, Malformed)
	f(`{"specversion":"1.0","source":"/b","type":"a"}`, Malformed)
	f(`{"specversion":"1.0","id":"1","type":"a"}`, Malformed)
	f(`{"specversion":"1.0","id":"1","source":"/b"}`, BadType)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","\u0074ype":"b"}`, DuplicateField)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","data":{"x":1},"data":{"x":2}}`, DuplicateField)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","data":{"x":1,"x":2}}`, DuplicateField)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","data":{"x":1},"data_base64":"e30="}`, DuplicateField)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"personal_use_company_account","data":{"type":"forecast_breach"}}`, DuplicateField)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"x.y","data":{"type":"a","type":"b"}}`, DuplicateField)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"x.y","severity":"BLOCK","data":{"type":"a","severity":"WARN"}}`, DuplicateField)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","severity":"high","data":{"x":1}}`, BadSeverity)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","data":"text"}`, Malformed)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","datacontenttype":"text/xml","data":{}}`, Malformed)
	f(`{"specversion":"1.0","id":"1","source":"/b","type":"a","data_base64":"%%"}`, Malformed)
}

// TestCloudEventOfTwoTypes: the event's own type, spelt with dots, is no way past the filter for the type that it names.
func TestCloudEventOfTwoTypes(t *testing.T) {
	tax := testTaxonomy(t, TaxonomyConfig{PersonsOnly: []string{"holiday_request"}})
	d := testDecider(t, DeciderConfig{Taxonomy: tax})
	for kind, want := range map[string]Outcome{
		"personal.use.company.account":     Invalid,
		"Personal.Use-Company_Account":     Invalid,
		"personal.usecompanyaccount":       Invalid,
		"holiday.request":                  Invalid, // known by configuration
		"pii.detected":                     Invalid,
		"forecast.breach":                  Accepted,
		"inc.flowstate.signal.v1":          Accepted,
		"com.example.billing.budget.alert": Accepted,
	} {
		for _, data := range []string{`"data":{"type":"forecast_breach"}`, `"data_base64":"eyJ0eXBlIjoiZm9yZWNhc3RfYnJlYWNoIn0="`} {
			r := one(t, "application/cloudevents+json", `{"specversion":"1.0","id":"1","source":"/b","type":"`+kind+`",`+data+`}`)
			if v := d.Decide(t.Context(), service("sa_1", "digest", "production", true), &r, received); v.Outcome != want || want == Invalid && v.Reason != DuplicateField {
				t.Errorf("%s beside forecast_breach: %s %s %q, want %s", kind, v.Outcome, v.Reason, v.Detail, want)
			}
		}
	}
}

func TestEventIDs(t *testing.T) {
	id := func(org, kind, subject string, r Raised) string { return eventID(org, kind, subject, r.identity) }
	items := func(contentType, body, key string) []Raised {
		t.Helper()
		rs, err := ParseRequest(contentType, []byte(body), key, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return rs
	}
	f := func(name, contentType, body, key string, stable bool) {
		t.Helper()
		seen := map[string]bool{}
		for range 2 {
			for _, r := range items(contentType, body, key) {
				seen[id("acme", "service_account", "sa_1", r)] = true
			}
		}
		n := len(items(contentType, body, key))
		want := 2 * n
		if stable {
			want = n
		}
		if len(seen) != want {
			t.Errorf("%s: %d ids over two tries of %d items, want %d", name, len(seen), n, want)
		}
		for s := range seen {
			if len(s) != 36 || s[:4] != "sig_" {
				t.Errorf("%s: id %q", name, s)
			}
		}
	}
	f("ids", "", `[{"type":"a","id":"1"},{"type":"a","id":"2"}]`, "", true)
	f("key", "", `[{"type":"a"},{"type":"a"}]`, "k-1", true)
	f("content with a time, equal items", "", `[{"type":"a","detected_at":"2026-11-23T22:00:00Z"},{"type":"a","detected_at":"2026-11-23T22:00:00Z"}]`, "", true)
	f("content without a time", "", `[{"type":"a"},{"type":"a"}]`, "", false)
	f("cloudevents", "application/cloudevents-batch+json", `[{"specversion":"1.0","id":"1","source":"/b","type":"a"},{"specversion":"1.0","id":"1","source":"/c","type":"a"}]`, "", true)

	a := items("", `{"type":"a","id":"1"}`, "")[0]
	ids := []string{id("acme", "person", "x", a), id("acme", "session", "x", a), id("acm", "eperson", "x", a), id("other", "person", "x", a), id("acme", "person", "y", a),
		id("acme", "person", "x", items("", `{"type":"a"}`, "1")[0])}
	for i, s := range ids {
		for _, other := range ids[:i] {
			if s == other {
				t.Errorf("ids collide: %v", ids)
			}
		}
	}
	own, err := NewRaised(Own{Type: KeyMisuseDetected, ID: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if id("acme", "person", "x", own) == ids[0] {
		t.Error("a workload's id can hide what Sluice raises")
	}
}

// ids are public: stores dedupe by them across versions, so their making must never change.
func TestEventIDsArePinned(t *testing.T) {
	f := func(body, key, want string) {
		t.Helper()
		rs, err := ParseRequest("", []byte(body), key, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got := eventID("acme", "service_account", "sa_1", rs[0].identity); got != want {
			t.Errorf("%s: id %s, want %s", body, got, want)
		}
	}
	f(`{"type":"a","id":"1"}`, "", "sig_de1509da1481be2af326d716c17966d4")
	f(`{"type":"a"}`, "k", "sig_5ca852996684884b3a7586836b9ef278")
	f(`{"type":"a","detected_at":"2026-11-23T22:00:00Z"}`, "", "sig_c3cf7b5cb60eedc20e8d01d660b4894d")
}

// allocated runs f three times and returns the fewest bytes that were allocated meanwhile: the Kafkas of other tests may not have ended.
func allocated(f func()) uint64 {
	least := uint64(1 << 62)
	for range 3 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
	}
	return least
}

func FuzzParseRequest(f *testing.F) {
	types := []string{"application/json", "application/x-ndjson", "application/cloudevents+json", "application/cloudevents-batch+json"}
	for _, body := range []string{
		`{"type":"a"}`, `[{"type":"a"},5,{}]`, "{\"type\":\"a\"}\n{\"type\":\"b\"}", `{"type":"a","\u0074ype":"b"}`, `{"type":"a","details":{"a":[1,{"b":null}],"c":1e9}}`,
		`{"specversion":"1.0","id":"1","source":"/b","type":"a","data":{"type":"a"}}`, `[{"specversion":"1.0","id":"1","source":"/b","type":"a","data_base64":"e30="}]`,
		`{"type":"personal_use_company_account","subject":{"kind":"session","id":"s","owner":{"kind":"person","id":"p"}}}`, "\ufeff{}", "[[[[", `{"type":"\ud800"}`,
	} {
		for i := range types {
			f.Add(byte(i), []byte(body))
		}
	}
	f.Fuzz(func(t *testing.T, which byte, body []byte) {
		lim := Limits{Items: 50, DetailsBytes: 1000, DetailsDepth: 8}
		contentType := types[int(which)%len(types)]
		kept := bytes.Clone(body)
		var items []Raised
		var err error
		// The items, of which there are 50 at most, copies of their details, and the names of an object's members, which may be of one byte.
		if n := allocated(func() { items, err = ParseRequest(contentType, body, "", lim) }); n > uint64(64*len(body)+128<<10) {
			t.Fatalf("%d bytes allocated for %d", n, len(body))
		}
		if !bytes.Equal(kept, body) {
			t.Fatal("the body was written to")
		}
		if err != nil {
			if items != nil {
				t.Fatal("an error and items")
			}
			return
		}
		before := fmt.Sprintf("%+v", items)
		for i := range body {
			body[i] = 0xdb
		}
		if fmt.Sprintf("%+v", items) != before {
			t.Fatal("an item aliases the body")
		}
		for i := range items {
			r := &items[i]
			if r.Fault != nil {
				if !knownReason(Invalid, r.Fault.Reason) || r.Fault.Detail == "" || len(r.Fault.Detail) > 1024 {
					t.Fatalf("fault %+v", *r.Fault)
				}
				continue
			}
			if name, ok := NormaliseType(r.Type); !ok || name != r.Type {
				t.Fatalf("type %q passes", r.Type)
			}
			if r.Details != nil {
				var m map[string]any
				if json.Unmarshal(r.Details, &m) != nil || len(r.Details) > 1000 || bytes.ContainsAny(r.Details, "\n") {
					t.Fatalf("details %q pass", r.Details)
				}
			}
			// Where encoding/json can read the item, both must read the same type; its answer to a member given twice
			// (the last) and to case (any) is not ours, which is why such items are faults above.
			if which%4 == 0 && kept[skipSpace(kept, 0)] == '{' && len(items) == 1 && json.Valid(kept) {
				var plain struct{ Type string }
				if err := json.Unmarshal(kept, &plain); err != nil {
					t.Fatalf("%q passes, and encoding/json says %v", kept, err)
				}
				if name, _ := NormaliseType(plain.Type); name != r.Type {
					t.Fatalf("%q has type %q, and by encoding/json %q", kept, r.Type, plain.Type)
				}
			}
		}
	})
}

func knownReason(o Outcome, reason Reason) bool {
	for _, known := range Reasons[o] {
		if known == reason {
			return true
		}
	}
	return false
}

func TestCloudEventsInBinaryMode(t *testing.T) {
	base := BinaryEvent{{"specversion", "1.0"}, {"id", "e-1"}, {"source", "/detectors/budget"}, {"type", "forecast_breach"}, {"time", "2026-11-23T22:40:12Z"}}
	read := func(e BinaryEvent, contentType, body string) (Raised, error) {
		t.Helper()
		ct, b, err := e.Request(contentType, []byte(body))
		if err != nil {
			return Raised{}, err
		}
		items, err := ParseRequest(ct, b, "", Limits{})
		if err != nil || len(items) != 1 {
			t.Fatalf("%d items of %s: %v", len(items), b, err)
		}
		return items[0], nil
	}
	structured := one(t, "application/cloudevents+json", `{"specversion":"1.0","id":"e-1","source":"/detectors/budget","type":"forecast_breach","time":"2026-11-23T22:40:12Z","data":{"amount":7}}`)
	r, err := read(base, "application/json; charset=utf-8", ` {"amount":7} `)
	if err != nil || r.Fault != nil || r.identity != structured.identity || string(r.Details) != `{"amount":7}` || !r.DetectedAt.Equal(structured.DetectedAt) {
		t.Errorf("%+v %v, want %+v", r, err, structured)
	}
	if r, err := read(base, "", ""); err != nil || r.Fault != nil || r.Type != "forecast_breach" || r.Details != nil {
		t.Errorf("without data: %+v %v", r, err)
	}
	item := append(BinaryEvent{}, base...)
	item[3].Value = "inc.flowstate.signal.v1"
	if r, err := read(item, "application/json", `{"type":"pii_detected","severity":"BLOCK","session_id":"s"}`); err != nil || r.Fault != nil || r.Type != "pii_detected" || r.Severity != Block || r.SourceID != "e-1" {
		t.Errorf("an item as data: %+v %v", r, err)
	}
	encoded := append(BinaryEvent{}, base...)
	encoded[1].Value = "caf%C3%A9%20%22x%22"
	if r, err := read(encoded, "application/json", `{}`); err != nil || r.SourceID != `café "x"` {
		t.Errorf("percent-encoded: %+v %v", r, err)
	}
	for name, e := range map[string]BinaryEvent{"twice": append(append(BinaryEvent{}, base...), BinaryAttribute{"id", "e-2"}), "no id": base[:1], "version": {{"specversion", "0.3"}}} {
		if r, err := read(e, "application/json", `{}`); err != nil || r.Fault == nil {
			t.Errorf("%s: %+v %v", name, r, err)
		}
	}
	if _, err := read(base, "text/plain", "hello"); !errors.Is(err, ErrContentType) {
		t.Errorf("text: %v", err)
	}
	if _, err := read(base, "application/json", `{"a":`); !errors.Is(err, ErrBody) {
		t.Errorf("half a body: %v", err)
	}
	if r, err := read(base, "application/json", `[{"type":"a"}]`); err != nil || r.Fault == nil {
		t.Errorf("a list: %+v %v", r, err)
	}
	if InBinary("application/cloudevents-batch+json") || InBinary("application/cloudevents+json; charset=utf-8") || !InBinary("application/json") || !InBinary("") {
		t.Error("the modes are taken for each other")
	}
}
