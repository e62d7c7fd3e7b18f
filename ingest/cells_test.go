package ingest

import (
	"encoding/json"
	"fmt"
	"testing"

	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// everyType is the taxonomy in the words of the design: the base severity, and what is special about the type.
var everyType = []struct{ name, base, special string }{
	{"pii_detected", "WARN", ""},
	{"secret_detected", "WARN", ""},
	{"api_key_in_prompt", "WARN", ""},
	{"customer_data_pattern", "WARN", ""},
	{"banned_content_pattern", "WARN", ""},
	{"brand_violation", "WARN", ""},
	{"off_topic_production", "WARN", ""},
	{"personal_use_company_account", "WARN", "persons only"},
	{"abuse_pattern", "WARN", "abuse detection"},
	{"wasteful_prompting", "INFO", ""},
	{"forecast_breach", "WARN", ""},
	{"monitoring_gap", "WARN", ""},
	{"model_regression_signal", "WARN", ""},
	{"auth_context_mismatch", "WARN", "never capped"},
	{"key_misuse_detected", "WARN", "never capped"},
	{"nobody_has_declared_this", "WARN", ""},
}

// softened is what an environment makes of a severity, cell by cell.
var softened = map[string]map[string]string{
	auth.Production:  {"INFO": "INFO", "WARN": "WARN", "BLOCK": "BLOCK"},
	auth.Staging:     {"INFO": "INFO", "WARN": "WARN", "BLOCK": "WARN"},
	auth.Development: {"INFO": "INFO", "WARN": "INFO", "BLOCK": "INFO"},
}

// A cell is one signal of the table, and what must become of it.
type cell struct {
	typ, raised     string // raised "": the sender names no severity
	filtered        string // the reason; "": it is accepted
	base, effective string
}

// cellsOf are the cells of one sender: every type, without a severity and as a BLOCK.
func cellsOf(p auth.Principal) []cell {
	var cells []cell
	for _, typ := range everyType {
		for _, raised := range []string{"", "BLOCK"} {
			c := cell{typ: typ.name, raised: raised, base: typ.base}
			if raised != "" {
				c.base = raised
			}
			c.effective = c.base
			if p.Kind == auth.KindServiceAccount {
				switch {
				case typ.special == "persons only":
					c.filtered = "applies_to_persons_only"
				case typ.special == "abuse detection" && !p.AbuseDetection:
					c.filtered = "abuse_detection_off"
				case typ.special != "never capped":
					c.effective = softened[p.Environment][c.base]
				}
			}
			cells = append(cells, c)
		}
	}
	return cells
}

// TestEveryCellOverBothEntrances is the table of type × kind of subject × abuse detection × environment, through an edge and to Kafka. A person has neither
// environment nor abuse detection: whatever a record says of them changes nothing.
func TestEveryCellOverBothEntrances(t *testing.T) {
	e := startEdge(t)
	rows := map[string]bool{}
	for _, typ := range everyType {
		rows[typ.name] = true
	}
	for _, typ := range e.edge.cfg.Decider.Taxonomy().Types() {
		if !rows[typ.Type] {
			t.Errorf("the table has no row for %s", typ.Type)
		}
	}

	wanted, senders := map[string]cell{}, map[string]auth.Principal{} // by the sender's id of the signal
	for _, kind := range []auth.Kind{auth.KindServiceAccount, auth.KindPerson} {
		for _, abuse := range []bool{true, false} {
			for environment := range softened {
				p := service(environment)
				p.Kind, p.AbuseDetection = kind, abuse
				p.ID = fmt.Sprintf("%s-%s-%v", kind, environment, abuse)
				key, cells := e.add(p), cellsOf(p)
				for entrance, send := range map[string]func(string, []string, []cell){"json": e.sendCells, "otlp": e.sendCellRecords} {
					ids := make([]string, len(cells))
					for i, c := range cells {
						ids[i] = fmt.Sprintf("%s/%s/%s/%s", entrance, p.ID, c.typ, c.raised)
						wanted[ids[i]], senders[ids[i]] = c, p
					}
					send(key, ids, cells)
				}
			}
		}
	}
	if want := 2 * 2 * 2 * 3 * 2 * len(everyType); len(wanted) != want {
		t.Fatalf("%d cells, want %d", len(wanted), want)
	}

	arrived := map[string]bool{}
	for _, r := range read(t, e.brokers, e.topics.Signals, 1) {
		ev, err := signals.DecodeEvent(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		id := ev.SourceID
		c, known := wanted[id]
		if !known || c.filtered != "" || arrived[id] {
			t.Errorf("%q is in Kafka; known %v, filtered %q, twice %v", id, known, c.filtered, arrived[id])
			continue
		}
		arrived[id] = true
		if ev.Type != c.typ || string(ev.BaseSeverity) != c.base || string(ev.Severity) != c.effective || ev.Rule != nil {
			t.Errorf("%s: %s, base %s, effective %s by %+v; want %s and %s", id, ev.Type, ev.BaseSeverity, ev.Severity, ev.Rule, c.base, c.effective)
		}
		checkServiceBadge(t, id, ev, senders[id])
	}
	for id, c := range wanted {
		if c.filtered == "" && !arrived[id] {
			t.Errorf("%s was accepted and is not in Kafka", id)
		}
	}
	if left := read(t, e.brokers, e.topics.Logs, 0); len(left) > 0 {
		t.Errorf("%d messages with signals were left in the logs", len(left))
	}
	e.balanced()
}

// checkServiceBadge holds an event to the badge of a service, whole, and a person's to having none.
func checkServiceBadge(t *testing.T, id string, ev *signals.Event, p auth.Principal) {
	t.Helper()
	if string(p.Kind) != ev.Subject.Kind || ev.Subject.ID != p.ID {
		t.Errorf("%s: its subject is %+v", id, ev.Subject)
	}
	if p.Kind == auth.KindPerson {
		if ev.Service != nil {
			t.Errorf("%s: a person wears the badge %+v", id, ev.Service)
		}
		return
	}
	want := signals.EventService{ID: p.ID, Name: p.Name, Environment: p.Environment, Description: p.Description, IntendedScope: p.IntendedScope,
		AbuseDetection: p.AbuseDetection, Team: p.Team, CostCentre: p.CostCentre}
	if ev.Service == nil || *ev.Service != want || ev.Subject.Label != "service: "+p.Name+" / "+p.Environment {
		t.Errorf("%s: %q wears the badge %+v, want %+v", id, ev.Subject.Label, ev.Service, want)
	}
}

// sendCells posts the cells as one array of signals, and holds the answer to them by index.
func (e *testEdge) sendCells(key string, ids []string, cells []cell) {
	e.t.Helper()
	items := make([]map[string]string, len(cells))
	filtered := map[int]string{}
	for i, c := range cells {
		items[i] = map[string]string{"type": c.typ, "id": ids[i]}
		if c.raised != "" {
			items[i]["severity"] = c.raised
		}
		if c.filtered != "" {
			filtered[i] = c.filtered
		}
	}
	body, err := json.Marshal(items)
	if err != nil {
		e.t.Fatal(err)
	}
	a, got := e.signals(key, string(body))
	said := map[int]string{}
	for _, f := range got.Filtered {
		said[f.Index] = string(f.Reason)
	}
	if a.code != 200 || got.Accepted != len(cells)-len(filtered) || fmt.Sprint(said) != fmt.Sprint(filtered) {
		e.t.Errorf("%s…: want %v filtered, not %s", ids[0], filtered, a)
	}
}

// sendCellRecords exports the cells as log records in protobuf, and holds the partial success to them. It names types, so those of a type must share a fate.
func (e *testEdge) sendCellRecords(key string, ids []string, cells []cell) {
	e.t.Helper()
	var records []*logs.LogRecord
	want, rejected := "", int64(0)
	for i, c := range cells {
		attrs := []string{"signal.type", c.typ, "signal.id", ids[i], "signal.severity", c.raised}
		if c.raised == "" {
			attrs = attrs[:4]
		}
		r := logRecord("flowstate.signal")
		for n := 0; n < len(attrs); n += 2 {
			r.Attributes = append(r.Attributes, str(attrs[n], attrs[n+1]))
		}
		records = append(records, r)
		if c.filtered == "" {
			continue
		}
		if rejected++; c.raised == "" { // once a type
			if want != "" {
				want += "; "
			}
			want += "filtered: " + c.typ + " × 2 (" + c.filtered + ")"
		}
	}
	a := e.send("POST", "/v1/logs", marshal(e.t, logsRequest(records...)), "Content-Type", "application/x-protobuf", "x-flowstate-key", key)
	var res collogs.ExportLogsServiceResponse
	if err := proto.Unmarshal(a.body, &res); err != nil {
		e.t.Fatal(err)
	}
	if a.code != 200 || res.PartialSuccess.GetRejectedLogRecords() != rejected || res.PartialSuccess.GetErrorMessage() != want {
		e.t.Errorf("%s…: want %q, not %s", ids[0], want, a)
	}
}
