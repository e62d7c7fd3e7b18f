package ingest

import (
	"encoding/json"
	"strings"
	"testing"

	"flowstate.inc/sluice/auth"
)

// TestCloudEventByHeaders sends an event in binary mode, as most libraries for CloudEvents do by default; the same in structured
// mode is the same signal.
func TestCloudEventByHeaders(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	headers := []string{"x-flowstate-key", key, "Content-Type", "application/json", "Ce-Specversion", "1.0", "ce-id", "e-1", "CE-Source", "/budget", "ce-type", "forecast_breach"}
	ask := func(want int, body string, headers ...string) signalsAnswer {
		t.Helper()
		a := e.send("POST", "/v1/signals", []byte(body), headers...)
		var s signalsAnswer
		if a.code != want || want != 415 && json.Unmarshal(a.body, &s) != nil {
			t.Fatalf("%s, want %d", a, want)
		}
		return s
	}
	if s := ask(200, `{"amount":7}`, headers...); s.Accepted != 1 {
		t.Errorf("binary: %+v", s)
	}
	structured := `{"specversion":"1.0","id":"e-1","source":"/budget","type":"forecast_breach","data":{"amount":7}}`
	if s := ask(200, structured, "x-flowstate-key", key, "Content-Type", "application/cloudevents+json", "ce-specversion", "1.0", "ce-id", "other"); s.Accepted != 1 {
		t.Errorf("structured: %+v", s)
	}
	if s := ask(400, `{}`, "x-flowstate-key", key, "Content-Type", "application/json", "ce-specversion", "1.0", "ce-source", "/x", "ce-type", "a"); len(s.Invalid) != 1 {
		t.Errorf("without an id: %+v", s)
	}
	ask(415, `<a/>`, "x-flowstate-key", key, "Content-Type", "text/xml", "ce-specversion", "1.0", "ce-id", "e-3", "ce-source", "/x", "ce-type", "a")
	events := read(t, e.brokers, e.topics.Signals, 2)
	ids := map[string]bool{}
	for _, r := range events {
		var ev struct {
			ID      string
			Type    string
			Details map[string]any
		}
		if err := json.Unmarshal(r.Value, &ev); err != nil || ev.Type != "forecast_breach" || ev.Details["amount"] != 7.0 {
			t.Errorf("%s %v", r.Value, err)
		}
		ids[ev.ID] = true
	}
	if len(ids) != 1 {
		t.Errorf("one event in two modes is %d signals", len(ids))
	}
	e.balanced()
}

// TestMisspeltSignalAttribute is accepted, loses nothing, and its sender hears of it in what OTLP calls a warning.
func TestMisspeltSignalAttribute(t *testing.T) {
	e := startEdge(t)
	key := e.add(service(auth.Production))
	a := e.send("POST", "/v1/logs", []byte(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[
		{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"pii_detected"}},{"key":"signal.severty","value":{"stringValue":"BLOCK"}}]},
		{"eventName":"flowstate.signal","attributes":[{"key":"signal.type","value":{"stringValue":"pii_detected"}},{"key":"score","value":{"doubleValue":0.5}}]}]}]}]}`),
		"Content-Type", "application/json", "x-flowstate-key", key)
	var said struct {
		PartialSuccess struct {
			RejectedLogRecords json.RawMessage
			ErrorMessage       string
		}
	}
	if err := json.Unmarshal(a.body, &said); err != nil || a.code != 200 {
		t.Fatalf("%s %v", a, err)
	}
	if m := said.PartialSuccess.ErrorMessage; said.PartialSuccess.RejectedLogRecords != nil || !strings.Contains(m, `warning: pii_detected × 1 (unknown_attribute): attribute "signal.severty"`) {
		t.Errorf("%s", a.body)
	}
	kept := ""
	for _, r := range read(t, e.brokers, e.topics.Signals, 2) {
		kept += string(r.Value)
	}
	if !strings.Contains(kept, `"signal.severty":"BLOCK"`) {
		t.Errorf("the attribute is gone: %s", kept)
	}
	e.balanced()
}
