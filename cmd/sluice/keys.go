package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"flowstate.inc/sluice/auth"
)

// A keyView is a key as the admin API answers it.
type keyView struct {
	Prefix  string `json:"prefix"`
	Kind    string `json:"kind"`
	Subject struct {
		Kind  string `json:"kind"`
		ID    string `json:"id"`
		Label string `json:"label"`
	} `json:"subject"`
	State      string     `json:"state"`
	CreatedAt  *time.Time `json:"created_at"`
	CreatedBy  string     `json:"created_by"`
	RevokedAt  *time.Time `json:"revoked_at"`
	RevokedBy  string     `json:"revoked_by"`
	LastUsedAt *time.Time `json:"last_used_at"`
}

func newKeysCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "keys", Short: "Keys of persons and detectors, and whose a key is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newKeysCreate(), newKeysList(), newKeysFind(), newKeysRevoke())
	return cmd
}

func newKeysCreate() *cobra.Command {
	var a adminFlags
	var person, detector string
	cmd := &cobra.Command{Use: "create", Short: "Create a person's or a detector's key and print it, once", Args: cobra.NoArgs,
		Long: "Create the telemetry key of a person (--person alice@example.com) or of a detector (--detector pii-scanner). A service account's key comes with the account."}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		in := map[string]any{"kind": "person", "id": person}
		switch {
		case (person == "") == (detector == ""):
			return usagef("give --person or --detector")
		case detector != "":
			in = map[string]any{"kind": "detector", "name": detector}
		}
		return a.do(cmd, "POST", "/api/v1/keys", in, func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Key string `json:"key"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "%s\n\nThe key is shown this once. Copy it into your secrets manager now.\n", out.Key)
			return err
		})
	}
	cmd.Flags().StringVar(&person, "person", "", "the person's id, such as an e-mail address")
	cmd.Flags().StringVar(&detector, "detector", "", "the detector's name")
	a.register(cmd)
	return cmd
}

func newKeysList() *cobra.Command {
	var a adminFlags
	cmd := &cobra.Command{Use: "list", Short: "List the keys of persons and detectors", Args: cobra.NoArgs}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return a.do(cmd, "GET", "/api/v1/keys", nil, func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Items []keyView `json:"items"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
			fmt.Fprintln(t, "PREFIX\tSUBJECT\tSTATE\tCREATED\tLAST USED")
			for _, k := range out.Items {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.Prefix, k.Subject.Label, k.State, when(k.CreatedAt), when(k.LastUsedAt))
			}
			return t.Flush()
		})
	}
	a.register(cmd)
	return cmd
}

func newKeysFind() *cobra.Command {
	var a adminFlags
	cmd := &cobra.Command{Use: "find KEY", Short: "Say whose a key or admin token is, and whether it is alive", Args: exactArgs(1),
		Long: "Say whose a key or an admin token is, whether it is alive, when it was last used and who revoked it. Give its prefix (its first 16 characters), its\n" +
			"beginning (8 characters after fsk_ or more, dots after it do no harm), the whole of it, text that holds it, or its SHA-256. Nothing of it is logged; the\n" +
			"audit log says that somebody asked; a search for a prefix in the console is not written there, and shows no more than its lists do.",
		Example: "  sluice keys find fsk_2xT4mQz9LkPa\n  sluice keys find 'fsk_2xT4mQz9…'\n  pbpaste | sluice keys find -"}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		text := args[0]
		if text == "-" {
			b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), 4096))
			if err != nil {
				return err
			}
			text = string(b)
		}
		return a.do(cmd, "POST", "/api/v1/keys/identify", identifyBody(text), showFound)
	}
	a.register(cmd)
	return cmd
}

func showFound(w io.Writer, raw json.RawMessage) error {
	var out struct {
		Subject struct {
			ID    string `json:"id"`
			Label string `json:"label"`
		} `json:"subject"`
		Key   keyView `json:"key"`
		Token *struct {
			Org         string     `json:"org"`
			Permissions []string   `json:"permissions"`
			CreatedBy   string     `json:"created_by"`
			ExpiresAt   *time.Time `json:"expires_at"`
		} `json:"admin_token"`
		FoundBy string `json:"found_by"`
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return err
	}
	k := out.Key
	rows := [][2]string{{"Key", k.Prefix}, {"Subject", out.Subject.Label}, {"Subject's id", out.Subject.ID}, {"State", k.State}, {"Created", when(k.CreatedAt)}, {"Last used", when(k.LastUsedAt)}}
	if t := out.Token; t != nil {
		rows = [][2]string{{"Admin token", k.Prefix}, {"Name", out.Subject.Label}, {"Org", t.Org}, {"Permissions", strings.Join(t.Permissions, ", ")}, {"State", k.State},
			{"Created", when(k.CreatedAt) + " by " + t.CreatedBy}, {"Expires", when(t.ExpiresAt)}}
	}
	if k.RevokedAt != nil {
		rows = append(rows, [2]string{"Revoked", when(k.RevokedAt) + " by " + k.RevokedBy})
	}
	if out.FoundBy == "prefix" || out.FoundBy == "leading_part" {
		rows = append(rows, [2]string{"Found by", "its beginning alone: whether the rest is the secret was not asked"})
	}
	if k.State == "active" {
		switch {
		case out.Token != nil:
			rows = append(rows, [2]string{"To revoke it", "sluice tokens revoke " + k.Prefix + " --org " + out.Token.Org})
		case strings.HasPrefix(k.Prefix, "fsk_"):
			rows = append(rows, [2]string{"To revoke it", "sluice accounts delete " + out.Subject.ID + " --yes"})
		default:
			rows = append(rows, [2]string{"To revoke it", "sluice keys revoke " + k.Prefix + " --yes"})
		}
	}
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\n", r[0], r[1])
	}
	return t.Flush()
}

var (
	keyPattern    = regexp.MustCompile(auth.KeyPattern)
	sha256Pattern = regexp.MustCompile(`^(?i:sha256[:=])?([0-9A-Fa-f]{64}|[0-9A-Za-z+/]{43}=)$`)
)

// identifyBody sends what was pasted as what it looks like.
func identifyBody(s string) map[string]string {
	s = strings.TrimSpace(s)
	// A key that was mistyped, or cut and put together, is found by its beginning.
	for _, m := range keyPattern.FindAllString(s, 8) {
		_, noKey := auth.ParseKey([]byte(m))
		_, noToken := auth.ParseAdminToken([]byte(m))
		if noKey == nil || noToken == nil {
			return map[string]string{"key": m}
		}
	}
	if sha256Pattern.MatchString(s) {
		return map[string]string{"sha256": s}
	}
	return map[string]string{"prefix": s}
}

func newKeysRevoke() *cobra.Command {
	var a adminFlags
	var yes bool
	cmd := &cobra.Command{Use: "revoke PREFIX", Short: "Revoke a person's or a detector's key", Args: exactArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			return usagef("this revokes the key at once and cannot be undone: say --yes")
		}
		return a.do(cmd, "DELETE", "/api/v1/keys/"+url.PathEscape(args[0]), nil, func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Item       keyView        `json:"item"`
				Revocation revocationView `json:"revocation"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			_, err := fmt.Fprintf(w, "Revoked %s; it is %s", out.Item.Prefix, out.Revocation)
			return err
		})
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "really revoke it")
	a.register(cmd)
	return cmd
}
