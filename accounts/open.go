package accounts

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"modernc.org/sqlite"
)

// A Dialect says which database a Store speaks to, and what little differs.
type Dialect uint8

// The databases that a Store runs on.
const (
	Postgres Dialect = iota + 1
	SQLite
)

func (d Dialect) String() string {
	switch d {
	case Postgres:
		return "postgres"
	case SQLite:
		return "sqlite"
	}
	return "unknown"
}

// clock is an expression for the database's clock in unix microseconds. SQLite's counts in milliseconds.
func (d Dialect) clock() string {
	if d == Postgres {
		return `CAST(FLOOR(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000) AS BIGINT)`
	}
	return `CAST(ROUND(unixepoch('subsec') * 1000) AS BIGINT) * 1000`
}

// forUpdate locks the rows of table until the transaction ends. SQLite needs none of it: its writers begin immediate, one at a time.
func (d Dialect) forUpdate(table string) string {
	if d == Postgres {
		return ` FOR UPDATE OF ` + table
	}
	return ``
}

// elements is the rows of a JSON array given as a text, as t with a column value.
func (d Dialect) elements(param string) string {
	if d == Postgres {
		return `json_array_elements(CAST(` + param + ` AS JSON)) AS t (value)`
	}
	return `json_each(` + param + `) AS t`
}

type errClass uint8

const (
	classOther  errClass = iota
	classUnique          // a unique constraint refused the row
	classRetry           // nothing was done; the same transaction may pass when run again
	classAway            // the database did not answer, or not in time
)

// classify reads the codes of both databases. nil is classOther.
func classify(err error) errClass {
	var pg *pgconn.PgError
	var lite *sqlite.Error
	switch {
	case err == nil:
		return classOther
	case errors.As(err, &pg):
		switch {
		case pg.Code == "23505":
			return classUnique
		case pg.Code == "40001" || pg.Code == "40P01":
			return classRetry
		case len(pg.Code) == 5 && (pg.Code[:2] == "08" || pg.Code[:2] == "53" || pg.Code[:2] == "57" || pg.Code == "25006"):
			return classAway
		}
	case errors.As(err, &lite):
		const busy, diskFull, constraintUnique, constraintPrimaryKey = 5, 13, 2067, 1555
		switch lite.Code() {
		case constraintUnique, constraintPrimaryKey:
			return classUnique
		}
		switch lite.Code() & 0xff {
		case busy, diskFull: // the busy timeout has waited already
			return classAway
		}
	case unreachable(err):
		return classAway
	}
	return classOther
}

// Unavailable says whether err means that the database did not answer, rather than that it said no: a later try may pass.
func Unavailable(err error) bool { return classify(err) == classAway }

// OpenSQLite opens the database file at path, which is made where it is missing (its folder must exist). The writer has one connection and begins its
// transactions immediate, as SQLite has one writer; every commit is fsynced. The caller closes both.
func OpenSQLite(path string) (*sql.DB, *sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open SQLite: %w", err)
	}
	// Nobody else on the machine needs to read who may send; SQLite gives its side files the mode of this one.
	file, err := os.OpenFile(abs, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("open SQLite: %w", err)
	}
	if err := file.Close(); err != nil {
		return nil, nil, fmt.Errorf("open SQLite: %w", err)
	}
	open := func(conns int, extra ...string) (*sql.DB, error) {
		q := url.Values{}
		// busy_timeout first: the pragmas after it may have to wait for another process.
		q["_pragma"] = append([]string{"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"}, extra...)
		q.Set("_txlock", "immediate")
		dsn := url.URL{Scheme: "file", Path: abs, OmitHost: true, RawQuery: q.Encode()}
		db, err := sql.Open("sqlite", dsn.String())
		if err != nil {
			return nil, fmt.Errorf("open SQLite: %w", err)
		}
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(conns)
		return db, nil
	}
	writer, err := open(1)
	if err != nil {
		return nil, nil, err
	}
	// The file must be there before a reader that may not write opens it.
	if err := writer.PingContext(context.Background()); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open SQLite at %s: %w", abs, err), writer.Close())
	}
	reader, err := open(max(4, runtime.GOMAXPROCS(0)), "query_only(1)")
	if err != nil {
		return nil, nil, errors.Join(err, writer.Close())
	}
	return writer, reader, nil
}

// idleInTransaction is how long PostgreSQL bears with a writer that is paused between two statements. writeTimeout does not run in a process that is
// stopped, and its row must not be committed when edges have read past its time.
const idleInTransaction = 20 * time.Second

// OpenPostgres opens two pools on the primary at url, so that a slow page of the console cannot starve the look-ups of the edge. It does not connect:
// an unreachable database is found by the first call. The caller closes both.
func OpenPostgres(url string) (*sql.DB, *sql.DB, error) {
	cfg, err := parsePostgres(url)
	if err != nil {
		return nil, nil, err
	}
	open := func(conns int, options ...stdlib.OptionOpenDB) *sql.DB {
		db := stdlib.OpenDB(*cfg, options...)
		db.SetMaxOpenConns(conns)
		db.SetMaxIdleConns(conns / 2)
		db.SetConnMaxIdleTime(5 * time.Minute)
		// Connections move on after a fail-over behind the same address.
		db.SetConnMaxLifetime(30 * time.Minute)
		return db
	}
	// By a statement, not a start-up parameter, which PgBouncer refuses.
	impatient := stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, fmt.Sprintf("SET idle_in_transaction_session_timeout = %d", idleInTransaction.Milliseconds()))
		return err
	})
	return open(16, impatient), open(16), nil
}
