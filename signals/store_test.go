package signals

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAlertsAreStoredOnce(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		a, b, c := event(1, nil), event(2, nil), event(3, nil)
		if n := w.put(t, b, a, b); n != 2 {
			t.Errorf("stored %d of b, a, b", n)
		}
		if n := w.put(t, a, b, c); n != 1 {
			t.Errorf("stored %d of a, b, c, with a and b there", n)
		}
		if _, err := w.Resolve(t.Context(), "acme", admin, []string{a.ID}, Acknowledged, ""); err != nil {
			t.Fatal(err)
		}
		w.put(t, a)
		got, err := w.Alert(t.Context(), "acme", a.ID)
		if err != nil || got.Open() {
			t.Errorf("a redelivered signal is open again: %+v %v", got, err)
		}
		if string(got.Raw) != string(a.AppendJSON(nil)) {
			t.Errorf("stored as %s", got.Raw)
		}
		var many []*Event
		for i := range 450 {
			many = append(many, event(1000+i, nil))
		}
		if n := w.put(t, many...); n != 450 {
			t.Errorf("stored %d of 450", n)
		}
	})
}

func TestResolveAndReopen(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.put(t, event(1, nil), event(2, nil), event(3, nil), event(4, func(e *Event) { e.Org = "rival" }))
		id := func(n int) string { return event(n, nil).ID }
		got, err := w.Resolve(t.Context(), "acme", admin, []string{id(1)}, FalsePositive, "the summariser may")
		if err != nil {
			t.Fatal(err)
		}
		if a := got[0]; a.Resolution != FalsePositive || a.Note != "the summariser may" || a.ResolvedBy != admin.Actor || !a.ResolvedAt.Equal(received) {
			t.Errorf("resolved: %+v", a)
		}
		stored, err := w.Alert(t.Context(), "acme", id(1))
		if err != nil || stored.Resolution != FalsePositive || stored.Note != got[0].Note || !stored.ResolvedAt.Equal(received) || stored.ResolvedBy != admin.Actor {
			t.Errorf("stored: %+v %v", stored, err)
		}
		var m map[string]any
		b, err := json.Marshal(&stored)
		if err != nil || json.Unmarshal(b, &m) != nil || m["resolution"] != "false_positive" || m["id"] != id(1) || m["resolved_at"] != "2026-11-23T22:40:12Z" {
			t.Errorf("as JSON: %s %v", b, err)
		}
		if es := w.audited(); len(es) != 1 || es[0].Action != "alert.resolved" || es[0].Before["open"] != true || es[0].After["resolution"] != "false_positive" {
			t.Errorf("audit: %+v", es)
		}
		// Bulk is all or nothing.
		if _, err := w.Resolve(t.Context(), "acme", admin, []string{id(2), id(4)}, Escalated, ""); !errors.Is(err, ErrNotFound) {
			t.Errorf("another org's alert: %v", err)
		}
		if a, err := w.Alert(t.Context(), "acme", id(2)); err != nil || !a.Open() {
			t.Errorf("half a bulk: %+v %v", a, err)
		}
		bulk, err := w.Resolve(t.Context(), "acme", admin, []string{id(3), id(2), id(3)}, Escalated, "")
		if err != nil || len(bulk) != 2 || bulk[0].Event.ID != id(3) || bulk[1].Event.ID != id(2) {
			t.Errorf("bulk: %+v %v", bulk, err)
		}
		if es := w.audited(); len(es) != 1 || es[0].TargetKind != "alerts" {
			t.Errorf("audit of a bulk: %+v", es)
		}
		back, err := w.Reopen(t.Context(), "acme", admin, []string{id(1), id(2), id(3)})
		if err != nil || len(back) != 3 || !back[0].Open() || !back[0].ResolvedAt.IsZero() {
			t.Errorf("reopened: %+v %v", back, err)
		}
		b, err = json.Marshal(&back[0])
		if err != nil || json.Unmarshal(b, &m) != nil || m["resolution"] != nil || m["resolved_at"] != nil || m["note"] != nil {
			t.Errorf("as JSON: %s %v", b, err)
		}
		// What a colleague has said meanwhile stays, at the first and when it is taken back.
		colleague := By{Actor: "colleague@acme.example", Via: "console"}
		if _, err := w.Resolve(t.Context(), "acme", colleague, []string{id(2)}, Escalated, "mine"); err != nil {
			t.Fatal(err)
		}
		w.audited()
		done, left, err := w.ResolveOpen(t.Context(), "acme", admin, []string{id(1), id(2), id(3)}, Acknowledged, "")
		if err != nil || len(done) != 2 || len(left) != 1 || left[0].Event.ID != id(2) || left[0].Resolution != Escalated {
			t.Errorf("of three, one of them escalated: %+v, %+v, %v", done, left, err)
		}
		if es := w.audited(); len(es) != 1 || fmt.Sprint(es[0].After["ids"]) != fmt.Sprint([]string{id(1), id(3)}) {
			t.Errorf("audit: %+v", es)
		}
		if done, left, err := w.ResolveOpen(t.Context(), "acme", admin, []string{id(2)}, Acknowledged, ""); err != nil || len(done) != 0 || len(left) != 1 || len(w.audited()) != 0 {
			t.Errorf("of none: %+v, %+v, %v", done, left, err)
		}
		if _, err := w.Resolve(t.Context(), "acme", colleague, []string{id(1)}, FalsePositive, ""); err != nil {
			t.Fatal(err)
		}
		if done, left, err := w.Undo(t.Context(), "acme", admin, []string{id(1), id(2), id(3)}, received); err != nil || len(done) != 1 || done[0].Event.ID != id(3) || len(left) != 2 {
			t.Errorf("taken back: %+v, %+v, %v", done, left, err)
		}
		if done, _, err := w.Undo(t.Context(), "acme", colleague, []string{id(1)}, received.Add(time.Millisecond)); err != nil || len(done) != 0 {
			t.Errorf("taken back of another time: %+v, %v", done, err)
		}
		for n, want := range map[int]Resolution{1: FalsePositive, 2: Escalated, 3: ""} {
			if a, err := w.Alert(t.Context(), "acme", id(n)); err != nil || a.Resolution != want {
				t.Errorf("%d stands as %q, want %q (%v)", n, a.Resolution, want, err)
			}
		}
		for name, err := range map[string]error{
			"no ids": second(w.Reopen(t.Context(), "acme", admin, nil)), "too many": second(w.Reopen(t.Context(), "acme", admin, make([]string, 1))),
			"what": second(w.Resolve(t.Context(), "acme", admin, []string{id(1)}, "fine", "")), "long": second(w.Resolve(t.Context(), "acme", admin, []string{id(1)}, Escalated, strings.Repeat("x", 2001))),
			"zero": second(w.Reopen(t.Context(), "acme", admin, []string{"a\x00"})),
		} {
			if !errors.Is(err, ErrBadQuestion) && !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func second[T any](_ T, err error) error { return err }

// alertsByHand answers a filter from memory: the words of AlertFilter, against which every plan of the Store is held.
func alertsByHand(all []Alert, f AlertFilter) []Alert {
	var out []Alert
	for _, a := range all {
		e := &a.Event
		service := e.Service
		if service == nil {
			service = &EventService{}
		}
		if f.Open != nil && a.Open() != *f.Open ||
			len(f.Severities) > 0 && !slices.Contains(f.Severities, e.Severity) ||
			len(f.Categories) > 0 && !slices.Contains(f.Categories, e.Category) ||
			len(f.Types) > 0 && !slices.Contains(f.Types, e.Type) ||
			len(f.Environments) > 0 && !slices.Contains(f.Environments, service.Environment) ||
			f.Account != "" && service.ID != f.Account ||
			!f.Since.IsZero() && e.DetectedAt.Before(f.Since) || !f.Until.IsZero() && !e.DetectedAt.Before(f.Until) {
			continue
		}
		out = append(out, a)
	}
	bare, down := strings.CutPrefix(string(f.Sort), "-")
	if f.Sort == "" {
		bare, down = "detected_at", true
	}
	slices.SortFunc(out, func(x, y Alert) int {
		sign := 1
		if down {
			sign = -1
		}
		newest := -x.Event.DetectedAt.Truncate(time.Millisecond).Compare(y.Event.DetectedAt.Truncate(time.Millisecond))
		if newest == 0 {
			newest = -strings.Compare(x.Event.ID, y.Event.ID)
		}
		switch bare {
		case "severity":
			if by := sign * (x.Event.Severity.rank() - y.Event.Severity.rank()); by != 0 {
				return by
			}
		case "type":
			if by := sign * strings.Compare(x.Event.Type, y.Event.Type); by != 0 {
				return by
			}
		default:
			return -sign * newest
		}
		return newest
	})
	return out
}

func TestListsAnswerEveryQuestion(t *testing.T) {
	if testing.Short() {
		t.Skip("all of it is the database's work")
	}
	each(t, func(t *testing.T, w *world) {
		r := mathrand.New(mathrand.NewPCG(7, 7))
		pick := func(list ...string) string { return list[r.IntN(len(list))] }
		tax := testTaxonomy(t, TaxonomyConfig{})
		var events []*Event
		for i := range 300 {
			events = append(events, event(i, func(e *Event) {
				st := tax.Resolve(pick("pii_detected", "forecast_breach", "moon_phase", "brand_violation"))
				e.Type, e.Category, e.Severity = st.Type, st.Category, Severity(pick("INFO", "WARN", "BLOCK"))
				e.DetectedAt = received.Add(time.Duration(r.IntN(60)) * time.Second) // many at the same time
				e.Service = &EventService{ID: pick("sa_1", "sa_2"), Name: "x", Environment: pick("production", "staging", "development")}
				if r.IntN(5) == 0 {
					e.Service, e.Subject = nil, EventSubject{Kind: "person", ID: "usr_ada", Label: "person: Ada"}
				}
				if r.IntN(10) == 0 {
					e.Org = "rival"
				}
			}))
		}
		w.put(t, events...)
		var all []Alert
		for _, e := range events {
			if e.Org != "acme" {
				continue
			}
			if r.IntN(3) == 0 {
				if _, err := w.Resolve(t.Context(), "acme", admin, []string{e.ID}, Acknowledged, ""); err != nil {
					t.Fatal(err)
				}
			}
			a, err := w.Alert(t.Context(), "acme", e.ID)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, a)
		}
		for i := range 150 {
			f := AlertFilter{Sort: AlertSort(pick("", "detected_at", "-detected_at", "severity", "-severity", "type", "-type")), Limit: 1 + r.IntN(40)}
			if r.IntN(2) == 0 {
				f.Open = ptr(r.IntN(2) == 0)
			}
			for range r.IntN(3) {
				f.Severities = append(f.Severities, Severity(pick("INFO", "WARN", "BLOCK")))
			}
			for range max(0, r.IntN(5)-2) {
				f.Categories = append(f.Categories, Category(pick("contentSafety", "budget", "other", "operational")))
			}
			for range max(0, r.IntN(5)-2) {
				f.Types = append(f.Types, pick("pii_detected", "moon_phase", "brand_violation", "nothing"))
			}
			for range max(0, r.IntN(5)-2) {
				f.Environments = append(f.Environments, pick("production", "staging", "development"))
			}
			if r.IntN(4) == 0 {
				f.Account = pick("sa_1", "sa_2", "sa_9")
			}
			if r.IntN(4) == 0 {
				f.Since, f.Until = received.Add(10*time.Second), received.Add(40*time.Second)
			}
			want := alertsByHand(all, f)
			var got []Alert
			for pages := 0; ; pages++ {
				page, err := w.Alerts(t.Context(), "acme", f)
				if err != nil {
					t.Fatalf("%+v: %v", f, err)
				}
				if len(page.Items) > f.Limit || pages > 400 {
					t.Fatalf("%+v: a page of %d", f, len(page.Items))
				}
				got = append(got, page.Items...)
				if page.NextCursor == "" {
					break
				}
				f.Cursor = page.NextCursor
			}
			if len(got) != len(want) {
				t.Fatalf("question %d %+v: %d alerts, want %d", i, f, len(got), len(want))
			}
			for j := range got {
				if got[j].Event.ID != want[j].Event.ID {
					t.Fatalf("question %d %+v: at %d %s, want %s", i, f, j, got[j].Raw, want[j].Raw)
				}
			}
			f.Cursor = ""
			if f.Since.IsZero() {
				f.Since, f.Until = received, received.Add(time.Minute)
			}
			buckets, err := w.Histogram(t.Context(), "acme", f, 7)
			if err != nil {
				t.Fatal(err)
			}
			counted := 0
			for _, b := range buckets {
				counted += b.Info + b.Warn + b.Block
			}
			if want := len(alertsByHand(all, f)); counted != want {
				t.Fatalf("histogram of %+v counts %d, want %d", f, counted, want)
			}
		}
		unacked, err := w.Unacknowledged(t.Context(), "acme")
		if want := len(alertsByHand(all, AlertFilter{Open: ptr(true), Severities: []Severity{Warn, Block}})); err != nil || unacked != want {
			t.Errorf("unacknowledged: %d %v, want %d", unacked, err, want)
		}
		bad := func(f AlertFilter) {
			t.Helper()
			if _, err := w.Alerts(t.Context(), "acme", f); !errors.Is(err, ErrBadQuestion) {
				t.Errorf("%+v: %v", f, err)
			}
		}
		page, err := w.Alerts(t.Context(), "acme", AlertFilter{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		bad(AlertFilter{Limit: 1, Cursor: page.NextCursor, Sort: SortType})
		bad(AlertFilter{Cursor: "junk"})
		bad(AlertFilter{Sort: "colour"})
		bad(AlertFilter{Limit: 201})
		bad(AlertFilter{Severities: []Severity{"LOUD"}})
		bad(AlertFilter{Categories: []Category{"fun"}})
		bad(AlertFilter{Account: "a\x00"})
	})
}

func TestArrivedAndEach(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i := range 5 {
			w.put(t, event(i, nil))
			w.advance(time.Second)
		}
		got, err := w.Arrived(t.Context(), "acme", received.Add(2*time.Second))
		if err != nil || len(got) != 3 || got[0].ID != event(2, nil).ID {
			t.Errorf("arrived: %d %v", len(got), err)
		}
		var seen []string
		more, err := w.Each(t.Context(), "acme", received.Add(time.Second), 3, func(a *Alert) bool { seen = append(seen, a.Event.ID); return true })
		if err != nil || !more || len(seen) != 3 || seen[0] != event(4, nil).ID {
			t.Errorf("each: %v %v %v", seen, more, err)
		}
		seen = nil
		more, err = w.Each(t.Context(), "acme", received.Add(time.Second), 4, func(a *Alert) bool { seen = append(seen, a.Event.ID); return true })
		if err != nil || more || len(seen) != 4 {
			t.Errorf("each: %v %v %v", seen, more, err)
		}
	})
}

func TestPrune(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i := range 25 {
			w.put(t, event(i, func(e *Event) { e.ReceivedAt = received.Add(-time.Duration(i) * 24 * time.Hour) }))
		}
		if err := w.AddDrops(t.Context(), []Drop{{"acme", "service_account", "sa_1", PersonalUse, PersonsOnly, 1, received.Add(-48 * time.Hour)}, {"acme", "service_account", "sa_1", PersonalUse, PersonsOnly, 2, received}}); err != nil {
			t.Fatal(err)
		}
		n, err := w.Prune(t.Context(), received.Add(-9*24*time.Hour), 4)
		if err != nil || n != 15 {
			t.Errorf("pruned %d %v, want 15", n, err)
		}
		page, err := w.Alerts(t.Context(), "acme", AlertFilter{Limit: 200})
		if err != nil || len(page.Items) != 10 {
			t.Errorf("%d are left, %v", len(page.Items), err)
		}
		if _, err := w.Prune(t.Context(), received.Add(-24*time.Hour), 4); err != nil {
			t.Fatal(err)
		}
		drops, err := w.Drops(t.Context(), "acme", "service_account", "sa_1", received.Add(-99*24*time.Hour))
		if err != nil || len(drops) != 1 || drops[0].Count != 2 {
			t.Errorf("drops %+v %v", drops, err)
		}
	})
}

func TestRetain(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		for i := range 20 {
			w.put(t, event(i, func(e *Event) { e.ReceivedAt = received.Add(-time.Duration(i) * 24 * time.Hour) }))
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- Retain(ctx, RetentionConfig{Store: w.Store, Keep: 5*24*time.Hour + time.Hour, Every: 5 * time.Millisecond, Batch: 3, Logger: quiet()})
		}()
		w.awaitCount(t, 6)
		w.advance(2 * 24 * time.Hour)
		w.awaitCount(t, 4)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestDrops(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		drop := func(id, typ string, reason Reason, n int64, at time.Time) Drop {
			return Drop{"acme", "service_account", id, typ, reason, n, at}
		}
		later := received.Add(25 * time.Hour)
		for _, batch := range [][]Drop{
			{drop("sa_1", PersonalUse, PersonsOnly, 2, received), drop("sa_1", AbusePattern, AbuseDetectionOff, 1, received), drop("sa_2", PersonalUse, PersonsOnly, 9, received)},
			{drop("sa_1", PersonalUse, PersonsOnly, 3, received.Add(time.Minute)), drop("sa_1", PersonalUse, PersonsOnly, 1, later), drop("sa_1", PersonalUse, PersonsOnly, 1, received)},
		} {
			if err := w.AddDrops(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
		}
		got, err := w.Drops(t.Context(), "acme", "service_account", "sa_1", received)
		want := []Drop{drop("sa_1", AbusePattern, AbuseDetectionOff, 1, received), drop("sa_1", PersonalUse, PersonsOnly, 7, later)}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("drops %+v %v, want %+v", got, err, want)
		}
	})
}
