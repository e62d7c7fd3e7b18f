package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest"
)

// A misuse that could not be raised does not keep the fleet from raising the next.
func TestMisuseThatCouldNotBeRaised(t *testing.T) {
	client, err := auth.OpenRedis("redis://" + miniredis.RunT(t).Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	p := &process{log: slog.New(slog.DiscardHandler), redis: client}
	m := misuse{rec: auth.Record{Prefix: "fsk_000000000001"}}
	raised := 0
	for _, err := range []error{errors.New("Kafka is away"), nil, nil} {
		p.raiseFirst(t.Context(), m, func(context.Context, auth.Record, netip.Addr) error {
			raised++
			return err
		})
	}
	if raised != 2 {
		t.Errorf("raised %d times, want once in vain and once", raised)
	}
}

// sluice tail --refused through one process shows each refusal once, though a sender gives all its requests one id.
func TestRefusalsOfOneRequestID(t *testing.T) {
	now := time.Now().UTC()
	items := []ingest.Refused{
		{At: now, Seq: 1, Reason: "revoked", RequestID: "mine"}, {At: now, Seq: 2, Reason: "revoked", RequestID: "mine"},
		{At: now, Seq: 2, Reason: "unknown_key", RequestID: "mine"},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"items": items})
	}))
	defer server.Close()
	lines, err := refusedByOps(server.URL)(t.Context(), time.Time{}, 10)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, l := range lines {
		seen[l.id] = true
	}
	if len(lines) != 3 || len(seen) != 3 {
		t.Errorf("%d lines with %d ids: %v", len(lines), len(seen), seen)
	}
}
