package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"flowstate.inc/sluice/signals/scope"
)

func newScopeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "scope", Short: "Measure a scope judge"}
	cmd.AddCommand(newScopeEvalCommand())
	return cmd
}

func newScopeEvalCommand() *cobra.Command {
	var cfg config
	var file string
	var asJSON bool
	var minConfidence float64
	var parallel int
	cmd := &cobra.Command{
		Use:   "eval",
		Short: "Put labelled cases before a judge, and say how right it is",
		Long: "Put labelled cases before a judge: precision and recall of what it calls out of scope, how often it is unsure, and how many injections it calls\n" +
			"out of scope all the same. The cases come with Sluice, or from a file of JSON Lines {id, scope, prompt, label: in|out|debatable|injection}. It needs nothing else of Sluice.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.judge.checkClient(); err != nil {
				return err
			}
			judge, err := cfg.judge.client(nil)
			if err != nil {
				return usagef("--judge-url: %w", err)
			}
			cases, err := scope.EvalCases()
			if file != "" {
				var f *os.File
				if f, err = os.Open(file); err != nil {
					return fmt.Errorf("--cases: %w", err)
				}
				defer f.Close()
				cases, err = scope.ReadEvalCases(f)
			}
			if err != nil {
				return fmt.Errorf("--cases: %w", err)
			}
			report, err := scope.Evaluate(cmd.Context(), judge, cases, minConfidence, parallel)
			if err != nil {
				return err
			}
			if err := writeReport(cmd.OutOrStdout(), report, asJSON); err != nil {
				return err
			}
			switch first := firstFailure(report); {
			case report.Errors == report.Cases:
				return fmt.Errorf("no case was answered: %s", first)
			case report.NotAsked > 0:
				return fmt.Errorf("the judge stopped answering, and the last %d cases were not asked: %s", report.NotAsked, first)
			}
			return nil
		},
	}
	f := cmd.Flags()
	cfg.judge.clientFlags(f)
	f.StringVar(&file, "cases", "", "file of labelled cases, JSON Lines (default: those that come with Sluice)")
	f.Float64Var(&minConfidence, "judge-min-confidence", .7, "confidence, 0 to 1, below which out of scope counts as unsure")
	f.IntVar(&parallel, "judge-parallel", 2, "questions under way at once")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON, every case in it")
	layered(cmd)
	return cmd
}

func writeReport(w io.Writer, report *scope.EvalReport, asJSON bool) error {
	if !asJSON {
		return report.WriteTable(w)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(report)
}

// firstFailure is why the first case without a verdict has none.
func firstFailure(report *scope.EvalReport) string {
	for _, r := range report.Results {
		if r.Verdict == "" {
			return r.Why
		}
	}
	return ""
}
