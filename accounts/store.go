package accounts

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"flowstate.inc/sluice/auth"
)

// A Store is the truth in one database. Use NewStore.
type Store struct {
	w, r     *sql.DB
	dialect  Dialect
	onChange func(auth.Change)
	now      func() time.Time
	wake     chan struct{}
}

// StoreConfig is what NewStore needs. The handles stay the caller's, who closes them after the last call.
type StoreConfig struct {
	Writer  *sql.DB // for SQLite limited to one connection: OpenSQLite
	Reader  *sql.DB // must see every commit of Writer at once: the primary, never a replica; nil: Writer
	Dialect Dialect
	// OnChange is called for every key whose version rose, after the commit and before the changing call returns. It must not block. nil: nobody.
	OnChange func(auth.Change)
	Now      func() time.Time // nil: time.Now
}

// NewStore makes a Store on a database that deploy.Migrate has brought up to date. It does not touch the database.
func NewStore(cfg StoreConfig) *Store {
	s := &Store{w: cfg.Writer, r: cfg.Reader, dialect: cfg.Dialect, onChange: cfg.OnChange, now: cfg.Now, wake: make(chan struct{}, 1)}
	if s.r == nil {
		s.r = s.w
	}
	if s.onChange == nil {
		s.onChange = func(auth.Change) {}
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// Wake receives after every change that this Store committed: what Listen is to the changes of all processes. It has room for one, and one reader.
func (s *Store) Wake() <-chan struct{} { return s.wake }

// Ping says whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.r.PingContext(ctx); err != nil {
		return fmt.Errorf("ping the database: %w", err)
	}
	return nil
}

const (
	// writeTimeout bounds every writing transaction, well below the 60 s of key_changes that edges read again, so that a row is not committed so
	// late that an edge has read past its time. It does not run in a process that is stopped: see idleInTransaction.
	writeTimeout = 10 * time.Second
	// notifyTimeout bounds what follows a commit; the change stands without it, edges then learn of it by their poll.
	notifyTimeout = 2 * time.Second
	writeAttempts = 4
)

// A tx is one writing transaction: what it changed is announced when it has committed.
type tx struct {
	*sql.Tx
	dialect Dialect
	now     time.Time // one time for all rows of the change
	changes []auth.Change
}

// write runs fn in a transaction, again when the database asks for it, and announces what fn changed. The time returned is the database's clock
// after the commit, zero when fn changed no key or the database did not answer any more.
//
// fn must be free of effects outside the transaction.
func (s *Store) write(ctx context.Context, fn func(context.Context, *tx) error) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	var (
		t   *tx
		err error
	)
	for range writeAttempts {
		t, err = s.attempt(ctx, fn)
		if classify(err) != classRetry {
			break
		}
	}
	// t is nil when nothing can have been committed. A commit that failed may have happened all the same, so it is announced too: an edge that
	// looks again for nothing is harmless, one that does not is not.
	if t == nil || len(t.changes) == 0 {
		return time.Time{}, err
	}
	at := s.announce(ctx, t.changes)
	return at, err
}

func (s *Store) attempt(ctx context.Context, fn func(context.Context, *tx) error) (*tx, error) {
	sqlTx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("begin: %w", err)
	}
	t := &tx{Tx: sqlTx, dialect: s.dialect, now: s.now().UTC().Truncate(time.Millisecond)}
	if err := fn(ctx, t); err != nil {
		// The error of the rollback says nothing more: the connection is dropped when it fails.
		_ = sqlTx.Rollback()
		return nil, err
	}
	if err := sqlTx.Commit(); err != nil {
		return t, fmt.Errorf("commit: %w", err)
	}
	return t, nil
}

// notifyChannel is what Listen listens to. The payload is empty: the wake says "look", key_changes says what.
const notifyChannel = "sluice_key_changes"

// announce tells this process first, then the others, and returns the database's clock. It runs to its end even when the client has gone.
func (s *Store) announce(ctx context.Context, changes []auth.Change) time.Time {
	for _, ch := range changes {
		s.onChange(ch)
	}
	select {
	case s.wake <- struct{}{}:
	default: // a wake is waiting already
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), notifyTimeout)
	defer cancel()
	// One statement: the clock is read before the notification goes out with its commit, so whoever wakes by it reads after that time.
	query := `SELECT ` + s.dialect.clock()
	if s.dialect == Postgres {
		query += `, pg_notify('` + notifyChannel + `', '')`
	}
	var us int64
	dest := []any{&us}
	if s.dialect == Postgres {
		var void sql.NullString
		dest = append(dest, &void)
	}
	if err := s.w.QueryRowContext(ctx, query).Scan(dest...); err != nil {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// clock is the database's clock, from the handle that q is.
func (s *Store) clock(ctx context.Context, q querier) (time.Time, error) {
	var us int64
	if err := q.QueryRowContext(ctx, `SELECT `+s.dialect.clock()).Scan(&us); err != nil {
		return time.Time{}, fmt.Errorf("read the database's clock: %w", err)
	}
	return time.UnixMicro(us).UTC(), nil
}

// A querier is what *sql.DB and *sql.Tx share.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// wrap names the step for the reader of the log; nil stays nil, and sql.ErrNoRows becomes ErrNotFound.
func wrap(step string, err error) error {
	switch {
	case err == nil:
		return nil
	case isNoRows(err):
		return fmt.Errorf("%s: %w", step, ErrNotFound)
	}
	return fmt.Errorf("%s: %w", step, err)
}
