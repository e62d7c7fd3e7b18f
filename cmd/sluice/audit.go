package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"flowstate.inc/sluice/accounts"
)

func newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Verify the audit log", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var asJSON bool
	var org string
	verify := storeCommand(&cobra.Command{Use: "verify", Short: "Find rows that were edited, removed, reordered or cut off",
		Long: "Read the org's whole audit log and say where it is not what was written: rows edited, removed, reordered or cut off. Exit status 1 when something was found.",
		Args: cobra.NoArgs}, &asJSON,
		func(ctx context.Context, store *accounts.Store, _ []string) (any, func(io.Writer) error, error) {
			if org == "" {
				var err error
				if org, err = onlyOrg(ctx, store); err != nil {
					return nil, nil, err
				}
			}
			report, err := store.VerifyAudit(ctx, org)
			if err != nil {
				return nil, nil, err
			}
			if !report.Intact() {
				first := report.Problems[0]
				return nil, nil, fmt.Errorf("the audit log of %s is not intact: %d problems, the first at row %d: %s (%s)", org, len(report.Problems), first.Seq, first.Kind, first.Detail)
			}
			return report, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "The audit log of %s is intact: %d rows, from %d to %d.\n", org, report.Rows, report.First, report.Head)
				return err
			}, nil
		})
	verify.Flags().StringVar(&org, "org", "", "org (default: the only one)")
	cmd.AddCommand(verify)
	return cmd
}

// keepHouse removes from the database what has served its time, every five minutes until ctx ends.
func (p *process) keepHouse(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Minute)
	defer tick.Stop()
	for {
		if err := p.sweep(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("cannot remove what is past its retention; trying again in five minutes", "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (p *process) sweep(ctx context.Context) error {
	// Edges remember changes of the last hour and --auth-max-stale: the table must reach further back than the laziest of them.
	if err := p.store.Prune(ctx, max(24*time.Hour, 2*p.cfg.authMaxStale)); err != nil {
		return err
	}
	if err := p.sweepScope(ctx); err != nil {
		return err
	}
	if p.cfg.auditRetention <= 0 {
		return nil
	}
	orgs, err := p.store.Orgs(ctx)
	if err != nil {
		return err
	}
	for _, o := range orgs {
		if _, err := p.store.PruneAudit(ctx, accounts.By{Actor: "retention", Via: "system"}, o.Slug, time.Now().Add(-p.cfg.auditRetention)); err != nil {
			return err
		}
	}
	return nil
}
