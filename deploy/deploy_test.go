package deploy_test

import (
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "modernc.org/sqlite"

	"flowstate.inc/sluice/deploy"
)

// TestMigrateTwiceAtOnce migrates from several processes' worth of handles at once: each ends with the newest schema, and only one did the work.
func TestMigrateTwiceAtOnce(t *testing.T) {
	base := os.Getenv("TEST_DATABASE_URL")
	if base == "" {
		if os.Getenv("SLUICE_REQUIRE_SERVICES") == "1" {
			t.Error("TEST_DATABASE_URL is not set")
		}
		return
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatal("TEST_DATABASE_URL is not a URL")
	}
	admin := open(t, "pgx", base)
	var b [8]byte
	_, _ = rand.Read(b[:])
	name := "deploy_" + hex.EncodeToString(b[:])
	if _, err := admin.ExecContext(t.Context(), `CREATE DATABASE `+name); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := admin.Exec(`DROP DATABASE ` + name + ` WITH (FORCE)`); err != nil {
			t.Error(err)
		}
	}()
	u.Path = "/" + name
	var wg sync.WaitGroup
	var mu sync.Mutex
	total := 0
	for range 3 {
		db := open(t, "pgx", u.String())
		wg.Go(func() {
			n, err := deploy.Migrate(t.Context(), db, deploy.Postgres)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			total += n
		})
	}
	wg.Wait()
	if files := len(files(t)); total != files {
		t.Errorf("%d migrations were applied, there are %d", total, files)
	}
}

func TestMigrateSQLite(t *testing.T) {
	db := open(t, "sqlite", "file:"+filepath.Join(t.TempDir(), "a.db"))
	if pending, err := deploy.Pending(t.Context(), db, deploy.SQLite); err != nil || pending != len(files(t)) {
		t.Errorf("pending before: %v, %v", pending, err)
	}
	for _, want := range []int{len(files(t)), 0} {
		n, err := deploy.Migrate(t.Context(), db, deploy.SQLite)
		if err != nil || n != want {
			t.Errorf("%d applied, want %d, %v", n, want, err)
		}
	}
	if pending, err := deploy.Pending(t.Context(), db, deploy.SQLite); err != nil || pending != 0 {
		t.Errorf("pending after: %v, %v", pending, err)
	}
	if _, err := deploy.Migrate(t.Context(), db, "oracle"); !errors.Is(err, deploy.ErrUnknownDialect) {
		t.Errorf("unknown dialect: %v", err)
	}
	if err := db.PingContext(t.Context()); err != nil {
		t.Errorf("the handle was closed: %v", err)
	}
}

// TestMigrationsAreAdditive keeps out what would break the binary before: it must run on the new schema while it is replaced.
func TestMigrationsAreAdditive(t *testing.T) {
	for _, name := range files(t) {
		b, err := fs.ReadFile(deploy.Migrations, name)
		if err != nil {
			t.Fatal(err)
		}
		if why := breaking(string(b)); why != "" {
			t.Errorf("%s: %s", name, why)
		}
	}
	for statement, breaks := range map[string]bool{
		"DROP TABLE keys":                                         true,
		"ALTER TABLE keys RENAME COLUMN a TO b":                   true,
		"ALTER TABLE keys ADD COLUMN a TEXT NOT NULL":             true,
		"ALTER TABLE keys ADD a TEXT NOT NULL":                    true,
		"ALTER TABLE keys ADD COLUMN a TEXT NOT NULL DEFAULT ''":  false,
		"ALTER TABLE keys ADD COLUMN a TEXT":                      false,
		"ALTER TABLE keys ADD CONSTRAINT c CHECK (a > 0)":         true,
		"ALTER TABLE keys ADD COLUMN a TEXT UNIQUE":               true,
		"CREATE UNIQUE INDEX i ON keys (a)":                       true,
		"CREATE INDEX i ON keys (a)":                              false,
		"CREATE TABLE n (a TEXT NOT NULL)":                        false,
		"CREATE TABLE n (a TEXT); CREATE UNIQUE INDEX i ON n (a)": false,
		"-- DROP TABLE keys\nCREATE TABLE n (a TEXT)":             false,
	} {
		if why := breaking(statement); (why != "") != breaks {
			t.Errorf("%s: %q", statement, why)
		}
	}
}

var (
	comment    = regexp.MustCompile(`--[^\n]*`)
	takesAway  = regexp.MustCompile(`(?i)\b(DROP|RENAME|ALTER\s+COLUMN|TRUNCATE)\b`)
	makesTable = regexp.MustCompile(`(?i)\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)`)
	alters     = regexp.MustCompile(`(?i)\bALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(\w+)\s+ADD\b(.*)`)
	makesIndex = regexp.MustCompile(`(?i)\bCREATE\s+UNIQUE\s+INDEX\b.*\sON\s+(\w+)`)
	constrains = regexp.MustCompile(`(?i)\b(CONSTRAINT|UNIQUE|CHECK|PRIMARY\s+KEY|FOREIGN\s+KEY|REFERENCES)\b`)
	notNull    = regexp.MustCompile(`(?i)\bNOT\s+NULL\b`)
	hasDefault = regexp.MustCompile(`(?i)\bDEFAULT\b`)
)

// breaking says what in a migration the binary before would fail on: what is taken away, and what its own writes to a table that it knows would not satisfy.
func breaking(migration string) string {
	made := map[string]bool{}
	for statement := range strings.SplitSeq(comment.ReplaceAllString(migration, ""), ";") {
		statement = strings.Join(strings.Fields(statement), " ")
		if m := makesTable.FindStringSubmatch(statement); m != nil {
			made[m[1]] = true
		}
		add, index := alters.FindStringSubmatch(statement), makesIndex.FindStringSubmatch(statement)
		switch {
		case takesAway.MatchString(statement),
			index != nil && !made[index[1]],
			add != nil && !made[add[1]] && constrains.MatchString(add[2]),
			add != nil && !made[add[1]] && notNull.MatchString(add[2]) && !hasDefault.MatchString(add[2]):
			return statement
		}
	}
	return ""
}

func files(t *testing.T) []string {
	t.Helper()
	names, err := fs.Glob(deploy.Migrations, "migrations/*.sql")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return names
}

func open(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}
