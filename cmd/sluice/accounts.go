package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// An accountView is an account as the admin API answers it.
type accountView struct {
	ID             string     `json:"id"`
	Org            string     `json:"org"`
	Name           string     `json:"name"`
	Environment    string     `json:"environment"`
	Description    string     `json:"description"`
	IntendedScope  string     `json:"intended_scope"`
	AbuseDetection bool       `json:"abuse_detection"`
	Team           string     `json:"team"`
	CostCentre     string     `json:"cost_centre"`
	KeyPrefix      string     `json:"key_prefix"`
	FirstSeenAt    *time.Time `json:"first_seen_at"`
	LastSeenAt     *time.Time `json:"last_seen_at"`
	CreatedAt      *time.Time `json:"created_at"`
	DeletedAt      *time.Time `json:"deleted_at"`
	Limits         struct {
		Requests int64 `json:"requests_per_second"`
		Bytes    int64 `json:"bytes_per_second"`
	} `json:"limits"`
}

// A command of the admin API: which org, and how to print.
type adminFlags struct {
	cfg    config
	org    string
	asJSON bool
}

func (a *adminFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	a.cfg.storeFlags(f)
	f.StringVar(&a.org, "org", "", "org (default: the only one)")
	f.BoolVar(&a.asJSON, "json", false, "print what the admin API answers")
	layered(cmd)
}

// do runs one call and prints its answer: raw with --json, else by show.
func (a *adminFlags) do(cmd *cobra.Command, method, path string, in any, show func(io.Writer, json.RawMessage) error) error {
	return a.with(cmd, func(ctx context.Context, c *adminClient) error { return a.answer(ctx, cmd, c, method, path, in, show) })
}

// with runs f on the admin API.
func (a *adminFlags) with(cmd *cobra.Command, f func(context.Context, *adminClient) error) error {
	c, err := openAdmin(cmd.Context(), &a.cfg, a.org)
	if err != nil {
		return err
	}
	defer c.close()
	return f(cmd.Context(), c)
}

func (a *adminFlags) answer(ctx context.Context, cmd *cobra.Command, c *adminClient, method, path string, in any, show func(io.Writer, json.RawMessage) error) error {
	var out json.RawMessage
	if err := c.call(ctx, method, path, in, &out); err != nil {
		return err
	}
	if a.asJSON {
		return printJSON(cmd.OutOrStdout(), out)
	}
	return show(cmd.OutOrStdout(), out)
}

func printJSON(w io.Writer, raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil
	}
	_, err := w.Write(append([]byte(strings.TrimSpace(string(raw))), '\n'))
	return err
}

func newAccountsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "accounts", Short: "Create, list, show, edit and delete service accounts", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newAccountsCreate(), newAccountsList(), newAccountsShow(), newAccountsEdit(), newAccountsDelete(), newAccountsUsage())
	return cmd
}

// accountFlags are the fields of an account; only those that were given are sent.
func accountFlags(cmd *cobra.Command) func() map[string]any {
	f := cmd.Flags()
	f.String("name", "", "name of the workload, such as nightly-digest-summariser")
	f.String("environment", "", "production, staging or development; it caps the severity of its signals")
	f.String("description", "", "what the workload does")
	f.String("intended-scope", "", "a sentence that says what the workload is allowed to do; read in audits and by the scope judge")
	f.Bool("abuse-detection", true, "whether abuse_pattern signals are kept")
	f.String("team", "", "team, for the scope of policy rules")
	f.String("cost-centre", "", "cost centre, for the scope of policy rules")
	f.Int64("requests-per-second", 0, "limit of the key on each edge (0: the edge's default)")
	f.Int64("bytes-per-second", 0, "limit of the key on each edge (0: the edge's default)")
	return func() map[string]any {
		in := map[string]any{}
		for _, name := range []string{"name", "environment", "description", "intended-scope", "team", "cost-centre"} {
			if f.Changed(name) {
				in[strings.ReplaceAll(name, "-", "_")] = f.Lookup(name).Value.String()
			}
		}
		if f.Changed("abuse-detection") {
			in["abuse_detection"], _ = f.GetBool("abuse-detection")
		}
		limits := map[string]any{}
		for _, name := range []string{"requests-per-second", "bytes-per-second"} {
			if f.Changed(name) {
				limits[strings.ReplaceAll(name, "-", "_")], _ = f.GetInt64(name)
			}
		}
		if len(limits) > 0 {
			in["limits"] = limits
		}
		return in
	}
}

func newAccountsCreate() *cobra.Command {
	var a adminFlags
	cmd := &cobra.Command{Use: "create", Short: "Create a service account and print its key, once", Args: cobra.NoArgs,
		Long: "Create a service account and print its key. The key is shown this once. With no org yet, --org makes the first one.",
		Example: "  sluice accounts create --name support-chatbot --environment production --intended-scope 'Answers customers of the shop.'\n" +
			"  sluice accounts create --org acme --name eval --environment staging --requests-per-second 50 --bytes-per-second 1000000 --json"}
	fields := accountFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		in := fields()
		if in["name"] == nil || in["environment"] == nil {
			return usagef("--name and --environment are needed")
		}
		if a.org != "" {
			if err := ensureFirstOrg(cmd.Context(), &a.cfg, a.org); err != nil {
				return err
			}
		}
		return a.do(cmd, "POST", "/api/v1/service-accounts", in, func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Account accountView `json:"account"`
				Key     string      `json:"key"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "Created %s / %s in %s.\n\n  Id      %s\n  Prefix  %s\n  Key     %s\n\n"+
				"The key is shown this once. Copy it into your secrets manager now; if it is lost, delete the account and create it again.\n",
				out.Account.Name, out.Account.Environment, out.Account.Org, out.Account.ID, out.Account.KeyPrefix, out.Key)
			return err
		})
	}
	a.register(cmd)
	return cmd
}

func newAccountsList() *cobra.Command {
	var a adminFlags
	var q, environment, state, seen string
	var limit int
	cmd := &cobra.Command{Use: "list", Short: "List service accounts", Args: cobra.NoArgs,
		Long:    "List service accounts. Times are in UTC.",
		Example: "  sluice accounts list --environment production --seen idle\n  sluice accounts list --q fsk_2xT4mQz9LkPa"}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		v := url.Values{}
		for name, value := range map[string]string{"q": q, "environment": environment, "state": state, "seen": seen} {
			if value != "" {
				v.Set(name, value)
			}
		}
		v.Set("limit", strconv.Itoa(limit))
		return a.do(cmd, "GET", "/api/v1/service-accounts?"+v.Encode(), nil, func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Items      []accountView `json:"items"`
				NextCursor string        `json:"next_cursor"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
			fmt.Fprintln(t, "ID\tNAME\tENVIRONMENT\tFIRST SEEN\tLAST SEEN\tABUSE DETECTION\tKEY")
			for _, i := range out.Items {
				name := i.Name
				if i.DeletedAt != nil {
					name += " (deleted)"
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", i.ID, name, i.Environment, when(i.FirstSeenAt), when(i.LastSeenAt), onOff(i.AbuseDetection), i.KeyPrefix)
			}
			if err := t.Flush(); err != nil {
				return err
			}
			if out.NextCursor != "" {
				fmt.Fprintln(w, "There are more: narrow the search, or raise --limit.")
			}
			return nil
		})
	}
	f := cmd.Flags()
	f.StringVar(&q, "q", "", "part of a name, or a key's prefix (a deleted account's is found too)")
	f.StringVar(&environment, "environment", "", "production, staging or development")
	f.StringVar(&state, "state", "", "live (default), deleted or all")
	f.StringVar(&seen, "seen", "", "never or idle")
	f.IntVar(&limit, "limit", 100, "how many at most")
	a.register(cmd)
	return cmd
}

func newAccountsShow() *cobra.Command {
	var a adminFlags
	var environment string
	cmd := &cobra.Command{Use: "show ACCOUNT", Short: "Show a service account", Args: exactArgs(1), Long: "Show a service account. " + accountArgument,
		Example: "  sluice accounts show support-chatbot --environment production\n  sluice accounts show support-chatbot/production --json"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.doAccount(cmd, args[0], environment, "GET", "", nil, showAccount)
	}
	cmd.Flags().StringVar(&environment, "environment", "", "environment of the account, where ACCOUNT is a name")
	a.register(cmd)
	return cmd
}

func newAccountsEdit() *cobra.Command {
	var a adminFlags
	cmd := &cobra.Command{Use: "edit ACCOUNT", Short: "Change a service account", Args: exactArgs(1),
		Long: "Change a service account. What is not given stays. The key cannot be changed: to rotate it, delete the account and create it again.\n" +
			"ACCOUNT is its id, NAME/ENVIRONMENT, or its name where one live account has it; --environment is what it is to become.",
		Example: "  sluice accounts edit support-chatbot/production --intended-scope 'Answers customers of the shop.'\n" +
			"  sluice accounts edit support-chatbot/production --requests-per-second 50"}
	fields := accountFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in := fields()
		if len(in) == 0 {
			return usagef("nothing to change: give --name, --environment, --description, --intended-scope, --abuse-detection, --team, --cost-centre or limits")
		}
		return a.doAccount(cmd, args[0], "", "PATCH", "", in, showAccount)
	}
	a.register(cmd)
	return cmd
}

func newAccountsDelete() *cobra.Command {
	var a adminFlags
	var yes bool
	var environment string
	cmd := &cobra.Command{Use: "delete ACCOUNT", Short: "Delete a service account and revoke its key", Args: exactArgs(1),
		Long:    "Delete a service account and revoke its key at once; the answer says how many edges refuse it already. " + accountArgument,
		Example: "  sluice accounts delete sa_0198c1… --yes\n  sluice accounts delete support-chatbot --environment production --yes"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			ask := a
			ask.asJSON = false
			return ask.doAccount(cmd, args[0], environment, "GET", "", nil, refuseToDelete)
		}
		return a.doAccount(cmd, args[0], environment, "DELETE", "", nil, func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Account    accountView    `json:"account"`
				Revocation revocationView `json:"revocation"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "Deleted %s / %s; its key %s is revoked, and %s", out.Account.Name, out.Account.Environment, out.Account.KeyPrefix, out.Revocation)
			return err
		})
	}
	cmd.Flags().StringVar(&environment, "environment", "", "environment of the account, where ACCOUNT is a name")
	cmd.Flags().BoolVar(&yes, "yes", false, "really delete it")
	a.register(cmd)
	return cmd
}

// refuseToDelete says what would be deleted.
func refuseToDelete(_ io.Writer, raw json.RawMessage) error {
	var i accountView
	if err := json.Unmarshal(raw, &i); err != nil {
		return err
	}
	if i.DeletedAt != nil {
		return usagef("%s / %s was deleted at %s already, and its key %s is revoked", i.Name, i.Environment, when(i.DeletedAt), i.KeyPrefix)
	}
	return usagef("this deletes %s / %s and revokes its key %s at once, and cannot be undone: say --yes. It was last seen: %s; who sends with it says sluice accounts usage %s",
		i.Name, i.Environment, i.KeyPrefix, when(i.LastSeenAt), i.ID)
}

func (i accountView) limits() string {
	say := func(n int64, unit string) string {
		if n == 0 {
			return unit + " as the edge has it"
		}
		return fmt.Sprintf("%d %s", n, unit)
	}
	return say(i.Limits.Requests, "requests/s") + ", " + say(i.Limits.Bytes, "bytes/s")
}

func showAccount(w io.Writer, raw json.RawMessage) error {
	var i accountView
	if err := json.Unmarshal(raw, &i); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, row := range [][2]string{
		{"Id", i.ID}, {"Org", i.Org}, {"Name", i.Name}, {"Environment", i.Environment}, {"Description", i.Description},
		{"Intended scope", i.IntendedScope}, {"Abuse detection", onOff(i.AbuseDetection)}, {"Team", i.Team}, {"Cost centre", i.CostCentre},
		{"Limits, per edge", i.limits()}, {"Key", i.KeyPrefix}, {"First seen", when(i.FirstSeenAt)}, {"Last seen", when(i.LastSeenAt)}, {"Created", when(i.CreatedAt)}, {"Deleted", when(i.DeletedAt)},
	} {
		if row[1] == "" || (row[0] == "Deleted" && i.DeletedAt == nil) {
			continue
		}
		fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
	}
	return t.Flush()
}

// when is a time for people, in UTC: "never" where there is none.
func when(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// exactArgs is cobra's, as a usage error.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return usagef("%w: %s", err, cmd.UseLine())
		}
		return nil
	}
}
