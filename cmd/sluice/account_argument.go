package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// accountArgument is what the commands on one account say of their argument.
const accountArgument = "ACCOUNT is its id, NAME/ENVIRONMENT, or its name, with --environment where\nseveral live accounts have it."

var accountID = regexp.MustCompile(`^sa_[0-9a-f]+$`)

// doAccount is do for one account, which is named by its id, or by its name and environment; path is what follows it.
func (a *adminFlags) doAccount(cmd *cobra.Command, name, environment, method, path string, in any, show func(io.Writer, json.RawMessage) error) error {
	return a.with(cmd, func(ctx context.Context, c *adminClient) error {
		id, err := c.account(ctx, name, environment)
		if err != nil {
			return err
		}
		return a.answer(ctx, cmd, c, method, "/api/v1/service-accounts/"+url.PathEscape(id)+path, in, show)
	})
}

// account finds the id of the live account that is meant, and refuses where that is not one alone.
func (c *adminClient) account(ctx context.Context, name, environment string) (string, error) {
	if accountID.MatchString(name) {
		return name, nil
	}
	if environment == "" {
		if before, after, ok := strings.Cut(name, "/"); ok {
			name, environment = strings.TrimSpace(before), strings.TrimSpace(after)
		}
	}
	v := url.Values{"q": {name}, "limit": {"200"}}
	if environment != "" {
		v.Set("environment", environment)
	}
	var found []accountView
	for {
		var page struct {
			Items      []accountView `json:"items"`
			NextCursor string        `json:"next_cursor"`
		}
		if err := c.call(ctx, "GET", "/api/v1/service-accounts?"+v.Encode(), nil, &page); err != nil {
			return "", err
		}
		for _, i := range page.Items {
			if strings.EqualFold(i.Name, strings.TrimSpace(name)) && i.DeletedAt == nil {
				found = append(found, i)
			}
		}
		if page.NextCursor == "" {
			break
		}
		v.Set("cursor", page.NextCursor)
	}
	switch len(found) {
	case 0:
		where := ""
		if environment != "" {
			where = " in " + environment
		}
		return "", fmt.Errorf("there is no live account named %s%s in %s: see sluice accounts list", name, where, c.org)
	case 1:
		return found[0].ID, nil
	}
	var environments []string
	for _, i := range found {
		environments = append(environments, i.Environment)
	}
	slices.Sort(environments)
	return "", usagef("%d live accounts are named %s, in %s: give --environment, %s/ENVIRONMENT or the id", len(found), name, strings.Join(environments, ", "), name)
}

// A revocationView is how far a revocation has come, as the admin API answers it.
type revocationView struct {
	Edges     int `json:"edges"`
	Confirmed int `json:"confirmed"`
	Pending   []struct {
		Edge        string    `json:"edge"`
		Seen        time.Time `json:"last_seen_at"`
		Until       time.Time `json:"until"`
		UntilCutOff time.Time `json:"until_cut_off"`
	} `json:"pending"`
}

// String ends a sentence, and has a line for each edge that has not confirmed.
func (r revocationView) String() string {
	s := fmt.Sprintf("refused by %d of %d edges.\n", r.Confirmed, r.Edges)
	for _, p := range r.Pending {
		s += fmt.Sprintf("%s, last heard of at %s, has not said so. If it was killed it accepts nothing; if it is frozen or cut off it may accept the key until %s, or until %s if it reaches neither the database nor Redis.\n",
			p.Edge, when(&p.Seen), when(&p.Until), when(&p.UntilCutOff))
	}
	return s
}

type usageView struct {
	Since, Until *time.Time
	Keys         []struct {
		Prefix     string      `json:"prefix"`
		State      string      `json:"state"`
		LastUsedAt *time.Time  `json:"last_used_at"`
		Total      usageTotals `json:"total"`
		Senders    []struct {
			Address   string     `json:"address"`
			UserAgent string     `json:"user_agent"`
			Service   string     `json:"service_name"`
			First     *time.Time `json:"first_seen_at"`
			Last      *time.Time `json:"last_seen_at"`
			Requests  int64      `json:"requests"`
		} `json:"senders"`
	} `json:"keys"`
}

// usageTotals are what was done with a key, as the admin API says it.
type usageTotals struct {
	Requests    int64 `json:"requests"`
	Sent        int64 `json:"sent"`
	Filtered    int64 `json:"filtered"`
	Invalid     int64 `json:"invalid"`
	Unavailable int64 `json:"unavailable"`
	Refused     int64 `json:"refused"`
	Bytes       int64 `json:"bytes"`
}

func newAccountsUsage() *cobra.Command {
	var a adminFlags
	var environment string
	var since time.Duration
	cmd := &cobra.Command{Use: "usage ACCOUNT", Short: "Show what an account's keys were used for, and by whom", Args: exactArgs(1),
		Long: "Show what each key of an account sent in a time (whole hours), and its last 16 senders: who tried a key out by whoami is among them. Edges write both\n" +
			"every second, senders every five. " + accountArgument,
		Example: "  sluice accounts usage support-chatbot/production --since 24h"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if since <= 0 {
			return usagef("--since must be positive, such as 24h")
		}
		query := "/usage?since=" + time.Now().Add(-since).UTC().Format(time.RFC3339)
		return a.doAccount(cmd, args[0], environment, "GET", query, nil, showUsage)
	}
	cmd.Flags().StringVar(&environment, "environment", "", "environment of the account, where ACCOUNT is a name")
	cmd.Flags().DurationVar(&since, "since", 7*24*time.Hour, "how far back, at most 744h")
	a.register(cmd)
	return cmd
}

func showUsage(w io.Writer, raw json.RawMessage) error {
	var out usageView
	if err := json.Unmarshal(raw, &out); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(t, "From %s to %s\n\nKEY\tSTATE\tLAST USED\tREQUESTS\tSENT\tFILTERED\tINVALID\tUNAVAILABLE\tREFUSED\tBYTES\n", when(out.Since), when(out.Until))
	for _, k := range out.Keys {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\n", k.Prefix, k.State, when(k.LastUsedAt), k.Total.Requests, k.Total.Sent, k.Total.Filtered, k.Total.Invalid,
			k.Total.Unavailable, k.Total.Refused, byteCount(float64(k.Total.Bytes)))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	t = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprint(t, "\nSENDER\tUSER AGENT\tSERVICE\tFIRST\tLAST\tREQUESTS\tKEY\n")
	refused := false
	for _, k := range out.Keys {
		refused = refused || k.Total.Refused > 0
		for _, s := range k.Senders {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", s.Address, s.UserAgent, s.Service, when(s.First), when(s.Last), s.Requests, k.Prefix)
		}
	}
	if err := t.Flush(); err != nil || !refused {
		return err
	}
	_, err := fmt.Fprint(w, "\nREFUSED are requests over a limit or with a revoked key. Where they came from: sluice tail --refused\n")
	return err
}

// byteCount is a number of bytes for people.
func byteCount(n float64) string {
	for _, unit := range []string{"B", "kB", "MB", "GB"} {
		if n < 999.5 {
			if unit == "B" || n >= 100 {
				return fmt.Sprintf("%.0f %s", n, unit)
			}
			return fmt.Sprintf("%.3g %s", n, unit)
		}
		n /= 1000
	}
	return fmt.Sprintf("%.3g TB", n)
}
