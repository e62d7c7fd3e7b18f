package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
)

// openStore opens the database itself: PostgreSQL with --postgres-url, else the SQLite file of --data-dir, which a running sluice dev shares.
func openStore(ctx context.Context, c *config) (*accounts.Store, func(), error) {
	if c.postgresURL != "" {
		writer, reader, err := openPostgres(c.postgresURL)
		if err != nil {
			return nil, nil, err
		}
		store := accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.Postgres})
		return store, func() { writer.Close(); reader.Close() }, nil
	}
	path := filepath.Join(c.dataDir, "sluice.db")
	if _, err := os.Stat(path); err != nil {
		return nil, nil, fmt.Errorf("no sluice dev has run on --data-dir %s; start one, or give --postgres-url", c.dataDir)
	}
	writer, reader, err := accounts.OpenSQLite(path)
	if err != nil {
		return nil, nil, err
	}
	// Its own process may be older than this binary, or not running: the schema only ever grows.
	if _, err := deploy.Migrate(ctx, writer, deploy.SQLite); err != nil {
		writer.Close()
		reader.Close()
		return nil, nil, err
	}
	store := accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.SQLite})
	return store, func() { writer.Close(); reader.Close() }, nil
}

// openPostgres opens the pools. What is wrong with the URL is said without a word of it: it holds a password.
func openPostgres(raw string) (*sql.DB, *sql.DB, error) {
	u, err := url.Parse(raw)
	if err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql") && u.Fragment == "" && !auth.MisplacedAt(raw) {
		writer, reader, err := accounts.OpenPostgres(raw)
		if err == nil {
			return writer, reader, nil
		}
	}
	return nil, nil, badPostgresURL(raw)
}

// badPostgresURL says what is wrong with a URL that cannot be used, as far as that can be said without any of it that may be of the password.
func badPostgresURL(raw string) error {
	u, err := url.Parse(raw)
	var escape url.EscapeError
	switch {
	case auth.MisplacedAt(raw), errors.As(err, &escape), err != nil && strings.Contains(err.Error(), "invalid port"), err != nil && strings.Contains(err.Error(), "userinfo"), err == nil && u.Fragment != "":
		return usagef("--postgres-url: %w", auth.ErrPercentEncode)
	case err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql":
		return usagef("--postgres-url: it is not postgres://user:password@host:5432/database")
	}
	if err := auth.CheckURL(raw, u); err != nil {
		return usagef("--postgres-url: %w", err)
	}
	if mode, modes := u.Query().Get("sslmode"), []string{"", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"}; !slices.Contains(modes, mode) {
		return usagef("--postgres-url: sslmode is none of %s", strings.Join(modes[1:], ", "))
	}
	return usagef("--postgres-url: it is not postgres://user:password@host:5432/database, or one of its parameters is none that PostgreSQL knows, or names a file that cannot be read")
}

// ensureFirstOrg makes org where there is none at all yet; an unknown one is an error later on.
func ensureFirstOrg(ctx context.Context, c *config, org string) error {
	store, closeStore, err := openStore(ctx, c)
	if err != nil {
		return err
	}
	defer closeStore()
	_, err = store.EnsureFirstOrg(ctx, cliBy(), org)
	if errors.Is(err, accounts.ErrUnknownOrg) {
		return fmt.Errorf("there is no org %s: sluice orgs create %s makes it", org, org)
	}
	return err
}

// cliBy is who the audit log names for changes made by commands that go to the database.
func cliBy() accounts.By { return accounts.By{Actor: "cli:" + osUser(), Via: "cli"} }

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

// A storeCommand runs on the database itself: orgs and admin tokens are nobody's to make through the admin API, which is walled by org.
func storeCommand(cmd *cobra.Command, asJSON *bool, run func(context.Context, *accounts.Store, []string) (any, func(io.Writer) error, error)) *cobra.Command {
	var cfg config
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		store, closeStore, err := openStore(cmd.Context(), &cfg)
		if err != nil {
			return err
		}
		defer closeStore()
		out, show, err := run(cmd.Context(), store, args)
		if err != nil {
			return err
		}
		if *asJSON {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(out)
		}
		return show(cmd.OutOrStdout())
	}
	cfg.storeFlags(cmd.Flags())
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
	layered(cmd)
	return cmd
}

type orgView struct {
	Slug      string    `json:"slug"`
	CreatedAt time.Time `json:"created_at"`
}

func newOrgsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "orgs", Short: "Create and list orgs, and revoke all keys of one", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var createJSON, listJSON bool
	cmd.AddCommand(
		storeCommand(&cobra.Command{Use: "create SLUG", Short: "Create an org; its slug never changes", Args: exactArgs(1)}, &createJSON,
			func(ctx context.Context, store *accounts.Store, args []string) (any, func(io.Writer) error, error) {
				org, err := store.CreateOrg(ctx, cliBy(), args[0])
				if err != nil {
					return nil, nil, err
				}
				return orgView{org.Slug, org.CreatedAt}, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "Created %s.\n", org.Slug)
					return err
				}, nil
			}),
		storeCommand(&cobra.Command{Use: "list", Short: "List orgs", Args: cobra.NoArgs}, &listJSON,
			func(ctx context.Context, store *accounts.Store, _ []string) (any, func(io.Writer) error, error) {
				orgs, err := store.Orgs(ctx)
				if err != nil {
					return nil, nil, err
				}
				views := make([]orgView, len(orgs))
				for i, o := range orgs {
					views[i] = orgView{o.Slug, o.CreatedAt}
				}
				return map[string]any{"items": views}, func(w io.Writer) error {
					t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
					fmt.Fprintln(t, "SLUG\tCREATED")
					for _, o := range views {
						fmt.Fprintf(t, "%s\t%s\n", o.Slug, at(o.CreatedAt))
					}
					return t.Flush()
				}, nil
			}),
		newOrgsRevokeKeys(),
	)
	return cmd
}

func newOrgsRevokeKeys() *cobra.Command {
	var a adminFlags
	var yes bool
	cmd := &cobra.Command{Use: "revoke-keys ORG", Short: "Revoke every telemetry key of an org, in an incident", Args: exactArgs(1),
		Long: "Revoke every telemetry key of an org at once: its service accounts are deleted (they stay listed with --state deleted, and are created again under the same\n" +
			"names), the keys of its persons and detectors are revoked. Everything that sends for this org is refused from then on. Should it break off, what it did\n" +
			"stands: run it again. Admin tokens stay: see sluice tokens list.",
		Example: "  sluice orgs revoke-keys acme --yes"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			return usagef("this deletes all service accounts of %s and revokes every key it has, at once, and cannot be undone: say --yes", args[0])
		}
		a.org = args[0]
		return a.do(cmd, "POST", "/api/v1/keys/revoke-all", map[string]string{"org": args[0]}, func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Accounts   int            `json:"deleted_accounts"`
				Keys       int            `json:"revoked_keys"`
				Revocation revocationView `json:"revocation"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "Revoked %d keys of %s, with %d service accounts; %s", out.Keys, args[0], out.Accounts, out.Revocation)
			return err
		})
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "really revoke them all")
	a.cfg.storeFlags(cmd.Flags())
	cmd.Flags().BoolVar(&a.asJSON, "json", false, "print what the admin API answers")
	layered(cmd)
	return cmd
}

func newTokensCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tokens", Short: "Create, list and revoke tokens of the admin API", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newTokensCreate(), newTokensList(), newTokensRevoke())
	return cmd
}

func newTokensCreate() *cobra.Command {
	var asJSON bool
	var org, name string
	var permissions []string
	var ttl time.Duration
	cmd := storeCommand(&cobra.Command{Use: "create", Short: "Create an admin token and print it, once", Args: cobra.NoArgs,
		Long:    "Create a token of the admin API and print it, once. It is for one org and has the permissions that are named.",
		Example: "  sluice tokens create --name terraform --permission SETTINGS_INTEGRATIONS_UPDATE --ttl 720h"}, &asJSON,
		func(ctx context.Context, store *accounts.Store, _ []string) (any, func(io.Writer) error, error) {
			if len(permissions) == 0 {
				return nil, nil, usagef("--permission is needed: one or more of %v", auth.AllPermissions())
			}
			if org == "" {
				var err error
				if org, err = onlyOrg(ctx, store); err != nil {
					return nil, nil, err
				}
			}
			var held []auth.Permission
			for _, s := range permissions {
				p, ok := auth.ParsePermission(s)
				if !ok {
					return nil, nil, usagef("--permission: %q is not one of %v", s, auth.AllPermissions())
				}
				held = append(held, p)
			}
			var expires time.Time
			if ttl > 0 {
				expires = time.Now().Add(ttl)
			}
			t, raw, err := store.CreateToken(ctx, cliBy(), org, name, held, expires)
			if err != nil {
				return nil, nil, err
			}
			return map[string]any{"admin_token": t, "token": raw}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s\n\nThe token is shown this once. Send it as Authorization: Bearer TOKEN.\n", raw)
				return err
			}, nil
		})
	f := cmd.Flags()
	f.StringVar(&org, "org", "", "org that the token is for (default: the only one)")
	f.StringVar(&name, "name", "cli", "what the token is for; the audit log names it")
	f.StringSliceVar(&permissions, "permission", nil, "permission, more than once or comma-separated: SETTINGS_INTEGRATIONS_UPDATE, AI_GOVERNANCE_VIEW, AI_POLICY_ADMIN")
	f.DurationVar(&ttl, "ttl", 0, "how long it is valid (0: until revoked)")
	return cmd
}

func newTokensList() *cobra.Command {
	var asJSON bool
	var org string
	cmd := storeCommand(&cobra.Command{Use: "list", Short: "List admin tokens", Args: cobra.NoArgs}, &asJSON,
		func(ctx context.Context, store *accounts.Store, _ []string) (any, func(io.Writer) error, error) {
			if org == "" {
				var err error
				if org, err = onlyOrg(ctx, store); err != nil {
					return nil, nil, err
				}
			}
			tokens, err := store.Tokens(ctx, org)
			if err != nil {
				return nil, nil, err
			}
			return map[string]any{"items": tokens}, func(w io.Writer) error {
				tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
				fmt.Fprintln(tw, "PREFIX\tNAME\tPERMISSIONS\tCREATED\tEXPIRES\tREVOKED")
				for _, t := range tokens {
					fmt.Fprintf(tw, "%s\t%s\t%v\t%s\t%s\t%s\n", t.Prefix, t.Name, t.Permissions, at(t.CreatedAt), at(t.ExpiresAt), at(t.RevokedAt))
				}
				return tw.Flush()
			}, nil
		})
	cmd.Flags().StringVar(&org, "org", "", "org (default: the only one)")
	return cmd
}

func newTokensRevoke() *cobra.Command {
	var asJSON bool
	var org string
	cmd := storeCommand(&cobra.Command{Use: "revoke PREFIX", Short: "Revoke an admin token", Args: exactArgs(1)}, &asJSON,
		func(ctx context.Context, store *accounts.Store, args []string) (any, func(io.Writer) error, error) {
			if org == "" {
				var err error
				if org, err = onlyOrg(ctx, store); err != nil {
					return nil, nil, err
				}
			}
			if _, err := store.RevokeToken(ctx, cliBy(), org, args[0]); err != nil {
				return nil, nil, err
			}
			return map[string]any{"revoked": args[0]}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Revoked %s.\n", args[0])
				return err
			}, nil
		})
	cmd.Flags().StringVar(&org, "org", "", "org (default: the only one)")
	return cmd
}

// at is a time for people; "never" for the zero time.
func at(t time.Time) string {
	if t.IsZero() {
		return when(nil)
	}
	return when(&t)
}
