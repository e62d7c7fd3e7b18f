package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"
	"golang.org/x/sync/errgroup"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/accounts/console"
	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/signals"
)

// stopTimeout covers everything between SIGTERM and the exit: an answer takes at most 8 s, what follows it is quick.
const stopTimeout = 20 * time.Second

// A process is the roles that one sluice dev or sluice serve runs, on the parts it was given.
type process struct {
	cfg   *config
	log   *slog.Logger
	level *slog.LevelVar // of log
	reg   *prometheus.Registry
	roles []string

	store    *accounts.Store
	signals  signalParts // its store is given, the rest is wired
	consumer *signals.Consumer
	scope    scopeParts            // its store is given, the rest is wired
	redis    redis.UniversalClient // nil: none
	tracing  *tracing              // nil: none
	wake     <-chan struct{}       // key_changes has moved

	chain      *auth.Chain
	signalEdge *ingest.Edge
	misuse     chan misuse // uses of revoked keys that are to be raised
	migrated   *migrated   // nil in dev, which migrates itself
	producer   *ingest.Producer
	durable    durability
	edge       *ingest.Server
	grpc       *ingest.GRPCServer
	// certificate is nil where the edge speaks no TLS
	certificate *ingest.Certificate
	admin       *http.Server
	ops         *http.Server

	edgeLn, grpcLn, adminLn, opsLn net.Listener

	state atomic.Pointer[string] // starting, ready, draining
}

// listen takes the ports first: a taken one must be known before anything is started.
func (p *process) listen() error {
	var err error
	if p.opsLn, err = listen("ops-addr", p.cfg.opsAddr); err != nil {
		return err
	}
	if p.runs(roleEdge) {
		if p.edgeLn, err = listen("edge-addr", p.cfg.edgeAddr); err != nil {
			return err
		}
		if p.grpcLn, err = listen("grpc-addr", p.cfg.grpcAddr); err != nil {
			return err
		}
	}
	if p.runs(roleAdmin) {
		if p.adminLn, err = listen("admin-addr", p.cfg.adminAddr); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) runs(role string) bool { return slices.Contains(p.roles, role) }

func (p *process) setState(s string) { p.state.Store(&s) }

// newRegistry has the Go runtime's and the process's own metrics.
func newRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	v := currentVersion()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sluice_build_info", Help: "Always 1; the labels say which build runs."}, []string{"version", "commit", "go_version"})
	build.WithLabelValues(v.Version, v.Commit, v.Go).Set(1)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build, logDropped)
	return reg
}

// wire builds the parts on each other. Nothing of it waits for a dependency.
func (p *process) wire() error {
	steps := []struct {
		needed bool
		build  func() error
	}{
		{true, p.wireTracing},
		{p.runs(roleEdge), p.wireChain},
		{true, p.wireSignals},
		{p.runs(roleEdge) || p.runs(roleAlerts) || p.judges(), p.wireProducer},
		{p.runs(roleEdge), p.wireSink},
		{p.runs(roleEdge), p.wireEdge},
		{p.runs(roleAlerts), p.wireAlerts},
		{p.runs(roleScope) || p.runs(roleAdmin), p.wireJudge},
		{p.runs(roleScope), p.wireScope},
		{p.runs(roleAdmin), p.wireAdmin},
	}
	for _, s := range steps {
		if !s.needed {
			continue
		}
		if err := s.build(); err != nil {
			return err
		}
	}
	p.ops = &http.Server{Handler: p.opsHandler(), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	return nil
}

func (p *process) wireChain() error {
	p.misuse = make(chan misuse, 256)
	var err error
	p.chain, err = auth.NewChain(auth.ChainConfig{
		Truth: auth.Truth{
			Key: p.store.Key, AccountKey: p.store.AccountKey, AccountKeyByName: p.store.AccountKeyByName,
			Changes: p.store.Changes, ReportEdge: p.store.ReportEdge, Stamp: p.store.Stamp, Use: p.store.Use,
		},
		Redis: p.redis, Wake: p.wake, MaxStale: p.cfg.authMaxStale, MaxKeys: p.cfg.authCacheKeys, MissesPerSecond: p.cfg.authMissesPerSecond, EdgeID: edgeID(), Registerer: p.reg, Logger: p.log,
		DefaultLimits: p.cfg.defaultLimits, OnRevokedUse: p.noteMisuse,
	})
	return err
}

func (p *process) wireProducer() error {
	k, err := p.cfg.kafkaConfig()
	if err != nil {
		return err
	}
	p.producer, err = ingest.NewProducer(ingest.ProducerConfig{
		KafkaConfig: k, Topics: p.cfg.topics.all(), MaxInFlightBytes: p.cfg.maxInflightBytes, Idempotent: p.cfg.kafkaIdempotent, Registerer: p.reg, Logger: p.log,
	})
	if err != nil {
		return &usageError{err}
	}
	return nil
}

func (p *process) wireEdge() error {
	t := p.cfg.topics
	p.signalEdge = ingest.NewEdge(ingest.EdgeConfig{
		Chain: p.chain, Producer: p.producer, Sink: p.durable.sink, Decider: p.signals.decider, Drops: p.signals.drops,
		Topics:          ingest.Topics{Logs: t.logs, Spans: t.spans, Metrics: t.metrics, Signals: t.signals},
		MaxRequestBytes: p.cfg.maxRequestBytes, MaxDecodedBytes: p.cfg.maxDecodedBytes, MaxBodyBytes: p.cfg.maxBodyBytes, Registerer: p.reg, Logger: p.log,
		Tracer: p.tracing.tracer("ingest"),
	})
	proxies, err := p.cfg.proxies()
	if err != nil {
		return err
	}
	listen := ingest.ListenConfig{MaxConns: p.cfg.maxConnections, TrustedProxies: proxies, ProxyProtocol: p.cfg.proxyProtocol}
	if p.cfg.tlsCert != "" {
		p.certificate, err = ingest.LoadCertificate(ingest.CertificateConfig{CertFile: p.cfg.tlsCert, KeyFile: p.cfg.tlsKey, Registerer: p.reg, Logger: p.log})
		if err != nil {
			return usagef("--tls-cert, --tls-key: %w", err)
		}
		listen.Certificate = p.certificate
	}
	p.edge = ingest.NewServer(ingest.ServerConfig{Edge: p.signalEdge, ListenConfig: listen, Logger: p.log})
	p.grpc = ingest.NewGRPCServer(ingest.GRPCConfig{Edge: p.signalEdge, ListenConfig: listen, Logger: p.log})
	return nil
}

func (p *process) wireAdmin() error {
	proxies, err := p.cfg.proxies()
	if err != nil {
		return err
	}
	from := clientIP(proxies)
	edgeURL := p.cfg.edgeURL
	if p.edgeLn != nil {
		edgeURL = p.cfg.edgePublicURL(edgeURL, p.edgeLn.Addr())
	}
	account, byName := p.accountLookups()
	alerts := signals.NewAPI(signals.APIConfig{
		Store: p.signals.store, Decider: p.signals.decider, Compiler: p.signals.compiler, Policies: p.signals.policies,
		Account: account, AccountByName: byName, ClientIP: from,
	})
	api := accounts.NewAPI(accounts.APIConfig{
		Store: p.store, Authenticate: p.store.AuthenticateRequest, Logger: p.log, Registerer: p.reg, ClientIP: from, Tracer: p.tracing.tracer("accounts"),
		Scope:       accounts.ScopeJudge{Store: p.scope.store, Assessor: p.scope.assessor},
		SignalTypes: p.signals.taxonomy.Types, Routes: p.signalRoutes(alerts), OpenAPI: [][]byte{signals.OpenAPI},
	})
	oidc, err := p.cfg.oidcConfig(publicURL(p.cfg.consoleURL, p.adminLn.Addr()))
	if err != nil {
		return err
	}
	var signIn console.SignIn
	if oidc != nil {
		signIn = console.SignIn{URL: signInPath, Label: "Sign in with your organisation"}
	}
	pages, err := console.New(console.Config{
		Store: p.store, Signals: p.signals.store, Decider: p.signals.decider, Scope: accounts.ScopeJudge{Store: p.scope.store, Assessor: p.scope.assessor}, EdgeURL: edgeURL, URL: p.cfg.consoleURL, SignIn: signIn, ClientIP: from, Logger: p.log,
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/api/v1", api)
	mux.Handle("/api/v1/", api)
	mux.Handle("/api/v1/{$}", http.RedirectHandler("/api/v1", http.StatusPermanentRedirect))
	mux.Handle("/", pages)
	if oidc != nil {
		o, err := auth.NewOIDC(*oidc)
		if err != nil {
			return &usageError{err}
		}
		p.wireSignIn(mux, pages, o)
	}
	p.admin = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug)}
	return nil
}

// run serves until ctx ends, then stops in order: no new requests, what was taken is finished and acknowledged, the stamps are written.
// ready is called once everything listens.
func (p *process) run(ctx context.Context, ready func(context.Context) error) error {
	p.setState("starting")
	// What requests under way still need ends after them, not with ctx.
	inner, endInner := context.WithCancel(context.WithoutCancel(ctx))
	defer endInner()
	var background, servers errgroup.Group
	if p.chain != nil {
		p.signOn(ctx)
		background.Go(func() error { return p.chain.Run(inner) })
		background.Go(func() error { p.raiseMisuse(inner); return nil })
		background.Go(func() error { p.keepRefusals(inner); return nil })
	}
	if p.certificate != nil {
		background.Go(func() error { return p.certificate.Run(inner) })
	}
	if p.migrated != nil && p.producer != nil {
		background.Go(func() error {
			if err := p.migrated.watch(inner); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		})
	}
	p.runSignals(inner, &background)
	p.durable.start()
	failed := make(chan error, 4)
	serve := func(what string, f func() error) {
		servers.Go(func() error {
			err := f()
			if err == nil || errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			err = fmt.Errorf("%s: %w", what, err)
			failed <- err
			return err
		})
	}
	serve("ops", func() error { return p.ops.Serve(p.opsLn) })
	if p.edge != nil {
		serve("edge", func() error { return p.edge.Serve(p.edgeLn) })
		serve("gRPC", func() error { return p.grpc.Serve(p.grpcLn) })
	}
	if p.admin != nil {
		serve("admin", func() error { return p.admin.Serve(p.adminLn) })
	}
	p.setState("ready")
	err := ready(ctx)
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}

	began := time.Now()
	p.setState("draining")
	delay := p.cfg.spool.drainDelay
	if err != nil {
		delay = 0
	}
	p.log.Info("stopping", "delay", delay)
	if p.edge != nil {
		p.edge.Drain()
		p.grpc.Drain()
	}
	stop, endStop := p.stopping(ctx, delay)
	defer endStop()
	stop, cancel := context.WithTimeout(stop, stopTimeout)
	defer cancel()
	errs := []error{err}
	if p.edge != nil {
		var listeners errgroup.Group
		listeners.Go(func() error { return wrapErr("stop gRPC", p.grpc.Shutdown(stop)) })
		errs = append(errs, wrapErr("stop the edge", p.edge.Shutdown(stop)), listeners.Wait())
	}
	if p.admin != nil {
		errs = append(errs, wrapErr("stop the admin API", p.admin.Shutdown(stop)))
	}
	endInner()
	errs = append(errs, background.Wait())
	if p.chain != nil {
		// A revocation must not wait for an edge that has left. Should this fail, it is pending in every answer until --auth-max-stale is over.
		forget, cancel := context.WithTimeout(context.WithoutCancel(stop), signOffWithin) // also when hurried
		if err := p.store.ForgetEdge(forget, edgeID()); err != nil {
			p.log.Warn("cannot sign off from the table of edges", "error", err)
		}
		cancel()
	}
	if p.producer != nil {
		errs = append(errs, p.durable.finish(stop, p.producer, p.cfg.spool.dir, p.log))
	}
	p.tracing.stop(stop)
	errs = append(errs, wrapErr("stop ops", p.ops.Shutdown(stop)))
	_ = servers.Wait() // its error came by failed
	p.log.Info("stopped", "took", time.Since(began).Round(time.Millisecond))
	return errors.Join(append(errs, p.durable.left)...) // what is left decides the exit status, whatever else went wrong
}

// signOffWithin is what an edge has to sign off, when it is hurried too: else each answer of a deletion waits for it in vain for --auth-max-stale.
const signOffWithin = 2 * time.Second

func wrapErr(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// edgeID tells the edges apart in the table of edges, also two on one host.
var edgeID = sync.OnceValue(func() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	// Containers may share a host's name, and each has pid 1.
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), rand.Text()[:8])
})

func (p *process) opsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.reg, promhttp.HandlerOpts{Registry: p.reg}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", p.readyz)
	mux.HandleFunc("GET /refusals", p.serveRefusals)
	p.debugRoutes(mux)
	return mux
}

// readyz fails only while starting or draining, or with nothing to answer from: a dependency that is away must not take the whole fleet out of the load balancer.
// What is away stands in the body.
func (p *process) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	body := struct {
		Status       string            `json:"status"`
		Dependencies map[string]string `json:"dependencies"`
	}{*p.state.Load(), map[string]string{}}
	say := func(name string, err error) bool {
		body.Dependencies[name] = "ok"
		if err != nil {
			body.Dependencies[name] = err.Error()
		}
		return err == nil
	}
	answers := say("database", p.store.Ping(ctx))
	if p.redis != nil {
		answers = say("redis", p.redis.Ping(ctx).Err()) || answers
	}
	if p.producer != nil {
		say("kafka", p.producer.Healthy())
	}
	if p.migrated != nil && p.producer != nil {
		say("topics", p.migrated.topicHealth())
	}
	if p.durable.log != nil {
		say("spool", p.durable.health())
	}
	if body.Status == "ready" && p.chain != nil && !answers && p.chain.Status().Keys == 0 {
		body.Status = "nothing to answer from"
	}
	if p.migrated != nil {
		if why := p.migrated.lacksSchema(ctx); why != "" {
			body.Dependencies["database"] = why
			if body.Status == "ready" {
				body.Status = "run sluice migrate"
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if body.Status != "ready" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(body)
}

// edgePublicURL is publicURL for a listener of the edge, which speaks TLS where it has a certificate.
func (c *config) edgePublicURL(configured string, addr net.Addr) string {
	if configured == "" && c.tlsCert != "" {
		return "https://" + dialable(addr)
	}
	return publicURL(configured, addr)
}

// kafkaConfig says how to reach Kafka.
func (c *config) kafkaConfig() (ingest.KafkaConfig, error) {
	k := ingest.KafkaConfig{Brokers: c.kafkaBrokers}
	if err := c.checkSASL(); err != nil {
		return k, err
	}
	if c.kafkaTLS || c.kafkaTLSCA != "" {
		k.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
		if c.kafkaTLSCA != "" {
			pem, err := os.ReadFile(c.kafkaTLSCA)
			if err != nil {
				return k, usagef("--kafka-tls-ca: %w", err)
			}
			k.TLS.RootCAs = x509.NewCertPool()
			if !k.TLS.RootCAs.AppendCertsFromPEM(pem) {
				return k, usagef("--kafka-tls-ca: %s holds no PEM certificate", c.kafkaTLSCA)
			}
		}
	}
	if c.kafkaSASL != "" {
		k.SASL = &ingest.SASLConfig{Mechanism: c.kafkaSASL, Username: c.kafkaUser, Password: c.kafkaPassword}
	}
	return k, nil
}

// kafkaTransport is the same for kafka-go's own clients, which read and make topics.
func (c *config) kafkaTransport() (*kafka.Transport, error) {
	k, err := c.kafkaConfig()
	if err != nil {
		return nil, err
	}
	return k.Transport()
}

// signOn has the edge counted before it serves anybody. A database that is away delays the start by a second and no more: nothing can be revoked there
// meanwhile.
func (p *process) signOn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := p.chain.SignOn(ctx); err != nil {
		p.log.Warn("cannot sign on to the table of edges; it is tried each second", "error", err)
	}
}

// changed makes a change of a key hold for the very next request of this process, before the call that made it returns.
func (p *process) changed(ch auth.Change) {
	if p.chain != nil {
		p.chain.Apply(ch)
	}
}
