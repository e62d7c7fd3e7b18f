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

// Pending says whether db lacks a migration that this binary has.
func Pending(ctx context.Context, db *sql.DB, dialect Dialect) (bool, error) {
	p, err := provider(db, dialect)
	if err != nil {
		return false, err
	}
	pending, err := p.HasPending(ctx)
	if err != nil {
		return false, fmt.Errorf("look for pending migrations: %w", err)
	}
	return pending, nil
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
