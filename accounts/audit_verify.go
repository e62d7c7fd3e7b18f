package accounts

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// What VerifyAudit finds.
const (
	AuditEdited  = "edited_or_moved" // the row does not hash to what was chained: its content was changed, or it stood elsewhere
	AuditRemoved = "removed"         // rows are missing here
	AuditCutOff  = "cut_off"         // rows are missing at the end: the head says that there were more
	AuditAdded   = "added"           // there are rows past the head
	AuditHead    = "head"            // the head, or the checkpoint, is gone or does not fit the last row
)

// An AuditProblem is one place where the chain is broken.
type AuditProblem struct {
	Seq    int64  `json:"seq"` // of the row, or of the first that is missing
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

// An AuditReport is what VerifyAudit found. The audit is intact when Problems is empty.
type AuditReport struct {
	Org        string         `json:"org"`
	Rows       int64          `json:"rows"`       // checked
	First      int64          `json:"first_seq"`  // the first that retention left; 0: none
	Head       int64          `json:"head_seq"`   // the last there ever was
	Checkpoint int64          `json:"checkpoint"` // the last that retention took; 0: none
	Problems   []AuditProblem `json:"problems"`   // at most MaxAuditProblems
}

// Intact says whether nothing was found.
func (r AuditReport) Intact() bool { return len(r.Problems) == 0 }

// MaxAuditProblems is where a report stops counting.
const MaxAuditProblems = 100

// VerifyAudit reads the org's whole audit and says where it is not what was written. It works in pages, against the head as it was when it began, so
// that writers go on meanwhile. What it cannot find: that somebody with full access to the database rewrote rows, checkpoint and head together.
// Errors: ErrUnknownOrg.
func (s *Store) VerifyAudit(ctx context.Context, org string) (AuditReport, error) {
	if _, err := s.Org(ctx, org); err != nil {
		return AuditReport{}, err
	}
	v := verifier{report: AuditReport{Org: org}}
	head, err := s.readHead(ctx, org)
	if err != nil {
		return AuditReport{}, err
	}
	if head == nil {
		v.problem(0, AuditHead, "the head of the chain is gone")
		return v.report, nil
	}
	v.report.Head = head.count
	for {
		// The checkpoint is read again when retention moved it meanwhile.
		checkpoint, err := s.readCheckpoint(ctx, org)
		if err != nil {
			return AuditReport{}, err
		}
		v.begin(checkpoint)
		if err := s.verifyRows(ctx, &v, head); err != nil {
			return AuditReport{}, err
		}
		again, err := s.readCheckpoint(ctx, org)
		if err != nil {
			return AuditReport{}, err
		}
		if again == checkpoint {
			return v.report, nil
		}
	}
}

type chainHead struct {
	count int64
	hash  [32]byte
}

type checkpoint struct {
	seq  int64
	hash [32]byte
}

func (s *Store) readHead(ctx context.Context, org string) (*chainHead, error) {
	var h chainHead
	var hash []byte
	err := s.r.QueryRowContext(ctx, `SELECT count, hash FROM audit_heads WHERE org = $1`, org).Scan(&h.count, &hash)
	if isNoRows(err) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap("read the audit's head", err)
	}
	copy(h.hash[:], hash)
	return &h, nil
}

func (s *Store) readCheckpoint(ctx context.Context, org string) (checkpoint, error) {
	var c checkpoint
	var hash []byte
	err := s.r.QueryRowContext(ctx, `SELECT seq, hash FROM audit_checkpoints WHERE org = $1 ORDER BY seq DESC LIMIT 1`, org).Scan(&c.seq, &hash)
	if isNoRows(err) {
		return checkpoint{}, nil
	}
	if err != nil {
		return checkpoint{}, wrap("read the audit's checkpoint", err)
	}
	copy(c.hash[:], hash)
	return c, nil
}

// A verifier walks the chain.
type verifier struct {
	report AuditReport
	next   int64    // seq that must come now
	prev   [32]byte // hash of the row before it
	lastAt time.Time
}

func (v *verifier) begin(c checkpoint) {
	v.report.Rows, v.report.First, v.report.Problems, v.report.Checkpoint = 0, 0, nil, c.seq
	v.next, v.prev, v.lastAt = c.seq+1, c.hash, time.Time{}
}

func (v *verifier) problem(seq int64, kind, format string, args ...any) {
	if len(v.report.Problems) < MaxAuditProblems {
		v.report.Problems = append(v.report.Problems, AuditProblem{seq, kind, fmt.Sprintf(format, args...)})
	}
}

func (v *verifier) row(e AuditEvent) {
	if v.report.First == 0 {
		v.report.First = e.Seq
	}
	v.report.Rows++
	missing := e.Seq - v.next
	if missing > 0 {
		v.problem(v.next, AuditRemoved, "%d rows are missing before row %d", missing, e.Seq)
	}
	// After a gap the hash of the row before is not known, so the row can be checked against nothing; its successor can.
	if missing == 0 {
		switch {
		case chainHash(v.prev, e) != e.Hash:
			v.problem(e.Seq, AuditEdited, "row %d is not what was written", e.Seq)
		case e.At.Before(v.lastAt):
			v.problem(e.Seq, AuditEdited, "row %d is older than the row before it", e.Seq)
		}
	}
	v.next, v.prev, v.lastAt = e.Seq+1, e.Hash, e.At
}

// verifyRows reads past the head by one row that the head at the end accounts for: rows that were appended meanwhile are no problem.
func (s *Store) verifyRows(ctx context.Context, v *verifier, head *chainHead) error {
	const page = 1000
	for from := v.next; ; {
		rows, err := s.r.QueryContext(ctx, `SELECT `+auditColumns+` FROM audit_events e WHERE e.org = $1 AND e.seq >= $2 AND e.seq <= $3 ORDER BY e.seq LIMIT $4`,
			v.report.Org, from, head.count, page)
		if err != nil {
			return wrap("read the audit", err)
		}
		events, err := collect(rows, scanAudit)
		if err != nil {
			return wrap("read the audit", err)
		}
		for _, e := range events {
			v.row(e)
		}
		if len(events) < page {
			break
		}
		from = events[len(events)-1].Seq + 1
	}
	switch {
	case v.next <= head.count:
		v.problem(v.next, AuditCutOff, "the head says %d rows, the last there is %d", head.count, v.next-1)
	case v.next != head.count+1:
		v.problem(head.count, AuditHead, "the checkpoint is past the head")
	case v.prev != head.hash:
		v.problem(head.count, AuditHead, "the last row is not the one that the head was made with")
	}
	return s.verifyEnds(ctx, v)
}

// verifyEnds looks for rows outside the chain: before the checkpoint and past the head as it is now.
func (s *Store) verifyEnds(ctx context.Context, v *verifier) error {
	for _, end := range []string{
		`SELECT e.seq FROM audit_events e WHERE e.org = $1 AND e.seq <= (SELECT MAX(c.seq) FROM audit_checkpoints c WHERE c.org = $1) ORDER BY e.seq LIMIT 1`,
		`SELECT e.seq FROM audit_events e WHERE e.org = $1 AND e.seq > (SELECT h.count FROM audit_heads h WHERE h.org = $1) ORDER BY e.seq LIMIT 1`,
	} {
		var seq int64
		err := s.r.QueryRowContext(ctx, end, v.report.Org).Scan(&seq)
		switch {
		case err == nil:
			v.problem(seq, AuditAdded, "row %d is outside the chain", seq)
		case !isNoRows(err):
			return wrap("read the ends of the audit", err)
		}
	}
	return nil
}

// retentionChunk bounds how long one step of retention holds the org's head, which every change of the org waits for.
const retentionChunk = 5_000

// PruneAudit removes the org's rows from before the given time, leaves a checkpoint that the next row is chained to, and writes a row of its own that
// says so; a few thousand rows a transaction. The newest row always stays. It returns how many rows it removed. Errors: ErrUnknownOrg.
func (s *Store) PruneAudit(ctx context.Context, by By, org string, before time.Time) (int64, error) {
	if _, err := s.Org(ctx, org); err != nil {
		return 0, err
	}
	// Never past now: each step writes a row, which the next must not take.
	if now := s.now(); before.After(now) {
		before = now
	}
	var total int64
	for {
		var n int64
		_, err := s.write(ctx, func(ctx context.Context, t *tx) error {
			var err error
			n, err = t.pruneAudit(ctx, by, org, before)
			return err
		})
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
}

func (t *tx) pruneAudit(ctx context.Context, by By, org string, before time.Time) (int64, error) {
	// The head's lock keeps two retentions, and the appender, apart.
	var count int64
	err := t.QueryRowContext(ctx, `SELECT h.count FROM audit_heads h WHERE h.org = $1`+t.dialect.forUpdate("h"), org).Scan(&count)
	if err != nil {
		return 0, wrap("read the audit's head", err)
	}
	// The row at the far end of the chunk is found by its place in the chain, so that whatever is taken is a whole beginning of it.
	var first sql.NullInt64
	if err := t.QueryRowContext(ctx, `SELECT MIN(e.seq) FROM audit_events e WHERE e.org = $1`, org).Scan(&first); err != nil {
		return 0, wrap("find the oldest audit row", err)
	}
	var last int64
	var hash []byte
	err = t.QueryRowContext(ctx, `SELECT e.seq, e.hash FROM audit_events e WHERE e.org = $1 AND e.at < $2 AND e.seq < $3 AND e.seq < $4
		ORDER BY e.at DESC, e.seq DESC LIMIT 1`, org, before.UnixMilli(), first.Int64+retentionChunk, count).Scan(&last, &hash)
	if isNoRows(err) {
		return 0, nil
	}
	if err != nil {
		return 0, wrap("find what retention takes", err)
	}
	res, err := t.ExecContext(ctx, `DELETE FROM audit_events WHERE org = $1 AND seq <= $2`, org, last)
	if err != nil {
		return 0, wrap("remove old audit rows", err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return 0, wrap("count the removed audit rows", err)
	}
	_, err = t.ExecContext(ctx, `INSERT INTO audit_checkpoints (org, seq, hash, created_at) VALUES ($1, $2, $3, $4)`, org, last, hash, t.now.UnixMilli())
	if err != nil {
		return 0, wrap("leave a checkpoint", err)
	}
	return n, t.audit(ctx, org, by, Event{
		Action: "audit.pruned", Target: Subject{"audit", org, "audit: " + org}, After: fields{"rows": n, "through_seq": last, "before": *jsonTime(before)},
	})
}
