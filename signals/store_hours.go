package signals

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"
	"time"
)

// hourMillis is the width of one row of alert_hours.
const hourMillis = int64(time.Hour / time.Millisecond)

// An hourKey is one row of alert_hours: alerts that are the same to every filter but that of the account.
type hourKey struct {
	org         string
	hour        int64
	severity    string
	open        bool
	category    string
	typ         string
	environment string
}

func compareHours(a, b hourKey) int {
	open := 0
	if a.open != b.open {
		open = 1
		if b.open {
			open = -1
		}
	}
	return cmp.Or(strings.Compare(a.org, b.org), cmp.Compare(a.hour, b.hour), strings.Compare(a.severity, b.severity), open,
		strings.Compare(a.category, b.category), strings.Compare(a.typ, b.typ), strings.Compare(a.environment, b.environment))
}

func hourOf(e *Event, open bool) hourKey {
	k := hourKey{org: e.Org, hour: milli(e.DetectedAt) / hourMillis, severity: string(e.Severity), open: open, category: string(e.Category), typ: e.Type}
	if e.Service != nil {
		k.environment = e.Service.Environment
	}
	return k
}

// hours are changes of alert_hours that a transaction has yet to write.
type hours map[hourKey]int64

// add moves counts in the order of the key, after every change of alerts: so that transactions which meet wait for each other and
// never deadlock. What it counts is what the same transaction did, so the table is true whenever alerts is.
func (h hours) add(ctx context.Context, tx *sql.Tx) error {
	keys := make([]hourKey, 0, len(h))
	for k, n := range h {
		if n != 0 {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, compareHours)
	for part := range slices.Chunk(keys, insertRows) {
		var a args
		rows := make([]string, len(part))
		for i, k := range part {
			marks := []string{a.add(k.org), a.add(k.hour), a.add(k.severity), a.add(k.open), a.add(k.category), a.add(k.typ), a.add(k.environment), a.add(h[k])}
			rows[i] = `(` + strings.Join(marks, `, `) + `)`
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO alert_hours (org, hour, severity, open, category, type, environment, n) VALUES `+strings.Join(rows, `, `)+`
			ON CONFLICT (org, hour, severity, open, category, type, environment) DO UPDATE SET n = alert_hours.n + EXCLUDED.n`, a...)
		if err != nil {
			return wrap("count alerts by the hour", err)
		}
	}
	return nil
}

// scan counts rows of alerts that a statement returned, each n times.
func (h hours) scan(rows *sql.Rows, n int64) (int, error) {
	defer rows.Close()
	count := 0
	for rows.Next() {
		var k hourKey
		var detected int64
		if err := rows.Scan(&k.org, &detected, &k.severity, &k.open, &k.category, &k.typ, &k.environment); err != nil {
			return 0, wrap("count alerts by the hour", err)
		}
		k.hour = detected / hourMillis
		h[k] += n
		count++
	}
	return count, wrap("count alerts by the hour", rows.Err())
}

// hourColumns are what scan reads.
const hourColumns = `org, detected_at, severity, open, category, type, environment`

// Histogram counts the alerts of a filter over time, in at most n equal buckets from f.Since to f.Until, which must be set. Buckets
// of an hour and more are whole hours wide and begin at whole hours, but the first, which begins with f.Since, and they are read
// from alert_hours, however many alerts there are. Sort, Cursor and Limit of f say nothing here.
func (s *Store) Histogram(ctx context.Context, org string, f AlertFilter, n int) ([]Bucket, error) {
	f.Sort, f.Cursor, f.Limit = "", "", 0
	q, err := ask(org, f)
	if err != nil {
		return nil, err
	}
	span := q.until - q.since
	if q.since == 0 || span <= 0 || n < 1 || n > 500 {
		return nil, fmt.Errorf("%w: a histogram needs since before until, and 1 to 500 buckets", ErrBadQuestion)
	}
	start, width := q.since, (span+int64(n)-1)/int64(n)
	byHour := width >= hourMillis
	if byHour {
		start = q.since / hourMillis * hourMillis
		width = (q.until - start + int64(n) - 1) / int64(n)
		width = (width + hourMillis - 1) / hourMillis * hourMillis
		n = int((q.until - start + width - 1) / width)
	}
	buckets := make([]Bucket, n)
	for i := range buckets {
		buckets[i].At = fromMilli(max(start+int64(i)*width, q.since))
	}
	if !byHour || q.account != "" {
		return buckets, s.countAlerts(ctx, q, q.since, q.until, start, width, buckets)
	}
	from, to := (q.since+hourMillis-1)/hourMillis*hourMillis, q.until/hourMillis*hourMillis
	if err := s.countHours(ctx, q, from, to, start, width, buckets); err != nil {
		return nil, err
	}
	// What is left of an hour at either end stands in no row of its own.
	for _, edge := range [][2]int64{{q.since, min(from, q.until)}, {max(to, from), q.until}} {
		if edge[0] < edge[1] {
			if err := s.countAlerts(ctx, q, edge[0], edge[1], start, width, buckets); err != nil {
				return nil, err
			}
		}
	}
	return buckets, nil
}

// countAlerts counts the alerts from since to until one by one, from the indexes.
func (s *Store) countAlerts(ctx context.Context, q *question, since, until, start, width int64, buckets []Bucket) error {
	query, a := countStatement(q, since, until, start, width)
	return s.fillBuckets(ctx, buckets, query, a)
}

func countStatement(q *question, since, until, start, width int64) (string, args) {
	sub := *q
	sub.since, sub.until = since, until
	var a args
	var branches []string
	dimension, values := sub.dimension(sub.types)
	for _, severity := range sub.severities {
		for _, open := range sub.opens {
			for _, value := range values {
				w := sub.where(&a, open, severity, dimension, value, sub.types)
				branches = append(branches, fmt.Sprintf(`SELECT %d AS loudness, (detected_at - %s) / %s AS bucket, COUNT(*) AS n FROM alerts WHERE %s GROUP BY 2`,
					severity.rank(), `CAST(`+a.add(start)+` AS BIGINT)`, `CAST(`+a.add(width)+` AS BIGINT)`, w))
			}
		}
	}
	return strings.Join(branches, ` UNION ALL `), a
}

// countHours counts whole hours from from to to.
func (s *Store) countHours(ctx context.Context, q *question, from, to, start, width int64, buckets []Bucket) error {
	if from >= to {
		return nil
	}
	query, a := hoursStatement(q, from, to, start, width)
	return s.fillBuckets(ctx, buckets, query, a)
}

func hoursStatement(q *question, from, to, start, width int64) (string, args) {
	var a args
	w := `org = ` + a.add(q.org) + ` AND hour >= ` + a.add(from/hourMillis) + ` AND hour < ` + a.add(to/hourMillis)
	if len(q.opens) == 1 {
		w += ` AND open = ` + sqlBool(q.opens[0])
	}
	severities := make([]string, len(q.severities))
	for i, severity := range q.severities {
		severities[i] = string(severity)
	}
	w += a.in("severity", severities) + a.in("category", q.categories) + a.in("type", q.types) + a.in("environment", q.environments)
	return fmt.Sprintf(`SELECT CASE severity WHEN 'BLOCK' THEN 3 WHEN 'WARN' THEN 2 ELSE 1 END AS loudness,
		(hour - CAST(%s AS BIGINT)) / CAST(%s AS BIGINT) AS bucket, CAST(SUM(n) AS BIGINT) AS n FROM alert_hours WHERE %s GROUP BY 1, 2`,
		a.add(start/hourMillis), a.add(width/hourMillis), w), a
}

func (s *Store) fillBuckets(ctx context.Context, buckets []Bucket, query string, a args) error {
	rows, err := s.r.QueryContext(ctx, query, a...)
	if err != nil {
		return wrap("count alerts", err)
	}
	defer rows.Close()
	for rows.Next() {
		var loudness, bucket, count int
		if err := rows.Scan(&loudness, &bucket, &count); err != nil {
			return wrap("count alerts", err)
		}
		switch loudness {
		case 1:
			buckets[bucket].Info += count
		case 2:
			buckets[bucket].Warn += count
		case 3:
			buckets[bucket].Block += count
		}
	}
	return wrap("count alerts", rows.Err())
}

// RecountHours brings the whole hours of alert_hours from since to until to what alerts holds, and returns how many rows it set
// right: they drift while a version of Sluice that does not write them runs beside this one. An org is one short transaction.
func (s *Store) RecountHours(ctx context.Context, since, until time.Time) (int, error) {
	from, to := milli(since)/hourMillis, milli(until)/hourMillis
	orgs, err := s.orgsOfHours(ctx)
	if err != nil {
		return 0, err
	}
	mended := 0
	for _, org := range orgs {
		var drift hours
		err := s.write(ctx, func(ctx context.Context, tx *sql.Tx) error {
			if s.dialect == Postgres {
				// Who else recounts would add the same difference again. SQLite has one writer.
				if _, err := tx.ExecContext(ctx, `LOCK TABLE alert_hours IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
					return wrap("recount hours", err)
				}
			}
			var err error
			if drift, err = driftOf(ctx, tx, org, from, to); err != nil {
				return err
			}
			return drift.add(ctx, tx)
		})
		if err != nil {
			return mended, err
		}
		mended += len(drift)
	}
	return mended, nil
}

// driftOf is what alert_hours lacks. One statement reads both tables, so that a difference is drift and no writer on its way; it is
// then added, as writers add theirs, so that none of them waits or is undone.
func driftOf(ctx context.Context, tx *sql.Tx, org string, from, to int64) (hours, error) {
	const columns = `hour, severity, open, category, type, environment`
	rows, err := tx.QueryContext(ctx, `SELECT `+columns+`, CAST(SUM(n) AS BIGINT) FROM (
		SELECT detected_at / 3600000 AS hour, severity, open, category, type, environment, COUNT(*) AS n FROM alerts
		WHERE org = $1 AND open IN (TRUE, FALSE) AND severity IN ('BLOCK', 'WARN', 'INFO') AND detected_at >= $2 AND detected_at < $3 GROUP BY 1, 2, 3, 4, 5, 6
		UNION ALL SELECT `+columns+`, -n FROM alert_hours WHERE org = $1 AND hour >= $4 AND hour < $5
		) AS counts GROUP BY `+columns+` HAVING SUM(n) <> 0`, org, from*hourMillis, to*hourMillis, from, to)
	if err != nil {
		return nil, wrap("recount hours", err)
	}
	defer rows.Close()
	drift := hours{}
	for rows.Next() {
		k, n := hourKey{org: org}, int64(0)
		if err := rows.Scan(&k.hour, &k.severity, &k.open, &k.category, &k.typ, &k.environment, &n); err != nil {
			return nil, wrap("recount hours", err)
		}
		drift[k] = n
	}
	return drift, wrap("recount hours", rows.Err())
}

// orgsOfHours are the orgs that have alerts: counted ones, or some of the last day.
func (s *Store) orgsOfHours(ctx context.Context) ([]string, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT org FROM alert_hours UNION SELECT org FROM alerts WHERE received_at >= $1`, milli(s.now().Add(-24*time.Hour)))
	if err != nil {
		return nil, wrap("read orgs with alerts", err)
	}
	defer rows.Close()
	var orgs []string
	for rows.Next() {
		var org string
		if err := rows.Scan(&org); err != nil {
			return nil, wrap("read orgs with alerts", err)
		}
		orgs = append(orgs, org)
	}
	return orgs, wrap("read orgs with alerts", rows.Err())
}
