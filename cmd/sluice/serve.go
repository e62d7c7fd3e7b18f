package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
	"flowstate.inc/sluice/signals"
	"flowstate.inc/sluice/signals/scope"
)

func newServeCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run on PostgreSQL, Redis and Kafka",
		Long: "Run on PostgreSQL, Redis and Kafka by address. Wrong configuration refuses to start; a dependency that cannot be reached does not.\n" +
			"Run sluice migrate first: it makes the tables and the topics.\n" +
			"With --spool-dir an edge keeps on disk what Kafka does not take in time, and sends it when Kafka is back. SIGTERM fails /readyz, waits --drain-delay, finishes what\n" +
			"was taken, and exits with status 3 where records are left in the spool; a second signal hurries it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cfg.checkServe(); err != nil {
				return err
			}
			log, level, out, err := startLog(cmd.ErrOrStderr(), cfg.logLevel, cfg.logFormat)
			if err != nil {
				return err
			}
			defer out.Flush()
			logRedis(log)
			for _, name := range strangers(cmd.Root()) {
				log.Warn("nothing reads this environment variable", "variable", name)
			}
			p, closeAll, err := newServing(cmd.Context(), &cfg, log, level)
			if err != nil {
				return err
			}
			defer closeAll()
			err = p.run(cmd.Context(), func(context.Context) error {
				p.logListening()
				return nil
			})
			if err == nil {
				return nil
			}
			grave := slog.LevelError
			if exitStatus(err) == 3 {
				grave = slog.LevelWarn
			}
			if !log.Enabled(cmd.Context(), grave) {
				return err
			}
			log.Log(cmd.Context(), grave, "ended", "status", exitStatus(err), "error", err.Error())
			return &loggedError{err}
		},
	}
	cfg.serveFlags(cmd.Flags())
	layered(cmd)
	return cmd
}

// newServing builds what serve runs, and listens. The caller closes it after it has run.
func newServing(ctx context.Context, cfg *config, log *slog.Logger, level *slog.LevelVar) (*process, func(), error) {
	var closers []func()
	closeAll := func() {
		for _, c := range slices.Backward(closers) {
			c()
		}
	}
	p, err := func() (*process, error) {
		shared, err := auth.OpenRedis(cfg.redisURL)
		if err != nil {
			return nil, usagef("--redis-url: %w", err)
		}
		closers = append(closers, func() { shared.Close() })
		writer, reader, err := openPostgres(cfg.postgresURL)
		if err != nil {
			return nil, err
		}
		closers = append(closers, func() { reader.Close(); writer.Close() })
		p := &process{cfg: cfg, log: log, level: level, reg: newRegistry(), roles: cfg.roles, redis: shared}
		if err := p.listen(); err != nil {
			return nil, err
		}
		listenCtx, stopListening := context.WithCancel(context.WithoutCancel(ctx))
		closers = append(closers, stopListening)
		p.wake, err = accounts.Listen(listenCtx, cfg.postgresURL, log)
		if err != nil {
			return nil, badPostgresURL(cfg.postgresURL)
		}
		p.store = accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.Postgres, OnChange: p.changed})
		p.signals.store = signals.NewStore(signals.StoreConfig{Writer: writer, Reader: reader, Dialect: signals.Postgres, Audit: auditSignals(p.store)})
		p.migrated = newMigrated(cfg, reader, p.reg, log)
		p.scope.store = scope.NewStore(scope.StoreConfig{Writer: writer, Reader: reader})
		return p, p.wire()
	}()
	if err != nil {
		closeAll()
		return nil, nil, err
	}
	return p, closeAll, nil
}

// serveFlags are all that serve takes.
func (c *config) serveFlags(f *pflag.FlagSet) {
	c.listenFlags(f, "")
	c.serverFlags(f)
	c.judgeFlags(f, .05)

	c.signInFlags(f)
	c.spoolFlags(f)
	c.stopFlags(f, 5*time.Second)
	c.storeFlags(f)
	c.kafkaFlags(f)
	f.StringVar(&c.redisURL, "redis-url", "", "Redis, as redis://user:password@host:6379/0, rediss:// for TLS (secret: also --redis-url-file)")
	f.StringSliceVar(&c.roles, "roles", allRoles, "what this process does, comma-separated: "+strings.Join(allRoles, ", "))
}

// logListening says where the process can be reached.
func (p *process) logListening() {
	args := []any{"version", version, "roles", strings.Join(p.roles, ","), "ops", p.opsLn.Addr().String()}
	if p.edgeLn != nil {
		args = append(args, "edge", p.edgeLn.Addr().String(), "grpc", p.grpcLn.Addr().String())
	}
	if p.adminLn != nil {
		args = append(args, "admin", p.adminLn.Addr().String())
	}
	p.log.Info("ready", args...)
}

func newMigrateCommand() *cobra.Command {
	var cfg config
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database's schema up and make missing topics",
		Long: "Bring the database's schema up and make the topics that are missing. Safe to run again, and by two at once. Existing topics are left as they are; what is\n" +
			"wrong with them is printed, and where nothing can be written to one the exit status is 1.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.postgresURL == "" && len(cfg.kafkaBrokers) == 0 {
				return usagef("give --postgres-url, --kafka-brokers or both")
			}
			if cfg.minInSync < 0 || cfg.replication > 0 && cfg.minInSync > cfg.replication {
				return usagef("--min-insync-replicas must not be negative, nor more than --replication: nothing could be written")
			}
			out := cmd.OutOrStdout()
			if cfg.postgresURL != "" {
				writer, reader, err := openPostgres(cfg.postgresURL)
				if err != nil {
					return err
				}
				defer writer.Close()
				defer reader.Close()
				n, err := deploy.Migrate(cmd.Context(), writer, deploy.Postgres)
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "schema: %d migrations applied\n", n)
			}
			if len(cfg.kafkaBrokers) > 0 {
				made, problems, err := cfg.prepareTopics(cmd.Context())
				if err != nil {
					return err
				}
				fmt.Fprintf(out, "topics: %d made", len(made))
				if len(made) > 0 {
					fmt.Fprintf(out, " (%s)", strings.Join(made, ", "))
				}
				fmt.Fprintln(out)
				fatal := 0
				for _, p := range problems {
					fmt.Fprintf(out, "topic %s %s\n", p.Topic, p.Message)
					if p.Fatal {
						fatal++
					}
				}
				if fatal > 0 {
					return fmt.Errorf("the schema is up to date, but %d topics cannot be written as they are", fatal)
				}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.postgresURL, "postgres-url", "", "PostgreSQL, as postgres://user:password@host:5432/database (secret: also --postgres-url-file)")
	cfg.kafkaFlags(f)
	cfg.topicFlags(f)
	layered(cmd)
	return cmd
}
