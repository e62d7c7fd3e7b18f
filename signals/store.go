package signals

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
)

// What callers of the Store can act on. Its errors wrap one of these, or are the database's.
var (
	ErrNotFound    = errors.New("not found")                 // unknown, or of another org
	ErrActivated   = errors.New("the draft was activated")   // earlier, and another version is in force now
	ErrStale       = errors.New("the draft is stale")        // another version came into force after it was written: a *StaleError
	ErrBadQuestion = errors.New("the question is malformed") // a filter, sort or cursor; the text says which
	ErrNotAnEvent  = errors.New("not an event")              // of this version; it can never be stored
)

// A Dialect says which database a Store speaks to.
type Dialect uint8

// The databases that a Store runs on.
const (
	Postgres Dialect = iota + 1
	SQLite
)

// StoreConfig is what NewStore needs. The handles stay the caller's, who closes them after the last call.
type StoreConfig struct {
	Writer  *sql.DB // for SQLite limited to one connection, beginning immediate
	Reader  *sql.DB // sees every commit of Writer at once; nil: Writer
	Dialect Dialect
	// Audit writes one row of the audit in the transaction of the change: accounts.Store's. Nil: no audit.
	Audit func(ctx context.Context, tx *sql.Tx, entry AuditEntry) error
	Now   func() time.Time // nil: time.Now
}

// By says who makes a change and from where, for the audit.
type By struct {
	Actor string
	IP    string
	Via   string
}

// An AuditEntry is one change for the audit. Before and After become JSON objects; nil is nothing.
type AuditEntry struct {
	Org                               string
	By                                By
	Action                            string // policy.activated, alert.resolved, …
	TargetKind, TargetID, TargetLabel string
	Before, After                     map[string]any
}

// A Store keeps policies, alerts and what the filter dropped, in a database that deploy.Migrate has brought up to date.
type Store struct {
	w, r    *sql.DB
	dialect Dialect
	audit   func(ctx context.Context, tx *sql.Tx, entry AuditEntry) error
	now     func() time.Time
	wake    chan struct{}
}

// NewStore makes a Store. It does not touch the database.
func NewStore(cfg StoreConfig) *Store {
	s := &Store{w: cfg.Writer, r: cfg.Reader, dialect: cfg.Dialect, audit: cfg.Audit, now: cfg.Now, wake: make(chan struct{}, 1)}
	if s.r == nil {
		s.r = s.w
	}
	if s.audit == nil {
		s.audit = func(context.Context, *sql.Tx, AuditEntry) error { return nil }
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// Wake receives after an activation in this process: what Policies.Run waits for. It has room for one, and one reader.
func (s *Store) Wake() <-chan struct{} { return s.wake }

const (
	writeTimeout  = 10 * time.Second
	writeAttempts = 4
)

// write runs fn in a transaction, again when the database asks for it. fn must be free of effects outside the transaction.
func (s *Store) write(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var err error
	for range writeAttempts {
		err = s.attempt(ctx, fn)
		if classify(err) != classRetry {
			break
		}
	}
	return err
}

func (s *Store) attempt(ctx context.Context, fn func(ctx context.Context, tx *sql.Tx) error) error {
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	if err := fn(ctx, tx); err != nil {
		_ = tx.Rollback() // its error says nothing more: the connection is dropped when it fails
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

type errClass uint8

const (
	classOther errClass = iota
	classRetry          // nothing was done; the same transaction may pass when run again
	classData           // the database will never take these values
)

// classify reads the codes of both databases. nil is classOther.
func classify(err error) errClass {
	var pg *pgconn.PgError
	var lite *sqlite.Error
	switch {
	case errors.As(err, &pg):
		switch {
		case pg.Code == "40001" || pg.Code == "40P01":
			return classRetry
		case len(pg.Code) == 5 && (pg.Code[:2] == "22" || pg.Code[:2] == "23" || pg.Code == "54000"):
			return classData
		}
	case errors.As(err, &lite):
		const tooBig, constraint, mismatch = 18, 19, 20
		switch lite.Code() & 0xff {
		case tooBig, constraint, mismatch:
			return classData
		}
	}
	return classOther
}

// forUpdate locks the rows of table until the transaction ends. SQLite needs none of it: its writers begin immediate, one at a time.
func (d Dialect) forUpdate(table string) string {
	if d == Postgres {
		return ` FOR UPDATE OF ` + table
	}
	return ``
}

// wrap names the step for the reader of the log; nil stays nil, and sql.ErrNoRows becomes ErrNotFound.
func wrap(step string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("%s: %w", step, ErrNotFound)
	}
	return fmt.Errorf("%s: %w", step, err)
}

// NewID makes an id that sorts by time and cannot be guessed: the kind, then 32 hex digits (48 bits of milliseconds, 80 random bits).
func NewID(kind string, now time.Time) string {
	var b [16]byte
	_, _ = rand.Read(b[6:]) // never fails: crypto/rand ends the program instead
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		b[i] = byte(ms >> (40 - 8*i))
	}
	return kind + "_" + hex.EncodeToString(b[:])
}

// args numbers the parameters of a statement that is put together.
type args []any

func (a *args) add(v any) string {
	*a = append(*a, v)
	return fmt.Sprintf("$%d", len(*a))
}

// in makes a condition that column is one of values; "" where there are none.
func (a *args) in(column string, values []string) string {
	if len(values) == 0 {
		return ""
	}
	marks := make([]string, len(values))
	for i, v := range values {
		marks[i] = a.add(v)
	}
	return ` AND ` + column + ` IN (` + strings.Join(marks, ", ") + `)`
}

// A place is where a page ended. What it is a place in is fingerprinted: a cursor of one question is refused in another,
// since it would skip rows there without a word.
type place struct {
	In   string `json:"f"`
	Text string `json:"t,omitempty"` // last value of the sort column, where that is a text
	Num  int64  `json:"n,omitempty"` // last detected_at, or another number
	ID   string `json:"i,omitempty"`
}

func (p place) encode() string {
	b, err := json.Marshal(p)
	if err != nil {
		panic("BUG: a cursor is not JSON: " + err.Error())
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodePlace reads a cursor of the question with this fingerprint; nil for none, which is the beginning.
func decodePlace(cursor, in string) (*place, error) {
	if cursor == "" {
		return nil, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	var p place
	if err != nil || len(b) > 4096 || json.Unmarshal(b, &p) != nil || p.In != in || badText(p.Text) || badText(p.ID) {
		return nil, fmt.Errorf("%w: cursor is not one of this list with these filters; begin again without it", ErrBadQuestion)
	}
	return &p, nil
}

// badText is what PostgreSQL refuses in a text and nothing stored holds.
func badText(s string) bool { return strings.ContainsRune(s, 0) || strings.ToValidUTF8(s, "") != s }

func milli(t time.Time) int64 { return t.UnixMilli() }

func fromMilli(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
