// Package deploy holds what Sluice is deployed with. Its Go part is the migrations: one set of SQL files for PostgreSQL and SQLite, embedded in
// the binary and applied by goose.
//
// It promises that a migration never breaks the binary before it: migrations only add (tables, columns with a default, indexes), a merged file is never
// edited, and each runs in a transaction of its own. Two processes that migrate the same PostgreSQL at once are safe: the second waits for the
// first and finds nothing to do. It fails by returning an error that names the migration; what was applied before it stays applied.
package deploy

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// Migrations holds migrations/*.sql, in the subset of SQL that PostgreSQL and SQLite share.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// A Dialect names the database that is migrated.
type Dialect string

// The databases that Sluice runs on.
const (
	Postgres Dialect = "postgres"
	SQLite   Dialect = "sqlite"
)

// ErrUnknownDialect is returned by Migrate for a dialect that is neither Postgres nor SQLite.
var ErrUnknownDialect = errors.New("unknown database dialect")

// Migrate brings db to the newest schema and returns how many migrations it applied; none is no error.
// For SQLite db must be the writer handle. It takes no longer than ctx allows.
func Migrate(ctx context.Context, db *sql.DB, dialect Dialect) (int, error) {
	p, err := provider(db, dialect)
	if err != nil {
		return 0, err
	}
	// The provider is not closed: that would close db, which belongs to the caller.
	applied, err := p.Up(ctx)
	if err != nil {
		return len(applied), fmt.Errorf("migrate: %w", err)
	}
	return len(applied), nil
}

// Pending says how many of this binary's migrations db lacks. It only reads: a user that may not make tables can ask, and a database that was never
// migrated stays as it is.
func Pending(ctx context.Context, db *sql.DB, dialect Dialect) (int, error) {
	p, err := provider(db, dialect)
	if err != nil {
		return 0, err
	}
	lacking := map[int64]bool{}
	for _, s := range p.ListSources() {
		lacking[s.Version] = true
	}
	rows, err := db.QueryContext(ctx, "SELECT version_id FROM goose_db_version WHERE is_applied")
	if err != nil {
		if noSuchTable(err) {
			return len(lacking), nil
		}
		return 0, fmt.Errorf("look for pending migrations: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var version int64
		if err := rows.Scan(&version); err != nil {
			return 0, fmt.Errorf("look for pending migrations: %w", err)
		}
		delete(lacking, version)
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("look for pending migrations: %w", err)
	}
	return len(lacking), nil
}

func noSuchTable(err error) bool {
	var state interface{ SQLState() string }
	return errors.As(err, &state) && state.SQLState() == "42P01" || strings.Contains(err.Error(), "no such table")
}

func provider(db *sql.DB, dialect Dialect) (*goose.Provider, error) {
	files, err := fs.Sub(Migrations, "migrations")
	if err != nil {
		return nil, fmt.Errorf("open the embedded migrations: %w", err)
	}
	// The global registry is off because Go migrations that some dependency registered are none of ours.
	opts := []goose.ProviderOption{goose.WithDisableGlobalRegistry(true)}
	var gd goose.Dialect
	switch dialect {
	case Postgres:
		gd = goose.DialectPostgres
		// A session lock is held by the connection, so a migrator that dies frees it.
		locker, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return nil, fmt.Errorf("make the migration lock: %w", err)
		}
		opts = append(opts, goose.WithSessionLocker(locker))
	case SQLite:
		gd = goose.DialectSQLite3
	default:
		return nil, fmt.Errorf("%w: %q", ErrUnknownDialect, dialect)
	}
	p, err := goose.NewProvider(gd, db, files, opts...)
	if err != nil {
		return nil, fmt.Errorf("read the migrations: %w", err)
	}
	return p, nil
}
