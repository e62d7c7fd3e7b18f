package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
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
	cmd := &cobra.Command{Use: "find PREFIX", Short: "Say whose a key is, and whether it is alive", Args: exactArgs(1),
		Long: "Say whose a key is, whether it is alive, when it was last used and who revoked it. Give its prefix, the whole key or its SHA-256 in hexadecimal; nothing of it is logged."}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.do(cmd, "POST", "/api/v1/keys/identify", identifyBody(args[0]), func(w io.Writer, raw json.RawMessage) error {
			var out struct {
				Subject struct {
					Kind  string `json:"kind"`
					ID    string `json:"id"`
					Label string `json:"label"`
				} `json:"subject"`
				Key keyView `json:"key"`
			}
			if err := json.Unmarshal(raw, &out); err != nil {
				return err
			}
			t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
			fmt.Fprintf(t, "Key\t%s\nSubject\t%s\nSubject's id\t%s\nState\t%s\nCreated\t%s\nLast used\t%s\n",
				out.Key.Prefix, out.Subject.Label, out.Subject.ID, out.Key.State, when(out.Key.CreatedAt), when(out.Key.LastUsedAt))
			if out.Key.RevokedAt != nil {
				fmt.Fprintf(t, "Revoked\t%s by %s\n", when(out.Key.RevokedAt), out.Key.RevokedBy)
			}
			return t.Flush()
		})
	}
	a.register(cmd)
	return cmd
}

// identifyBody sends what was pasted as what it looks like.
func identifyBody(s string) map[string]string {
	isHex := len(s) == 64
	for _, c := range s {
		if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
			isHex = false
		}
	}
	switch {
	case isHex:
		return map[string]string{"sha256": s}
	case len(s) > 16:
		return map[string]string{"key": s}
	default:
		return map[string]string{"prefix": s}
	}
}

func newKeysRevoke() *cobra.Command {
	var a adminFlags
	var yes bool
	cmd := &cobra.Command{Use: "revoke PREFIX", Short: "Revoke a person's or a detector's key", Args: exactArgs(1)}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !yes {
			return usagef("this revokes the key at once and cannot be undone: say --yes")
		}
		return a.do(cmd, "DELETE", "/api/v1/keys/"+url.PathEscape(args[0]), nil, func(w io.Writer, _ json.RawMessage) error {
			_, err := fmt.Fprintf(w, "Revoked %s.\n", args[0])
			return err
		})
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "really revoke it")
	a.register(cmd)
	return cmd
}
