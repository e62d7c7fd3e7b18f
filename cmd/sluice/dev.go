package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kfake"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/signals"
	"flowstate.inc/sluice/signals/scope"
)

// The demo that sluice dev seeds on its first start, after the user's own example.
const (
	demoOrg         = "acme"
	demoAccount     = "nightly-digest-summariser"
	demoDescription = "Summarises the day's tickets into one e-mail for each team, every night at two."
	demoScope       = "May read support tickets and write one digest of them for each team. Nothing else: no code, no questions of general knowledge."
)

// devRetentionBytes bounds what the embedded broker keeps of each partition: a laptop's disk is not a cluster's.
const devRetentionBytes = "268435456"

func newDevCommand() *cobra.Command {
	var cfg config
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process, with a demo org, account and key",
		Long: "Run everything in one process on embedded parts (SQLite, an in-process Kafka broker), durable under --data-dir, on loopback only.\n" +
			"The first start makes the org " + demoOrg + ", a service account and its key, which is shown once.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg.roles = allRoles
			if err := cfg.check(); err != nil {
				return err
			}
			for _, a := range []struct{ flag, addr string }{
				{"edge-addr", cfg.edgeAddr}, {"grpc-addr", cfg.grpcAddr}, {"admin-addr", cfg.adminAddr}, {"ops-addr", cfg.opsAddr}, {"kafka-addr", cfg.kafkaAddr},
			} {
				if err := loopbackOnly(a.flag, a.addr); err != nil {
					return err
				}
			}
			level := cfg.logLevel
			if !cmd.Flags().Changed("log-level") {
				level = "warn" // what dev prints itself is the news; info would bury it
			}
			log, levelVar, out, err := startLog(cmd.ErrOrStderr(), level, cfg.logFormat)
			if err != nil {
				return err
			}
			defer out.Flush()
			logRedis(log)
			d := &dev{cfg: &cfg, log: log, level: levelVar, out: cmd.OutOrStdout(), json: asJSON}
			return d.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	cfg.listenFlags(f, "127.0.0.1")
	cfg.serverFlags(f)
	cfg.judgeFlags(f, 1)
	cfg.stopFlags(f, 0)
	f.StringVar(&cfg.kafkaAddr, "kafka-addr", "127.0.0.1:9092", "address of the embedded Kafka broker")
	f.StringVar(&cfg.dataDir, "data-dir", "./sluice-data", "directory of all data")
	f.BoolVar(&asJSON, "json", false, "print one JSON line when ready, and nothing else")
	cfg.topics = topics{"otlp_logs", "otlp_spans", "otlp_metrics", "ai_signals", "ai_signals_dlq"}
	cfg.partitions, cfg.replication = 3, 1
	cfg.judge.fromStart = true
	layered(cmd)
	return cmd
}

// loopbackOnly keeps dev, whose console needs no password but the link it prints, off the network.
func loopbackOnly(flag, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return usagef("--%s: %w (use host:port, or :port)", flag, err)
	}
	if ip := net.ParseIP(host); host == "" || host == "localhost" || (ip != nil && ip.IsLoopback()) {
		return nil
	}
	return usagef("--%s %s: sluice dev listens on loopback only; use 127.0.0.1, or sluice serve", flag, addr)
}

// A dev is one run of sluice dev.
type dev struct {
	cfg   *config
	log   *slog.Logger
	level *slog.LevelVar
	out   io.Writer
	json  bool
}

func (d *dev) run(ctx context.Context) error {
	if err := os.MkdirAll(d.cfg.dataDir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	lock, err := lockData(d.cfg.dataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	d.bindLoopback()
	p := &process{cfg: d.cfg, log: d.log, level: d.level, reg: newRegistry(), roles: d.cfg.roles}
	if err := p.listen(); err != nil {
		return err
	}
	broker, err := d.startKafka()
	if err != nil {
		return err
	}
	defer broker.Close()
	d.cfg.kafkaBrokers = broker.ListenAddrs()
	if _, err := ingest.EnsureTopics(ctx, ingest.KafkaConfig{Brokers: d.cfg.kafkaBrokers}, d.cfg.topicSpecs()); err != nil {
		return err
	}
	writer, reader, err := accounts.OpenSQLite(filepath.Join(d.cfg.dataDir, "sluice.db"))
	if err != nil {
		return err
	}
	defer writer.Close()
	defer reader.Close()
	if _, err := deploy.Migrate(ctx, writer, deploy.SQLite); err != nil {
		return err
	}
	p.store = accounts.NewStore(accounts.StoreConfig{Writer: writer, Reader: reader, Dialect: accounts.SQLite, OnChange: p.changed})
	p.signals.store = signals.NewStore(signals.StoreConfig{Writer: writer, Reader: reader, Dialect: signals.SQLite, Audit: auditSignals(p.store)})
	p.scope.store = scope.NewStore(scope.StoreConfig{Writer: writer, Reader: reader})
	p.wake = p.store.Wake()
	if err := p.wire(); err != nil {
		return err
	}
	seeded, err := seed(ctx, p.store)
	if err != nil {
		return err
	}
	token, err := devToken(ctx, p.store)
	if err != nil {
		return err
	}
	link, err := p.store.CreateLink(ctx, devBy, auth.Admin{Org: demoOrg, Actor: "sluice dev", Permissions: auth.AllPermissions()}, devLinkTTL)
	if err != nil {
		return err
	}
	defer os.Remove(runFilePath(d.cfg.dataDir))
	return p.run(ctx, func(ctx context.Context) error {
		run := &runFile{
			PID: os.Getpid(), Edge: d.cfg.edgePublicURL(d.cfg.edgeURL, p.edgeLn.Addr()), GRPC: d.cfg.edgePublicURL("", p.grpcLn.Addr()), Admin: publicURL(d.cfg.consoleURL, p.adminLn.Addr()),
			Ops: publicURL("", p.opsLn.Addr()), Kafka: d.cfg.kafkaBrokers[0], Org: demoOrg, AdminToken: token,
		}
		if err := run.write(d.cfg.dataDir); err != nil {
			return err
		}
		if err := d.announce(run, seeded, run.Admin+"/sign-in/once?token="+link); err != nil {
			return err
		}
		if !d.json {
			go d.showFirstEvent(ctx)
		}
		return nil
	})
}

// bindLoopback completes ":port" to a loopback address: dev never listens elsewhere.
func (d *dev) bindLoopback() {
	for _, addr := range []*string{&d.cfg.edgeAddr, &d.cfg.grpcAddr, &d.cfg.adminAddr, &d.cfg.opsAddr, &d.cfg.kafkaAddr} {
		if host, port, err := net.SplitHostPort(*addr); err == nil && host == "" {
			*addr = net.JoinHostPort("127.0.0.1", port)
		}
	}
}

// startKafka starts the embedded broker, whose log survives kill -9: every batch is fsynced before it is acknowledged.
func (d *dev) startKafka() (*kfake.Cluster, error) {
	ln, err := listen("kafka-addr", d.cfg.kafkaAddr)
	if err != nil {
		return nil, err
	}
	broker, err := kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
		kfake.DataDir(filepath.Join(d.cfg.dataDir, "kafka")),
		kfake.SyncWrites(),
		kfake.BrokerConfigs(map[string]string{"log.retention.bytes": devRetentionBytes}),
	)
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("start the embedded Kafka broker on %s: %w", filepath.Join(d.cfg.dataDir, "kafka"), err)
	}
	return broker, nil
}

// A seeding is what the demo has: the account, and its key on the first start only.
type seeding struct {
	accountID string
	key       string
}

var devBy = accounts.By{Actor: "sluice dev", Via: "system"}

// seed makes the demo org and account where no account was ever made.
func seed(ctx context.Context, store *accounts.Store) (seeding, error) {
	if _, err := store.EnsureFirstOrg(ctx, devBy, demoOrg); err != nil {
		return seeding{}, err
	}
	n, err := store.CountAccounts(ctx, demoOrg)
	if err != nil {
		return seeding{}, err
	}
	if n.Live+n.Deleted == 0 {
		created, err := store.CreateAccount(ctx, devBy, demoOrg, accounts.NewAccount{
			Name: demoAccount, Environment: auth.Production, Description: demoDescription, IntendedScope: demoScope,
		}, "")
		if err != nil {
			return seeding{}, err
		}
		return seeding{created.Account.ID, created.Key}, nil
	}
	account, err := store.AccountByName(ctx, demoOrg, demoAccount, auth.Production)
	if errors.Is(err, accounts.ErrNotFound) {
		return seeding{}, nil // deleted or renamed by now
	}
	return seeding{accountID: account.ID}, err
}

// devLinkTTL is how long the one-time link to the console is good: a day at the desk.
const devLinkTTL = 24 * time.Hour

// devTokenName is the name of the admin tokens that dev makes for itself, one a start.
const devTokenName = "sluice dev"

// devToken makes the admin token of this start, with every permission, and ends those of the starts before.
func devToken(ctx context.Context, store *accounts.Store) (string, error) {
	tokens, err := store.Tokens(ctx, demoOrg)
	if err != nil {
		return "", err
	}
	for _, t := range tokens {
		if t.Name == devTokenName && t.RevokedAt.IsZero() {
			if _, err := store.RevokeToken(ctx, devBy, demoOrg, t.Prefix); err != nil {
				return "", err
			}
		}
	}
	_, raw, err := store.CreateToken(ctx, devBy, demoOrg, devTokenName, auth.AllPermissions(), time.Time{})
	return raw, err
}

func (d *dev) announce(run *runFile, s seeding, link string) error {
	if d.json {
		return json.NewEncoder(d.out).Encode(struct {
			Edge        string `json:"edge"`
			GRPC        string `json:"grpc"`
			Admin       string `json:"admin"`
			Ops         string `json:"ops"`
			Kafka       string `json:"kafka"`
			Org         string `json:"org"`
			AccountID   string `json:"account_id"`
			Key         string `json:"key"`
			AdminToken  string `json:"admin_token"`
			ConsoleLink string `json:"console_link"`
		}{run.Edge, run.GRPC, run.Admin, run.Ops, run.Kafka, run.Org, s.accountID, s.key, run.AdminToken, link})
	}
	fmt.Fprintf(d.out, "Sluice is ready; its data is in %s.\n\n", d.cfg.dataDir)
	for _, row := range [][2]string{
		{"Edge", run.Edge + "  (OTLP/HTTP and JSON signals)"}, {"OTLP/gRPC", run.GRPC}, {"Console", link + "  (works once)"},
		{"Admin API", run.Admin + "/api/v1"}, {"Admin token", run.AdminToken},
		{"Ops", run.Ops + "/metrics"}, {"Kafka", run.Kafka}, {"Org", run.Org},
	} {
		fmt.Fprintf(d.out, "  %-16s %s\n", row[0], row[1])
	}
	key := s.key
	if key != "" {
		fmt.Fprintf(d.out, "  %-16s %s / %s\n  %-16s %s\n\nThe key is shown this once. Copy it now.\n", "Service account", demoAccount, auth.Production, "Key", key)
	} else {
		key = "$KEY"
		fmt.Fprintf(d.out, "\nThe demo account's key was shown on the first start only. For another:\n"+
			"  sluice accounts create --data-dir %s --name my-workload --environment development\n", d.cfg.dataDir)
	}
	fmt.Fprintf(d.out, "\nSend two signals (the second makes sense for people only, and is filtered):\n\n"+
		"  curl -sS %s/v1/signals -H 'content-type: application/json' -H \"x-flowstate-key: %s\" \\\n"+
		"    -d '[{\"type\":\"forecast_breach\",\"details\":{\"budget_usd\":200,\"forecast_usd\":260}},{\"type\":\"personal_use_company_account\"}]'\n\n"+
		"Follow what arrives: sluice tail --data-dir %s\n", run.Edge, key, d.cfg.dataDir)
	return nil
}

// showFirstEvent prints the first event of this run, so that a newcomer sees the badge without another terminal.
func (d *dev) showFirstEvent(ctx context.Context) {
	f := follower{client: &kafka.Client{Addr: kafka.TCP(d.cfg.kafkaBrokers...), Timeout: 10 * time.Second}, topics: []string{d.cfg.topics.signals}}
	p := printer{out: d.out, topics: d.cfg.topics}
	err := f.follow(ctx, func(m kafka.Message) error {
		fmt.Fprint(d.out, "\nThe first event has arrived:\n")
		if err := p.print(m); err != nil {
			return err
		}
		return errEnough
	})
	if err != nil && !errors.Is(err, errEnough) && ctx.Err() == nil {
		d.log.Warn("cannot show the first event", "error", err)
	}
}
