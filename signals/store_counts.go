package signals

import (
	"cmp"
	"context"
	"database/sql"
	"slices"
	"strings"
	"time"
)

// MaxCounted is where Unacknowledged stops counting: a page says "999+".
const MaxCounted = 1_000

// Unacknowledged counts open alerts of WARN and above, up to MaxCounted.
func (s *Store) Unacknowledged(ctx context.Context, org string) (int, error) {
	var n int
	err := s.r.QueryRowContext(ctx, unacknowledgedSQL, org, MaxCounted).Scan(&n)
	return min(n, MaxCounted), wrap("count alerts", err)
}

const unacknowledgedSQL = `SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM alerts WHERE org = $1 AND open = TRUE AND severity = 'BLOCK' LIMIT $2) AS b)
	+ (SELECT COUNT(*) FROM (SELECT 1 FROM alerts WHERE org = $1 AND open = TRUE AND severity = 'WARN' LIMIT $2) AS w)`

// A Bucket is one bar of a histogram.
type Bucket struct {
	At    time.Time `json:"at"` // where it begins
	Info  int       `json:"info"`
	Warn  int       `json:"warn"`
	Block int       `json:"block"`
}

// An Arrival is what the columns of an alert say: enough to tell whether it belongs on a page.
type Arrival struct {
	ID                   string
	Type                 string
	Category             Category
	Severity             Severity
	Account, Environment string // "" for none
	DetectedAt, StoredAt time.Time
}

// arrivedPage is how many rows one statement of Arrived reads.
const arrivedPage = 1_000

// Arrived lists every alert stored at or after since, the earliest first: what is new for a page that is open. Several consumers
// commit out of order, so ask again for the last few seconds and know what you have by id.
func (s *Store) Arrived(ctx context.Context, org string, since time.Time) ([]Arrival, error) {
	out := []Arrival{}
	for at, id := milli(since), ""; ; {
		page, err := s.arrived(ctx, org, at, id)
		if err != nil {
			return nil, err
		}
		out = append(out, page...)
		if len(page) < arrivedPage {
			return out, nil
		}
		last := &page[len(page)-1]
		at, id = milli(last.StoredAt), last.ID
	}
}

// arrived reads one page after a place.
func (s *Store) arrived(ctx context.Context, org string, at int64, id string) ([]Arrival, error) {
	rows, err := s.r.QueryContext(ctx, arrivedSQL, org, at, id, arrivedPage)
	if err != nil {
		return nil, wrap("list new alerts", err)
	}
	defer rows.Close()
	var out []Arrival
	for rows.Next() {
		var a Arrival
		var detected, stored int64
		if err := rows.Scan(&a.ID, &a.Type, &a.Category, &a.Severity, &a.Account, &a.Environment, &detected, &stored); err != nil {
			return nil, wrap("list new alerts", err)
		}
		a.DetectedAt, a.StoredAt = fromMilli(detected), fromMilli(stored)
		out = append(out, a)
	}
	return out, wrap("list new alerts", rows.Err())
}

const arrivedSQL = `SELECT id, type, category, severity, account_id, environment, detected_at, stored_at FROM alerts
	WHERE org = $1 AND (stored_at, id) > ($2, $3) ORDER BY stored_at, id LIMIT $4`

// Each calls visit for the alerts of org that were stored at or after since, the newest first, until it returns false or
// most were visited. It reports whether there were more. What a simulation looks at.
func (s *Store) Each(ctx context.Context, org string, since time.Time, most int, visit func(*Alert) bool) (bool, error) {
	const page = 500
	at, id := int64(1)<<62, ""
	for seen := 0; ; {
		rows, err := s.r.QueryContext(ctx, `SELECT `+alertColumns+` FROM alerts WHERE org = $1 AND stored_at >= $2 AND (stored_at, id) < ($3, $4) ORDER BY stored_at DESC, id DESC LIMIT $5`,
			org, milli(since), at, id, page)
		if err != nil {
			return false, wrap("read alerts", err)
		}
		n := 0
		for rows.Next() {
			alert, err := scanAlert(rows.Scan)
			if err != nil {
				_ = rows.Close() // the scan's error says more
				return false, err
			}
			if seen == most {
				return true, rows.Close()
			}
			n++
			seen++
			at, id = milli(alert.StoredAt), alert.Event.ID
			if !visit(&alert) {
				return false, rows.Close()
			}
		}
		if err := rows.Err(); err != nil {
			return false, wrap("read alerts", err)
		}
		if n < page {
			return false, nil
		}
	}
}

// A Drop counts signals that the filter dropped, or records that were invalid: which of both the reason says.
type Drop struct {
	Org         string
	SubjectKind string
	SubjectID   string
	Type        string // of a signal; the kind of other records
	Reason      Reason
	Count       int64
	LastAt      time.Time
}

// day is the number of a day since 1970.
func day(t time.Time) int64 { return t.Unix() / 86_400 }

// AddDrops adds counts to those of the day of each LastAt.
func (s *Store) AddDrops(ctx context.Context, drops []Drop) error {
	return s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
		for _, d := range drops {
			_, err := tx.ExecContext(ctx, `INSERT INTO signal_drops (org, subject_kind, subject_id, type, reason, day, count, last_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
				ON CONFLICT (org, subject_kind, subject_id, type, reason, day) DO UPDATE SET count = signal_drops.count + EXCLUDED.count,
				last_at = CASE WHEN EXCLUDED.last_at > signal_drops.last_at THEN EXCLUDED.last_at ELSE signal_drops.last_at END`,
				d.Org, d.SubjectKind, d.SubjectID, d.Type, string(d.Reason), day(d.LastAt), d.Count, milli(d.LastAt))
			if err != nil {
				return wrap("count drops", err)
			}
		}
		return nil
	})
}

// sortDrops brings drops into one order for everybody, so that two edges that add the same rows never deadlock.
func sortDrops(drops []Drop) {
	slices.SortFunc(drops, func(a, b Drop) int {
		return cmp.Or(strings.Compare(a.Org, b.Org), strings.Compare(a.SubjectKind, b.SubjectKind), strings.Compare(a.SubjectID, b.SubjectID),
			strings.Compare(a.Type, b.Type), strings.Compare(string(a.Reason), string(b.Reason)), a.LastAt.Compare(b.LastAt))
	})
}

// Drops sums what the filter dropped of one subject, and what it sent that was invalid, since a day, by type and reason.
func (s *Store) Drops(ctx context.Context, org, kind, id string, since time.Time) ([]Drop, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT type, reason, CAST(SUM(count) AS BIGINT), MAX(last_at) FROM signal_drops
		WHERE org = $1 AND subject_kind = $2 AND subject_id = $3 AND day >= $4 GROUP BY type, reason ORDER BY type, reason`, org, kind, id, day(since))
	if err != nil {
		return nil, wrap("read drops", err)
	}
	defer rows.Close()
	out := []Drop{}
	for rows.Next() {
		d := Drop{Org: org, SubjectKind: kind, SubjectID: id}
		var last int64
		if err := rows.Scan(&d.Type, &d.Reason, &d.Count, &last); err != nil {
			return nil, wrap("read drops", err)
		}
		d.LastAt = fromMilli(last)
		out = append(out, d)
	}
	return out, wrap("read drops", rows.Err())
}
