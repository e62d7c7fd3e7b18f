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
	visit := func(*SignalRecord) { t.Error("visited") }
	for _, kind := range kinds {
		body := marshal(t, agentRequest(kind, 20))
		ceiling("Rewrite "+kind.String(), 0, func() error {
			_, _, err := Rewrite(dst, kind, body, badge, visit)
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
		_, _, err := Rewrite(dst, Logs, body, badge, visit)
		return err
	})
}
