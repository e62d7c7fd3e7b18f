package signals

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of the pages of alerts.
const (
	DefaultLimit = 50
	MaxLimit     = 200
)

// A AlertSort orders a list of alerts; a leading - turns it round. Among equals the newest come first.
type AlertSort string

// The orders. The zero value is the newest first.
const (
	SortDetected AlertSort = "detected_at"
	SortSeverity AlertSort = "severity" // INFO, WARN, BLOCK
	SortType     AlertSort = "type"
	SortNewest   AlertSort = "-detected_at"
	SortLoudest  AlertSort = "-severity"
)

// An AlertFilter is a question to Alerts. The zero value is every alert of the org, the newest first. Several values of a
// member are joined by or, members by and.
type AlertFilter struct {
	Open         *bool
	Severities   []Severity
	Categories   []Category
	Types        []string
	Environments []string
	Account      string    // id of a service account
	Since, Until time.Time // detected_at, since included; zero: unbounded
	Sort         AlertSort
	Cursor       string
	Limit        int // 0: DefaultLimit
}

// An AlertPage is one page of a list. NextCursor is "" on the last.
type AlertPage struct {
	Items      []Alert
	NextCursor string
}

// A question is a filter, checked.
type question struct {
	org          string
	opens        []bool
	severities   []Severity
	categories   []string
	types        []string
	environments []string
	account      string
	since, until int64
	sort         AlertSort // without its sign
	down         bool
	limit        int
	from         *place
	in           string // fingerprint
}

// Alerts answers one page. Every page is merged from index ranges, one for each value of (open, severity) and of the
// narrowest of account, type, category and environment, each read no further than the page needs.
// ErrBadQuestion says what is wrong with f.
func (s *Store) Alerts(ctx context.Context, org string, f AlertFilter) (AlertPage, error) {
	q, err := ask(org, f)
	if err != nil {
		return AlertPage{}, err
	}
	var found []Alert
	if q.sort == SortType {
		found, err = s.listByType(ctx, q)
	} else {
		found, err = s.merge(ctx, q, q.types, q.limit+1, q.from)
	}
	if err != nil {
		return AlertPage{}, err
	}
	page := AlertPage{Items: found}
	if len(found) > q.limit {
		page.Items = found[:q.limit]
		last := &page.Items[q.limit-1].Event
		p := place{In: q.in, Num: milli(last.DetectedAt), ID: last.ID}
		switch q.sort {
		case SortSeverity:
			p.Text = string(last.Severity)
		case SortType:
			p.Text = last.Type
		}
		page.NextCursor = p.encode()
	}
	if page.Items == nil {
		page.Items = []Alert{}
	}
	return page, nil
}

func ask(org string, f AlertFilter) (*question, error) {
	bad := func(format string, a ...any) (*question, error) {
		return nil, fmt.Errorf("%w: %s", ErrBadQuestion, fmt.Sprintf(format, a...))
	}
	q := &question{org: org, opens: []bool{true, false}, severities: []Severity{Info, Warn, Block}, account: f.Account, limit: f.Limit}
	if f.Open != nil {
		q.opens = []bool{*f.Open}
	}
	if len(f.Severities) > 0 {
		q.severities = nil
		for _, s := range []Severity{Info, Warn, Block} {
			if slices.Contains(f.Severities, s) {
				q.severities = append(q.severities, s)
			}
		}
		for _, s := range f.Severities {
			if s.rank() == 0 {
				return bad("severity %s is not INFO, WARN or BLOCK", quoted(string(s)))
			}
		}
	}
	for _, c := range f.Categories {
		if !slices.Contains(Categories(), c) {
			return bad("category %s is not one of %s", quoted(string(c)), joined(Categories()))
		}
		q.categories = append(q.categories, string(c))
	}
	for _, t := range f.Types {
		name, ok := NormaliseType(t)
		if !ok {
			return bad("type %s is not a type", quoted(t))
		}
		q.types = append(q.types, name)
	}
	q.environments = slices.Clone(f.Environments)
	for _, list := range []*[]string{&q.categories, &q.types, &q.environments} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
		if len(*list) > 20 {
			return bad("more than 20 values of one filter")
		}
	}
	if badText(q.account) || slices.ContainsFunc(q.environments, badText) {
		return bad("a filter holds what no text can")
	}
	if !f.Since.IsZero() {
		q.since = milli(f.Since)
	}
	if !f.Until.IsZero() {
		q.until = milli(f.Until)
	}
	name := f.Sort
	if name == "" {
		name = SortNewest
	}
	bare, down := strings.CutPrefix(string(name), "-")
	q.sort, q.down = AlertSort(bare), down
	if q.sort != SortDetected && q.sort != SortSeverity && q.sort != SortType {
		return bad("sort must be detected_at, severity or type, with - before it to turn it round")
	}
	switch {
	case q.limit == 0:
		q.limit = DefaultLimit
	case q.limit < 0 || q.limit > MaxLimit:
		return bad("limit must be 1 to %d", MaxLimit)
	}
	q.in = fingerprint(org, q.opens, q.severities, q.categories, q.types, q.environments, q.account, q.since, q.until, q.sort, q.down)
	var err error
	q.from, err = decodePlace(f.Cursor, q.in)
	return q, err
}

// fingerprint is short: a clash costs a page that begins at an odd place, no more.
func fingerprint(parts ...any) string {
	b, err := json.Marshal(parts)
	if err != nil {
		panic("BUG: a filter is not JSON: " + err.Error())
	}
	h := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(h[:6])
}

// where writes the conditions of a branch that are not its dimension. The dimension is the column whose index carries it.
func (q *question) where(a *args, open bool, severity Severity, dimension, value string, types []string) string {
	w := `org = ` + a.add(q.org) + ` AND open = ` + sqlBool(open) + ` AND severity = ` + a.add(string(severity))
	if dimension != "" {
		w += ` AND ` + dimension + ` = ` + a.add(value)
	}
	if dimension != "account_id" && q.account != "" {
		w += ` AND account_id = ` + a.add(q.account)
	}
	if dimension != "type" {
		w += a.in("type", types)
	}
	if dimension != "category" {
		w += a.in("category", q.categories)
	}
	if dimension != "environment" {
		w += a.in("environment", q.environments)
	}
	if q.since != 0 {
		w += ` AND detected_at >= ` + a.add(q.since)
	}
	if q.until != 0 {
		w += ` AND detected_at < ` + a.add(q.until)
	}
	return w
}

func sqlBool(b bool) string {
	if b {
		return `TRUE`
	}
	return `FALSE`
}

// dimension is the column whose index narrows the question most, and the values that are asked for.
func (q *question) dimension(types []string) (string, []string) {
	switch {
	case q.account != "":
		return "account_id", []string{q.account}
	case len(types) > 0:
		return "type", types
	case len(q.categories) > 0:
		return "category", q.categories
	case len(q.environments) > 0:
		return "environment", q.environments
	}
	return "", []string{""}
}

// direction is how detected_at and id run: newest first unless the sort itself is by time and upwards.
func (q *question) direction() (string, string) {
	if q.sort == SortDetected && !q.down {
		return ` ASC`, ` > `
	}
	return ` DESC`, ` < `
}

// statement is the SQL that reads up to n alerts in the order of the question, of these types (nil: all), after from; ""
// where there can be none.
func (q *question) statement(types []string, n int, from *place) (string, args) {
	var a args
	dimension, values := q.dimension(types)
	order, after := q.direction()
	var branches []string
	for _, severity := range q.severities {
		keyset := from
		if q.sort == SortSeverity && from != nil {
			by := severity.rank() - Severity(from.Text).rank()
			if q.down {
				by = -by
			}
			if by < 0 {
				continue // all of it was on earlier pages
			}
			if by > 0 {
				keyset = nil
			}
		}
		for _, open := range q.opens {
			for _, value := range values {
				w := q.where(&a, open, severity, dimension, value, types)
				if keyset != nil {
					w += ` AND (detected_at, id)` + after + `(` + a.add(keyset.Num) + `, ` + a.add(keyset.ID) + `)`
				}
				branches = append(branches, fmt.Sprintf(`SELECT * FROM (SELECT %s, detected_at, %d AS loudness FROM alerts WHERE %s ORDER BY detected_at%s, id%s LIMIT %s) AS b%d`,
					alertColumns, severity.rank(), w, order, order, a.add(n), len(branches)))
			}
		}
	}
	if len(branches) == 0 {
		return "", nil
	}
	by := `detected_at` + order + `, id` + order
	if q.sort == SortSeverity {
		direction := ` ASC, `
		if q.down {
			direction = ` DESC, `
		}
		by = `loudness` + direction + by
	}
	return strings.Join(branches, ` UNION ALL `) + ` ORDER BY ` + by + ` LIMIT ` + a.add(n), a
}

// merge answers a statement.
func (s *Store) merge(ctx context.Context, q *question, types []string, n int, from *place) ([]Alert, error) {
	sql, a := q.statement(types, n, from)
	if sql == "" {
		return nil, nil
	}
	rows, err := s.r.QueryContext(ctx, sql, a...)
	if err != nil {
		return nil, wrap("list alerts", err)
	}
	defer rows.Close()
	var out []Alert
	var detected, loudness int64
	for rows.Next() {
		alert, err := scanAlert(rows.Scan, &detected, &loudness)
		if err != nil {
			return nil, err
		}
		out = append(out, alert)
	}
	return out, wrap("list alerts", rows.Err())
}

// listByType reads type after type until the page is full: one small question each, over types that there are.
func (s *Store) listByType(ctx context.Context, q *question) ([]Alert, error) {
	types := q.types
	if len(types) == 0 {
		var err error
		types, err = s.types(ctx, q)
		if err != nil {
			return nil, err
		}
	}
	if q.down {
		types = slices.Clone(types)
		slices.Reverse(types)
	}
	var out []Alert
	for _, t := range types {
		from := q.from
		if from != nil {
			by := strings.Compare(t, from.Text)
			if q.down {
				by = -by
			}
			if by < 0 {
				continue
			}
			if by > 0 {
				from = nil
			}
		}
		more, err := s.merge(ctx, q, []string{t}, q.limit+1-len(out), from)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
		if len(out) > q.limit {
			break
		}
	}
	return out, nil
}

// types lists the types that an org has alerts of, from the index: one step for each type, not for each row.
func (s *Store) types(ctx context.Context, q *question) ([]string, error) {
	var all []string
	for _, open := range q.opens {
		is := `open = ` + sqlBool(open)
		rows, err := s.r.QueryContext(ctx, `WITH RECURSIVE t(type) AS (
			SELECT MIN(type) FROM alerts WHERE org = $1 AND `+is+`
			UNION ALL SELECT (SELECT MIN(n.type) FROM alerts n WHERE n.org = $1 AND n.`+is+` AND n.type > t.type) FROM t WHERE t.type IS NOT NULL)
			SELECT type FROM t WHERE type IS NOT NULL`, q.org)
		if err != nil {
			return nil, wrap("list types", err)
		}
		for rows.Next() {
			var t string
			if err := rows.Scan(&t); err != nil {
				_ = rows.Close() // the scan's error says more
				return nil, wrap("list types", err)
			}
			all = append(all, t)
		}
		if err := rows.Err(); err != nil {
			return nil, wrap("list types", err)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
