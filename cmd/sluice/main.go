// Command sluice is the front door for AI telemetry: it knows who sends (service accounts and their keys), filters what makes no sense for a
// machine, and hands the rest to Kafka with the sender's badge.
//
// This package holds the flags and the environment, the wiring of the rooms, and the order in which they start and stop. It promises
// that wrong configuration refuses to start and says what is wrong, while a dependency that cannot be reached never does. It fails with exit
// status 1 for an error, 2 for a wrong command line, 3 where an edge has stopped in good order but records are left in its spool, and prints the reason on
// standard error.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	err := root.ExecuteContext(ctx)
	var logged *loggedError
	if err != nil && !errors.As(err, &logged) {
		fmt.Fprintf(root.ErrOrStderr(), "sluice: %v\n", err)
	}
	return exitStatus(err)
}

func exitStatus(err error) int {
	var usage *usageError
	var left *leftError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	case errors.As(err, &left):
		return 3
	}
	return 1
}

// A loggedError was written to the log, in the log's form and by those who do not wait for its reader, so nobody else need say it.
type loggedError struct{ error }

func (e *loggedError) Unwrap() error { return e.error }

// A usageError is a wrong command line or configuration: nothing was tried.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "sluice",
		Short:         "The front door for AI telemetry",
		Long:          "Sluice gives each AI workload an identity and a key, authenticates what it sends, filters it and forwards it to Kafka with its badge.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w (see %s --help)", inWords(err), cmd.CommandPath())
	})
	root.AddCommand(
		newDevCommand(), newServeCommand(), newMigrateCommand(), newScopeCommand(),
		newOrgsCommand(), newAccountsCommand(), newKeysCommand(), newTokensCommand(), newAuditCommand(), newTailCommand(), newTopCommand(), newDLQCommand(), newSpoolCommand(), newConfigCommand(), newDoctorCommand(), newVersionCommand(),
	)
	return root
}
