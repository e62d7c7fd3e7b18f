package ingest

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"flowstate.inc/sluice/auth"
)

func refusedRequest(key string, path, agent string) *request {
	return &request{id: newRequestID(), method: []byte("POST"), path: []byte(path), key: []byte(key), userAgent: []byte(agent),
		remote: netip.MustParseAddr("192.0.2.1"), received: time.Now()}
}

func TestRefusalsAreRemembered(t *testing.T) {
	e := &Edge{}
	raw, key := auth.MintKey(auth.KindServiceAccount)
	e.note(routes["/v1/logs"], refusedRequest(raw, "/v1/logs", "job/1"), response{code: 401, reason: refusal(auth.Revoked)})
	e.note(routes["/v1/logs"], refusedRequest(raw, "/v1/logs", "job/1"), response{code: 401, reason: refusal(auth.Revoked)})
	e.note(routes["/v1/logs"], refusedRequest("nonsense", "/v1/logs", "job/1"), response{code: 401, reason: malformedKey})
	e.note(route{}, refusedRequest("", "/v1/"+raw, raw), response{code: 404, reason: unknownPath})
	e.note(routes["/v1/logs"], refusedRequest(raw, "/v1/logs", ""), response{code: 200, reason: served})
	e.note(routes["/v1/logs"], refusedRequest(raw, "/v1/logs", ""), response{code: 503, reason: kafkaAway})
	all := e.Refusals()
	if all[0].Seq == 0 || all[0].Seq == all[1].Seq {
		t.Errorf("numbered %d and %d", all[0].Seq, all[1].Seq)
	}
	if len(all) != 4 || all[0].Prefix != key.Prefix() || all[0].Address != "192.0.2.1" || all[2].Prefix != "" || all[0].RequestID == "" {
		t.Errorf("%+v", all)
	}
	cut := &Edge{}
	cut.note(routes["/v1/logs"], refusedRequest(raw[:40], "/v1/logs", ""), response{code: 401, reason: malformedKey})
	if r := cut.Refusals(); len(r) != 1 || r[0].Prefix != key.Prefix() {
		t.Errorf("of a key that was not copied whole %+v is remembered", r)
	}
	if text := fmt.Sprintf("%+v", all) + fmt.Sprintf("%+v", cut.Refusals()); strings.Contains(text, raw) || strings.Contains(text, raw[20:50]) || strings.Contains(text, "nonsense") {
		t.Errorf("a key is in %s", text)
	}
	taken := e.TakeRefusals()
	if len(taken) != 3 || taken[0].Count != 2 || taken[0].RequestID != all[1].RequestID || taken[0].Code != http.StatusUnauthorized {
		t.Errorf("%+v", taken)
	}
	if again := e.TakeRefusals(); len(again) != 0 {
		t.Errorf("taken twice: %+v", again)
	}
}

// A flood of strangers leaves what concerns known keys, and memory and what is taken at once stay bounded.
func TestRefusalsInAFlood(t *testing.T) {
	e := &Edge{}
	raw, key := auth.MintKey(auth.KindServiceAccount)
	e.note(routes["/v1/logs"], refusedRequest(raw, "/v1/logs", "job/1"), response{code: 429, reason: rateLimited})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := range 1000 {
				junk, _ := auth.MintKey(auth.KindServiceAccount)
				e.note(routes["/v1/logs"], refusedRequest(junk, "/v1/logs", fmt.Sprint(w, n)), response{code: 401, reason: unknownKey})
				if n%100 == 0 {
					e.Refusals()
				}
			}
		})
	}
	wg.Wait()
	all, taken := e.Refusals(), e.TakeRefusals()
	if len(all) != keptRefusals+1 || len(taken) != takenRefusals+1 || taken[0].Prefix != key.Prefix() {
		t.Errorf("%d are kept, %d taken, the first is %+v", len(all), len(taken), taken[0])
	}
}
