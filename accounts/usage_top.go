package accounts

import (
	"context"
	"database/sql"
	"time"

	"flowstate.inc/sluice/auth"
)

// A SubjectUsage is what was done with all keys of one subject.
type SubjectUsage struct {
	Org     string
	Subject Subject
	auth.Usage
}

// UsageBySubject adds up the usage of every subject that has any in the hours that begin from since on and before until, in no order: of an org, or of
// all of them where org is "", which is for who operates Sluice, never for an org's admin. It reads a row for each key and hour.
func (s *Store) UsageBySubject(ctx context.Context, org string, since, until time.Time) ([]SubjectUsage, error) {
	var a args
	where := " WHERE u.hour >= " + a.add(since.UnixMilli()) + " AND u.hour < " + a.add(until.UnixMilli())
	if org != "" {
		where += " AND k.org = " + a.add(org)
	}
	sums := ""
	for _, column := range []string{"requests", "accepted", "filtered", "invalid", "unavailable", "refused", "bytes"} {
		sums += ", CAST(SUM(u." + column + ") AS BIGINT)"
	}
	rows, err := s.r.QueryContext(ctx, `SELECT k.org, k.kind, k.subject_id, MAX(k.subject_name), COALESCE(MAX(a.name), ''), COALESCE(MAX(a.environment), '')`+sums+`
		FROM key_usage u JOIN keys k ON k.prefix = u.prefix LEFT JOIN service_accounts a ON k.kind = 'service_account' AND a.id = k.subject_id`+where+`
		GROUP BY k.org, k.kind, k.subject_id`, a...)
	if err != nil {
		return nil, wrap("add up the usage", err)
	}
	out, err := collect(rows, func(rows *sql.Rows) (SubjectUsage, error) {
		var u SubjectUsage
		var subjectName, name, environment string
		err := rows.Scan(&u.Org, &u.Subject.Kind, &u.Subject.ID, &subjectName, &name, &environment,
			&u.Requests, &u.Accepted, &u.Filtered, &u.Invalid, &u.Unavailable, &u.Refused, &u.Bytes)
		u.Subject.Label = serviceLabel(name, environment)
		if u.Subject.Kind != string(auth.KindServiceAccount) {
			u.Subject.Label = u.Subject.Kind + ": " + subjectName
		}
		return u, err
	})
	return out, wrap("add up the usage", err)
}

// UsageFreshness says how many edges are live, and when one last wrote usage, by its own clock: the zero time for never. Edges write each second while
// there is something to write.
func (s *Store) UsageFreshness(ctx context.Context) (int, time.Time, error) {
	var live int
	err := s.r.QueryRowContext(ctx, `SELECT COUNT(*) FROM edges WHERE seen_at_us >= `+s.dialect.clock()+` - $1`, liveEdge.Microseconds()).Scan(&live)
	if err != nil {
		return 0, time.Time{}, wrap("count the edges", err)
	}
	var at sql.NullInt64
	err = s.r.QueryRowContext(ctx, `SELECT MAX(at) FROM usage_writers`).Scan(&at)
	return live, fromMilli(at.Int64), wrap("read when usage was written", err)
}
