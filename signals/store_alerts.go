package signals

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Resolution is how somebody closed an alert.
type Resolution string

// The resolutions.
const (
	Acknowledged  Resolution = "acknowledged"
	FalsePositive Resolution = "false_positive"
	Escalated     Resolution = "escalated"
)

// Limits of resolving.
const (
	MaxBulk = 500   // alerts in one call
	MaxNote = 2_000 // bytes
)

// An Alert is a signal as Alerts keeps it: the event as it came, and how it was resolved.
type Alert struct {
	Event      Event
	Raw        json.RawMessage // the event's JSON as it stood on the topic
	StoredAt   time.Time
	Resolution Resolution // "" while open
	Note       string
	ResolvedAt time.Time // zero while open
	ResolvedBy string
}

// Open reports whether nobody has resolved it.
func (a *Alert) Open() bool { return a.Resolution == "" }

// MarshalJSON is the event's own members, then resolution, note, resolved_at and resolved_by, each null while open.
func (a *Alert) MarshalJSON() ([]byte, error) {
	b := append([]byte(nil), a.Raw[:len(a.Raw)-1]...)
	b = appendOptional(b, `,"resolution":`, string(a.Resolution))
	b = appendOptional(b, `,"note":`, a.Note)
	if a.Open() {
		b = append(b, `,"resolved_at":null`...)
	} else {
		b = appendTime(b, `,"resolved_at":"`, a.ResolvedAt)
	}
	b = appendOptional(b, `,"resolved_by":`, a.ResolvedBy)
	return append(b, '}'), nil
}

// DecodeEvent reads an event from the topic. Its error wraps ErrNotAnEvent: what cannot be read now can never be.
func DecodeEvent(value []byte) (*Event, error) {
	trimmed := value[skipSpace(value, 0):]
	if len(trimmed) == 0 || trimmed[0] != '{' || !validJSON(trimmed) {
		return nil, fmt.Errorf("%w: it is no JSON object", ErrNotAnEvent)
	}
	var e Event
	if err := json.Unmarshal(trimmed, &e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotAnEvent, err)
	}
	name, ok := NormaliseType(e.Type)
	switch {
	case !strings.HasPrefix(e.ID, "sig_") || badID(e.ID) != "":
		return nil, fmt.Errorf("%w: id", ErrNotAnEvent)
	case badID(e.Org) != "":
		return nil, fmt.Errorf("%w: org", ErrNotAnEvent)
	case !ok || name != e.Type:
		return nil, fmt.Errorf("%w: type", ErrNotAnEvent)
	case e.Severity.rank() == 0 || e.BaseSeverity.rank() == 0:
		return nil, fmt.Errorf("%w: severity", ErrNotAnEvent)
	case e.Category == "" || badText(string(e.Category)):
		return nil, fmt.Errorf("%w: category", ErrNotAnEvent)
	case e.DetectedAt.Before(earliest) || e.ReceivedAt.Before(earliest):
		return nil, fmt.Errorf("%w: detected_at or received_at", ErrNotAnEvent)
	case e.Subject.Kind == "" || e.Subject.ID == "":
		return nil, fmt.Errorf("%w: subject", ErrNotAnEvent)
	case e.Service != nil && (badText(e.Service.ID) || badText(e.Service.Environment)):
		return nil, fmt.Errorf("%w: service", ErrNotAnEvent)
	case len(e.Details) > 0 && e.Details[0] != '{':
		return nil, fmt.Errorf("%w: details", ErrNotAnEvent)
	}
	return &e, nil
}

// A Received is an event with the bytes that it was read from.
type Received struct {
	Event *Event
	Value []byte // one JSON object
}

// insertRows is how many alerts one statement inserts.
const insertRows = 200

// Put stores events, each once by its id, in one transaction, and returns how many were new. It borrows what it is given.
// ErrNotAnEvent: the database can never take one of them; none was stored.
func (s *Store) Put(ctx context.Context, batch []Received) (int, error) {
	// In the order of ids, so that two consumers that were given the same messages wait for each other and never deadlock.
	batch = slices.SortedFunc(slices.Values(batch), func(a, b Received) int { return strings.Compare(a.Event.ID, b.Event.ID) })
	stored := 0
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		stored = 0
		now := milli(s.now())
		counts := hours{}
		for part := range slices.Chunk(batch, insertRows) {
			var a args
			rows := make([]string, len(part))
			for i, r := range part {
				e := r.Event
				account, environment := "", ""
				if e.Service != nil {
					account, environment = e.Service.ID, e.Service.Environment
				}
				values := []any{e.ID, e.Org, e.Type, string(e.Category), string(e.Severity), account, environment, milli(e.DetectedAt), milli(e.ReceivedAt), now, true, strings.TrimSpace(string(r.Value))}
				marks := make([]string, len(values))
				for j, v := range values {
					marks[j] = a.add(v)
				}
				rows[i] = `(` + strings.Join(marks, `, `) + `)`
			}
			rowsIn, err := tx.QueryContext(ctx, `INSERT INTO alerts (id, org, type, category, severity, account_id, environment, detected_at, received_at, stored_at, open, event) VALUES `+
				strings.Join(rows, `, `)+` ON CONFLICT (id) DO NOTHING RETURNING `+hourColumns, a...)
			if err != nil {
				return wrap("store alerts", err)
			}
			n, err := counts.scan(rowsIn, 1)
			if err != nil {
				return err
			}
			stored += n
		}
		return counts.add(ctx, tx)
	})
	if classify(err) == classData {
		return 0, fmt.Errorf("%w: %w", ErrNotAnEvent, err)
	}
	return stored, err
}

const alertColumns = `id, event, stored_at, resolution, note, resolved_at, resolved_by`

func scanAlert(scan func(...any) error, more ...any) (Alert, error) {
	var (
		a                      Alert
		id, event              string
		stored                 int64
		resolution, note, byID sql.NullString
		resolved               sql.NullInt64
	)
	if err := scan(append([]any{&id, &event, &stored, &resolution, &note, &resolved, &byID}, more...)...); err != nil {
		return Alert{}, wrap("read alert", err)
	}
	a.Raw, a.StoredAt = json.RawMessage(event), fromMilli(stored)
	if err := json.Unmarshal(a.Raw, &a.Event); err != nil {
		return Alert{}, fmt.Errorf("read alert %s: %w", id, err)
	}
	a.Resolution, a.Note, a.ResolvedBy = Resolution(resolution.String), note.String, byID.String
	if resolved.Valid {
		a.ResolvedAt = fromMilli(resolved.Int64)
	}
	return a, nil
}

// Alert reads one alert of org.
func (s *Store) Alert(ctx context.Context, org, id string) (Alert, error) {
	if badText(id) {
		return Alert{}, fmt.Errorf("read alert: %w", ErrNotFound)
	}
	return scanAlert(s.r.QueryRowContext(ctx, `SELECT `+alertColumns+` FROM alerts WHERE org = $1 AND id = $2`, org, id).Scan)
}

// Resolve closes alerts of org, all or none, with keys in the note cut to their prefix, and returns them in the order of ids; resolving a closed one again says it anew.
// ErrNotFound names the first id that is not there.
func (s *Store) Resolve(ctx context.Context, org string, by By, ids []string, how Resolution, note string) ([]Alert, error) {
	out, _, err := s.resolve(ctx, org, by, ids, how, note, nil)
	return out, err
}

// ResolveOpen is Resolve of those alerts that are open. left are the others: somebody else has said something of them meanwhile.
func (s *Store) ResolveOpen(ctx context.Context, org string, by By, ids []string, how Resolution, note string) (resolved, left []Alert, err error) {
	return s.resolve(ctx, org, by, ids, how, note, (*Alert).Open)
}

func (s *Store) resolve(ctx context.Context, org string, by By, ids []string, how Resolution, note string, only func(*Alert) bool) (resolved, left []Alert, err error) {
	if how != Acknowledged && how != FalsePositive && how != Escalated {
		return nil, nil, fmt.Errorf("%w: resolution must be acknowledged, false_positive or escalated", ErrBadQuestion)
	}
	if len(note) > MaxNote || badText(note) {
		return nil, nil, fmt.Errorf("%w: note must be text of at most %d bytes", ErrBadQuestion, MaxNote)
	}
	// Everybody reads notes: a key pasted into one would leak.
	note, ok := redact(note)
	if !ok {
		return nil, nil, fmt.Errorf("%w: note is escaped more than %d times over", ErrBadQuestion, maxSpelling)
	}
	return s.settle(ctx, org, by, ids, how, note, only)
}

// Reopen opens alerts of org, whoever has said what of them.
func (s *Store) Reopen(ctx context.Context, org string, by By, ids []string) ([]Alert, error) {
	out, _, err := s.settle(ctx, org, by, ids, "", "", nil)
	return out, err
}

// ReopenResolved is Reopen of those that are not open. left are the others.
func (s *Store) ReopenResolved(ctx context.Context, org string, by By, ids []string) (reopened, left []Alert, err error) {
	return s.settle(ctx, org, by, ids, "", "", func(a *Alert) bool { return !a.Open() })
}

// Undo reopens those alerts that are as by.Actor has resolved them at a time. left are the others.
func (s *Store) Undo(ctx context.Context, org string, by By, ids []string, at time.Time) (reopened, left []Alert, err error) {
	return s.settle(ctx, org, by, ids, "", "", func(a *Alert) bool { return a.ResolvedBy == by.Actor && a.ResolvedAt.Equal(at) })
}

// settle sets those alerts for which only is true, or all where it is nil.
func (s *Store) settle(ctx context.Context, org string, by By, ids []string, how Resolution, note string, only func(*Alert) bool) (out, left []Alert, err error) {
	ids = unique(ids)
	if len(ids) == 0 || len(ids) > MaxBulk {
		return nil, nil, fmt.Errorf("%w: ids must be 1 to %d", ErrBadQuestion, MaxBulk)
	}
	for _, id := range ids {
		if badText(id) {
			return nil, nil, fmt.Errorf("alert %s: %w", quoted(id), ErrNotFound)
		}
	}
	err = s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		out, left = nil, nil // a retry of the transaction begins anew
		all, err := s.lockAlerts(ctx, tx, org, ids)
		if err != nil {
			return err
		}
		found := make([]Alert, 0, len(all))
		changing := make([]string, 0, len(all))
		for _, a := range all {
			if only == nil || only(&a) {
				found, changing = append(found, a), append(changing, a.Event.ID)
			} else {
				left = append(left, a)
			}
		}
		if len(found) == 0 {
			return nil
		}
		var (
			a                        args
			now                      = s.now().UTC().Truncate(time.Millisecond)
			resolution, noted, whose any
			at                       any
		)
		if how != "" {
			resolution, at, whose = string(how), milli(now), by.Actor
			if note != "" {
				noted = note
			}
		}
		set := fmt.Sprintf(`UPDATE alerts SET open = %s, resolution = %s, note = %s, resolved_at = %s, resolved_by = %s WHERE org = %s`,
			a.add(how == ""), a.add(resolution), a.add(noted), a.add(at), a.add(whose), a.add(org))
		if _, err := tx.ExecContext(ctx, set+a.in("id", changing), a...); err != nil {
			return wrap("resolve alerts", err)
		}
		counts := hours{}
		for i := range found {
			if e, was, is := &found[i].Event, found[i].Open(), how == ""; was != is {
				counts[hourOf(e, was)]--
				counts[hourOf(e, is)]++
			}
		}
		if err := counts.add(ctx, tx); err != nil {
			return err
		}
		if err := s.audit(ctx, tx, settled(org, by, found, how, note)); err != nil {
			return err
		}
		out = found
		for i := range out {
			out[i].Resolution, out[i].Note, out[i].ResolvedAt, out[i].ResolvedBy = how, note, time.Time{}, ""
			if how != "" {
				out[i].ResolvedAt, out[i].ResolvedBy = now, by.Actor
			}
		}
		return nil
	})
	return out, left, err
}

// lockAlerts reads alerts in the order of ids and keeps others from changing them.
func (s *Store) lockAlerts(ctx context.Context, tx *sql.Tx, org string, ids []string) ([]Alert, error) {
	a := args{org}
	// Locked in the order of ids, so that two bulks never deadlock.
	rows, err := tx.QueryContext(ctx, `SELECT `+alertColumns+` FROM alerts WHERE org = $1`+a.in("id", ids)+` ORDER BY id`+s.dialect.forUpdate("alerts"), a...)
	if err != nil {
		return nil, wrap("read alerts", err)
	}
	defer rows.Close()
	byID := map[string]Alert{}
	for rows.Next() {
		alert, err := scanAlert(rows.Scan)
		if err != nil {
			return nil, err
		}
		byID[alert.Event.ID] = alert
	}
	if err := rows.Err(); err != nil {
		return nil, wrap("read alerts", err)
	}
	out := make([]Alert, len(ids))
	for i, id := range ids {
		alert, ok := byID[id]
		if !ok {
			return nil, fmt.Errorf("alert %s: %w", quoted(id), ErrNotFound)
		}
		out[i] = alert
	}
	return out, nil
}

func unique(ids []string) []string {
	var n names
	return slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !n.add(id) })
}

// settled is the audit's row of a resolution: one for a call, however many alerts it closes.
func settled(org string, by By, found []Alert, how Resolution, note string) AuditEntry {
	entry := AuditEntry{Org: org, By: by, Action: "alert.reopened", TargetKind: "alert", TargetID: found[0].Event.ID, TargetLabel: found[0].Event.Type + ", " + found[0].Event.Subject.Label}
	state := func(r Resolution, note string) map[string]any {
		if r == "" {
			return map[string]any{"open": true}
		}
		return map[string]any{"open": false, "resolution": string(r), "note": note}
	}
	entry.Before, entry.After = state(found[0].Resolution, found[0].Note), state(how, note)
	if how != "" {
		entry.Action = "alert.resolved"
	}
	if len(found) > 1 {
		ids := make([]string, len(found))
		before := map[string]any{}
		for i, a := range found {
			ids[i] = a.Event.ID
			was := "open"
			if !a.Open() {
				was = string(a.Resolution)
			}
			before[a.Event.ID] = was
		}
		entry.TargetKind, entry.TargetLabel, entry.Before = "alerts", fmt.Sprintf("%d alerts", len(found)), before
		entry.After["ids"] = ids
	}
	return entry
}

const pruneSQL = `DELETE FROM alerts WHERE id IN (SELECT id FROM alerts WHERE received_at < $1 ORDER BY received_at, id LIMIT $2) RETURNING ` + hourColumns

// Prune removes alerts, open ones included, that were received before cutoff, and drops older than it, a batch of rows at a
// time, so that no statement holds locks for long. It returns how many alerts it removed.
func (s *Store) Prune(ctx context.Context, cutoff time.Time, batch int) (int64, error) {
	var removed int64
	for {
		var n int64
		err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			rows, err := tx.QueryContext(ctx, pruneSQL, milli(cutoff), batch)
			if err != nil {
				return wrap("prune alerts", err)
			}
			counts := hours{}
			gone, err := counts.scan(rows, -1)
			if err != nil {
				return err
			}
			n = int64(gone)
			return counts.add(ctx, tx)
		})
		if err != nil {
			return removed, err
		}
		removed += n
		if n < int64(batch) {
			break
		}
	}
	err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM signal_drops WHERE day < $1`, day(cutoff)); err != nil {
			return wrap("prune drops", err)
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM alert_hours WHERE hour < $1 AND n <= 0`, milli(cutoff)/hourMillis)
		return wrap("prune hours", err)
	})
	return removed, err
}
