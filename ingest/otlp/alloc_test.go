//go:build !race

package otlp

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
)

func TestAllocations(t *testing.T) {
	badge := testBadge()
	dst := make([]byte, 0, 1<<20)
	ceiling := func(name string, want float64, do func() error) {
		t.Helper()
		if got := testing.AllocsPerRun(100, func() {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}); got > want {
			t.Errorf("%s: %v allocations, at most %v", name, got, want)
		}
	}
	var r Rewriter
	visitor := Visitor{Drop: func([]byte) bool { return true }, Visit: func(*SignalRecord) { t.Error("visited") }}
	for _, kind := range kinds {
		body := marshal(t, agentRequest(kind, 20))
		ceiling("Rewrite "+kind.String(), 0, func() error {
			_, _, err := r.Rewrite(dst, kind, body, badge, visitor)
			return err
		})
		src := otlpJSON(t, agentRequest(kind, 20), protojson.MarshalOptions{}, hex.EncodeToString)
		ceiling("JSONToProto "+kind.String(), 0, func() error {
			_, err := JSONToProto(dst, kind, src)
			return err
		})
		ceiling("AppendExportResponse "+kind.String(), 0, func() error {
			AppendExportResponse(dst, kind, JSON, 3, "three were filtered")
			return nil
		})
	}
	forged := agentLogs(20)
	forged.ResourceLogs[0].ScopeLogs[0].LogRecords[7].Attributes[0].Key = "flowstate.org"
	body := marshal(t, forged)
	ceiling("Rewrite of a forged body", 0, func() error {
		_, _, err := r.Rewrite(dst, Logs, body, badge, visitor)
		return err
	})
	signal := agentLogs(20)
	for _, rec := range signal.ResourceLogs[0].ScopeLogs[0].LogRecords[7:9] {
		rec.Attributes[0], rec.Attributes[1] = str("event.name", signalEvent), str("signal.type", "personal_use_company_account")
	}
	withSignals := marshal(t, signal)
	ceiling("Rewrite of a body with signals that are dropped", 0, func() error {
		_, _, err := r.Rewrite(dst, Logs, withSignals, badge, visitor)
		return err
	})
	ceiling("Rewrite of a body with signals that are decoded", 2, func() error { // the keys of each
		_, _, err := r.Rewrite(dst, Logs, withSignals, badge, Visitor{Visit: func(*SignalRecord) {}})
		return err
	})
}
