package signals

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestPolicyStore(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		if _, err := w.ActivePolicyVersion(ctx, "acme"); !errors.Is(err, ErrNotFound) {
			t.Errorf("no policy yet: %v", err)
		}
		rules := []Rule{{ID: "a", Types: []string{"pii_detected"}, When: "details.n > 1", Action: ActionBlock, Scope: Scope{Team: []string{"mail"}}}}
		d1, err := w.CreateDraft(ctx, "acme", admin, NewDraft{Rules: rules})
		if err != nil {
			t.Fatal(err)
		}
		w.advance(time.Minute)
		d2, err := w.CreateDraft(ctx, "acme", By{Actor: "bob"}, NewDraft{Rules: []Rule{}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.Draft(ctx, "acme", d1.ID)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(d1) || got.CreatedBy != admin.Actor {
			t.Errorf("draft %+v %v, want %+v", got, err, d1)
		}
		if _, err := w.Draft(ctx, "rival", d1.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("another org's draft: %v", err)
		}
		if _, err := w.Activate(ctx, "rival", d1.ID, admin); !errors.Is(err, ErrNotFound) {
			t.Errorf("another org's draft activated: %v", err)
		}
		v1, err := w.Activate(ctx, "acme", d1.ID, admin)
		if err != nil || v1.Version != 1 || !v1.Active || v1.ActivatedBy != admin.Actor || v1.DraftedBy != admin.Actor {
			t.Fatalf("version 1: %+v %v", v1, err)
		}
		again, err := w.Activate(ctx, "acme", d1.ID, By{Actor: "bob"})
		if err != nil || again.Version != 1 || again.ActivatedBy != admin.Actor {
			t.Errorf("activated twice: %+v %v", again, err)
		}
		// Written before version 1 came into force: it would undo that without a word.
		var stale *StaleError
		if _, err := w.Activate(ctx, "acme", d2.ID, By{Actor: "bob"}); !errors.As(err, &stale) || *stale != (StaleError{0, 1}) || !errors.Is(err, ErrStale) {
			t.Errorf("a stale draft: %v", err)
		}
		w.advance(time.Minute)
		d2, err = w.CreateDraft(ctx, "acme", By{Actor: "bob"}, NewDraft{Rules: []Rule{}})
		if err != nil {
			t.Fatal(err)
		}
		v2, err := w.Activate(ctx, "acme", d2.ID, By{Actor: "bob"})
		if err != nil || v2.Version != 2 {
			t.Fatalf("version 2: %+v %v", v2, err)
		}
		if _, err := w.Activate(ctx, "acme", d1.ID, admin); !errors.Is(err, ErrActivated) {
			t.Errorf("an old draft activated again: %v", err)
		}
		active, err := w.ActivePolicyVersion(ctx, "acme")
		if err != nil || active.Version != 2 || !active.Active || len(active.Rules) != 0 {
			t.Errorf("active: %+v %v", active, err)
		}
		list, err := w.PolicyVersions(ctx, "acme")
		if err != nil || len(list) != 2 || list[0].Version != 2 || list[1].Active || fmt.Sprint(list[1].Rules) != fmt.Sprint(rules) {
			t.Errorf("versions: %+v %v", list, err)
		}
		drafts, err := w.Drafts(ctx, "acme")
		if err != nil || len(drafts) != 3 || drafts[0].ID != d2.ID || *drafts[2].Version != 1 {
			t.Errorf("drafts: %+v %v", drafts, err)
		}
		versions, err := w.Versions(ctx)
		if err != nil || len(versions) != 1 || versions["acme"] != 2 {
			t.Errorf("versions: %v %v", versions, err)
		}
		var actions []string
		for _, e := range w.audited() {
			actions = append(actions, e.Action)
		}
		if strings.Join(actions, " ") != "policy.drafted policy.drafted policy.activated policy.drafted policy.activated" {
			t.Errorf("audit: %v", actions)
		}
		// Read on version 1 and saved after version 2 came into force, it would undo version 2: the base is what was read.
		old, err := w.CreateDraft(ctx, "acme", admin, NewDraft{Rules: rules, BaseVersion: ptr(int64(1))})
		if err != nil || old.BaseVersion != 1 {
			t.Fatalf("on version 1: %+v %v", old, err)
		}
		if _, err := w.Activate(ctx, "acme", old.ID, admin); !errors.As(err, &stale) || *stale != (StaleError{1, 2}) {
			t.Errorf("activated on another version than was read: %v", err)
		}
		if _, err := w.CreateDraft(ctx, "acme", admin, NewDraft{Rules: rules, BaseVersion: ptr(int64(3))}); !errors.Is(err, ErrBadQuestion) {
			t.Errorf("on a version that never was: %v", err)
		}
		// Of many who activate drafts of one version at once, one wins and the others learn that they came late.
		drafted := make([]Draft, 8)
		for i := range drafted {
			if drafted[i], err = w.CreateDraft(ctx, "acme", admin, NewDraft{Rules: rules}); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		won := make(chan int64, len(drafted))
		for _, d := range drafted {
			wg.Go(func() {
				v, err := w.Activate(ctx, "acme", d.ID, admin)
				switch {
				case err == nil:
					won <- v.Version
				case !errors.Is(err, ErrStale):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if versions, err := w.Versions(ctx); err != nil || versions["acme"] != 3 || len(won) != 1 || <-won != 3 {
			t.Errorf("after eight at once: %v %v", versions, err)
		}
	})
}

func TestDecodeEvent(t *testing.T) {
	good := string(event(1, nil).AppendJSON(nil))
	if e, err := DecodeEvent([]byte(" " + good + "\n")); err != nil || e.ID != event(1, nil).ID {
		t.Errorf("%+v %v", e, err)
	}
	for _, cut := range [][2]string{{"sig_", "gis_"}, {`"org":"acme"`, `"org":""`}, {`"org":"acme"`, `"org":"a\u0000"`}, {`"type":"pii_detected"`, `"type":"PII"`}, {`"severity":"WARN"`, `"severity":"LOUD"`},
		{`"category":"contentSafety"`, `"category":""`}, {`"kind":"service_account"`, `"kind":""`}, {`"received_at":"2026`, `"received_at":"0026`}, {`{"n":1}`, `[1]`}, {`{"n":1}`, `{"n":`},
		{`"environment":"production"`, `"environment":"\u0000"`}, {`"acme"`, "\"\xff\""}} {
		if !strings.Contains(good, cut[0]) {
			t.Fatalf("%s is not in %s", cut[0], good)
		}
		if _, err := DecodeEvent([]byte(strings.Replace(good, cut[0], cut[1], 1))); !errors.Is(err, ErrNotAnEvent) {
			t.Errorf("%s for %s: %v", cut[1], cut[0], err)
		}
	}
	for _, junk := range []string{"", "null", "[]", "{}", "\x00", `"x"`} {
		if _, err := DecodeEvent([]byte(junk)); !errors.Is(err, ErrNotAnEvent) {
			t.Errorf("%q: %v", junk, err)
		}
	}
}

func FuzzDecodeEvent(f *testing.F) {
	f.Add(event(1, nil).AppendJSON(nil))
	f.Add([]byte(`{"id":"sig_1","org":"a","type":"a","severity":"INFO"}`))
	f.Add([]byte(" {} "))
	f.Fuzz(func(t *testing.T, value []byte) {
		var e *Event
		var err error
		if n := allocated(func() { e, err = DecodeEvent(value) }); n > uint64(64*len(value)+64<<10) {
			t.Fatalf("%d bytes allocated for %d", n, len(value))
		}
		if (e == nil) != errors.Is(err, ErrNotAnEvent) {
			t.Fatalf("%+v %v", e, err)
		}
		if e == nil {
			return
		}
		a := Alert{Event: *e, Raw: json.RawMessage(strings.TrimSpace(string(value)))}
		b, err := json.Marshal(&a)
		if err != nil || !json.Valid(b) {
			t.Fatalf("%s: %s %v", value, b, err)
		}
	})
}
