package signals

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"flowstate.inc/sluice/auth"
)

var update = flag.Bool("update", false, "write the golden events anew")

var schema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(Schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(EventSchema, doc); err != nil {
		return nil, err
	}
	return c.Compile(EventSchema)
})

// conforms checks an event against the published schema.
func conforms(t testing.TB, e *Event) {
	t.Helper()
	conformsJSON(t, e.AppendJSON(nil))
}

func conformsJSON(t testing.TB, value []byte) {
	t.Helper()
	s, err := schema()
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
	if err != nil {
		t.Fatalf("%s: %v", value, err)
	}
	if err := s.Validate(v); err != nil {
		t.Errorf("%s: %v", value, err)
	}
}

// golden makes one event of each type, and one of each sort of subject.
func golden(t *testing.T) map[string]*Event {
	t.Helper()
	sa := service("sa_01", "nightly-digest-summariser", "production", true)
	dev := service("sa_02", "evaluation \"harness\" <é>", "development", false)
	tax := testTaxonomy(t, TaxonomyConfig{})
	d := testDecider(t, DeciderConfig{}, sa, dev)
	withRule := testDecider(t, DeciderConfig{Policy: func(*Event) *RuleRef { return &RuleRef{3, "pii-in-prompts", ActionBlock} }}, sa, dev)
	events := map[string]*Event{}
	add := func(name string, d *Decider, p *auth.Principal, body string) {
		t.Helper()
		r := one(t, "application/json", body)
		v := d.Decide(t.Context(), p, &r, received)
		if v.Event == nil {
			t.Fatalf("%s: %+v", name, v)
		}
		events[name] = v.Event
	}
	for _, st := range tax.Types() {
		p := sa
		if st.AppliesTo == Persons {
			p = person()
		}
		add(st.Type, d, p, `{"type":"`+st.Type+`","id":"`+st.Type+`-1","detected_at":"2026-11-23T22:40:11.25Z","session_id":"sess-42","details":{"note":"golden","n":1.50}}`)
	}
	add("unknown_type", d, sa, `{"type":"Moon-Phase","id":"1"}`)
	add("subject_person", d, person(), `{"type":"pii_detected","id":"1"}`)
	add("subject_detector", d, detector(), `{"type":"monitoring_gap","id":"1"}`)
	add("subject_named_person", d, detector(), `{"type":"personal_use_company_account","id":"1","subject":{"kind":"person","id":"usr_ada"}}`)
	add("subject_named_account", d, detector(), `{"type":"forecast_breach","id":"1","subject":{"kind":"service_account","name":"nightly-digest-summariser","environment":"production"}}`)
	add("subject_session", d, detector(), `{"type":"off_topic_production","id":"1","subject":{"kind":"session","id":"sess-42","owner":{"kind":"service_account","id":"sa_01"}}}`)
	add("subject_turn_of_person", d, detector(), `{"type":"personal_use_company_account","id":"1","subject":{"kind":"turn","id":"turn-7","owner":{"kind":"person","id":"usr_ada"}}}`)
	add("subject_session_without_owner", d, detector(), `{"type":"monitoring_gap","id":"1","subject":{"kind":"session","id":"sess-42"}}`)
	add("capped_in_development", d, dev, `{"type":"pii_detected","severity":"BLOCK","id":"1"}`)
	add("set_by_rule", withRule, dev, `{"type":"pii_detected","severity":"INFO","id":"1"}`)
	return events
}

func TestGoldenEvents(t *testing.T) {
	dir := filepath.Join("testdata", "events")
	events := golden(t)
	for name, e := range events {
		conforms(t, e)
		var got bytes.Buffer
		if err := json.Indent(&got, e.AppendJSON(nil), "", "  "); err != nil {
			t.Fatal(err)
		}
		got.WriteByte('\n')
		path := filepath.Join(dir, name+".json")
		if *update {
			if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v (go test ./signals -run Golden -update writes it)", err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s is now\n%s", path, got.Bytes())
		}
		conformsJSON(t, want)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".json"); events[name] == nil {
			t.Errorf("%s is of no event", f)
		}
	}
}

// What AppendJSON writes, encoding/json reads back as the same event: the tags and the hand-written form are one schema.
func TestEventRoundTrip(t *testing.T) {
	for name, e := range golden(t) {
		var back Event
		if err := json.Unmarshal(e.AppendJSON(nil), &back); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := *e
		if len(want.Details) == 0 {
			want.Details = json.RawMessage("{}")
		}
		if !reflect.DeepEqual(back, want) {
			t.Errorf("%s: read back as\n%+v, want\n%+v", name, back, want)
		}
		whole, err := json.Marshal(e)
		if err != nil || !json.Valid(whole) {
			t.Errorf("%s: %s %v", name, whole, err)
		}
	}
}

func TestEventOnTheWire(t *testing.T) {
	e := golden(t)["forecast_breach"]
	if got := string(e.Key()); got != "acme/service_account/sa_01" {
		t.Errorf("key %q", got)
	}
	want := map[string]string{"ce_specversion": "1.0", "ce_id": e.ID, "ce_source": "/orgs/acme", "ce_type": "inc.flowstate.signal.v1",
		"ce_subject": "service: nightly-digest-summariser / production", "ce_time": "2026-11-23T22:40:11.25Z", "ce_dataschema": EventSchema, "content-type": "application/json"}
	hs := e.Headers()
	if len(hs) != len(want) {
		t.Errorf("%d headers, want %d", len(hs), len(want))
	}
	for _, h := range hs {
		if want[h.Key] != string(h.Value) {
			t.Errorf("header %s is %q, want %q", h.Key, h.Value, want[h.Key])
		}
	}
	if bytes.ContainsAny(e.AppendJSON(nil), "\n\r") {
		t.Error("an event is more than one line")
	}
}

func TestAppendString(t *testing.T) {
	for _, s := range []string{"", "plain", `q"b\`, "a\nb\r\t\x00\x1f\x7f", "é€😀", "<&>", "\u2028", "a\xffb\xc3", "\xed\xa0\x80"} {
		var back string
		if err := json.Unmarshal(appendString(nil, s), &back); err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		if want := strings.ToValidUTF8(s, "\ufffd"); back != want && s != "\xed\xa0\x80" {
			t.Errorf("%q reads back as %q", s, back)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	d, err := NewDecider(DeciderConfig{})
	if err != nil {
		b.Fatal(err)
	}
	body := []byte(`{"type":"forecast_breach","severity":"WARN","detected_at":"2026-11-23T22:40:11.25Z","session_id":"sess-42","details":{"budget":"llm","spent":12.5,"limit":10}}`)
	p := service("sa_1", "digest", "production", true)
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		rs, err := ParseRequest("application/json", body, "", Limits{})
		if err != nil {
			b.Fatal(err)
		}
		v := d.Decide(b.Context(), p, &rs[0], time.Time{})
		buf = v.Event.AppendJSON(buf[:0])
	}
}
