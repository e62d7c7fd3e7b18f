package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

// The verdicts on a finding.
const (
	findingOK      = "ok"
	findingWarning = "warning"
	findingFails   = "fails"
)

// A finding is one line of doctor: what it looked at, what it saw and, unless that is well, what to do.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"`
	Seen   string `json:"seen"`
	Do     string `json:"do,omitempty"`
}

// doctorTimeout bounds the questions to one server.
const doctorTimeout = 10 * time.Second

// A doctor gathers findings. It changes nothing but a file that it makes and removes in the spool's directory, and keys below sluice:doctor: in Redis.
type doctor struct {
	cfg      *config
	findings []finding
}

func (d *doctor) ok(check, seen string, args ...any) {
	d.findings = append(d.findings, finding{check, findingOK, fmt.Sprintf(seen, args...), ""})
}

func (d *doctor) warn(check, seen, do string) {
	d.findings = append(d.findings, finding{check, findingWarning, seen, do})
}

func (d *doctor) fails(check, seen, do string) {
	d.findings = append(d.findings, finding{check, findingFails, seen, do})
}

func newDoctorCommand() *cobra.Command {
	var cfg config
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look whether sluice serve would find what it needs, and say what to do where not",
		Long: "Look whether sluice serve would find what it needs: give it the flags, the environment and the file that serve is to have, on the machine where it is to run.\n" +
			"It asks PostgreSQL, Redis, Kafka and the identity provider, compares clocks, and looks at the spool's disk, certificates, ports and limits. Each line is ok, warning\n" +
			"or fails, with what was seen and what to do. Exit status 1 where something fails.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.checkServe(); err != nil {
				return err
			}
			d := &doctor{cfg: &cfg}
			for _, w := range configWarnings(cmd) {
				d.warn("configuration", w, "see sluice config check")
			}
			d.examine(cmd.Context())
			return d.report(cmd.OutOrStdout(), asJSON)
		},
	}
	cfg.serveFlags(cmd.Flags())
	cfg.topicFlags(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	layered(cmd)
	return cmd
}

func (d *doctor) examine(ctx context.Context) {
	for _, look := range []struct {
		needed bool
		at     func(context.Context)
	}{
		{true, d.postgres},
		{true, d.redis},
		{true, d.kafka},
		{d.runs(roleEdge) && d.cfg.spool.dir != "", d.spool},
		{d.cfg.tlsCert != "", d.certificate},
		{d.runs(roleAdmin) && d.cfg.oidcIssuer != "", d.oidc},
		{true, d.ports},
		{true, d.files},
	} {
		if look.needed {
			ctx, cancel := context.WithTimeout(ctx, doctorTimeout)
			look.at(ctx)
			cancel()
		}
	}
}

func (d *doctor) runs(role string) bool { return slices.Contains(d.cfg.roles, role) }

func (d *doctor) count(status string) int {
	n := 0
	for _, f := range d.findings {
		if f.Status == status {
			n++
		}
	}
	return n
}

func (d *doctor) report(out io.Writer, asJSON bool) error {
	failed := d.count(findingFails)
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"ok": failed == 0, "findings": d.findings}); err != nil {
			return err
		}
	} else {
		for _, f := range d.findings {
			fmt.Fprintf(out, "%-8s %-22s %s\n", f.Status, f.Check, f.Seen)
			if f.Do != "" {
				fmt.Fprintf(out, "%-8s %-22s %s\n", "", "", "→ "+f.Do)
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks fail", failed, len(d.findings))
	}
	return nil
}

// clock compares this machine's clock with another's, which was read between before and after.
func (d *doctor) clock(check string, before, after, theirs time.Time) {
	// The most that they certainly differ by: what the way took is nobody's fault.
	var off time.Duration
	switch {
	case theirs.Before(before):
		off = theirs.Sub(before)
	case theirs.After(after):
		off = theirs.Sub(after)
	}
	switch {
	case off.Abs() > 5*time.Second:
		d.fails(check, fmt.Sprintf("it is %s off from this machine's", off.Round(time.Millisecond)), "set both by NTP: times of events would be wrong, and an edge that starts while the database is away judges keys by its own clock")
	case off.Abs() > 500*time.Millisecond:
		d.warn(check, fmt.Sprintf("it is %s off from this machine's", off.Round(time.Millisecond)), "set both by NTP")
	default:
		d.ok(check, "agrees with this machine's, to %s", after.Sub(before).Round(time.Millisecond))
	}
}
