package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"flowstate.inc/sluice/auth"
)

// A config is everything that can be set from outside. Each field is a flag, the flag's name in upper case with underscores and
// SLUICE_ before it is its environment variable, the flag's name its key in the file of --config, and a secret may also stand in a file of its own
// (flag NAME-file, or SLUICE_NAME_FILE). A flag wins over the environment, the environment over the file, the file over the default.
type config struct {
	edgeAddr, grpcAddr, adminAddr, opsAddr, kafkaAddr string
	edgeURL, consoleURL                               string
	trustedProxies                                    []string
	dataDir                                           string
	postgresURL, redisURL                             string
	kafkaBrokers                                      []string
	kafkaTLS                                          bool
	kafkaTLSCA                                        string
	kafkaSASL, kafkaUser, kafkaPassword               string
	kafkaIdempotent                                   bool
	topics                                            topics
	partitions, replication, minInSync                int
	authMaxStale                                      time.Duration
	authCacheKeys, authMissesPerSecond                int
	roles                                             []string
	maxRequestBytes, maxDecodedBytes                  int
	maxInflightBytes, maxBodyBytes                    int64
	maxConnections                                    int
	tlsCert, tlsKey                                   string
	proxyProtocol                                     bool
	defaultLimits                                     auth.Limits
	alertsRetention                                   time.Duration
	alertsGroup                                       string
	signalTypesFile                                   string
	severityCaps                                      map[string]string
	auditRetention                                    time.Duration
	oidcIssuer, oidcClientID, oidcClientSecret        string
	oidcGroupsClaim, oidcCookieSecret                 string
	oidcGrants                                        []string
	logLevel, logFormat                               string
	spool                                             spoolConfig
	judge                                             judgeConfig
	trace                                             traceConfig
}

// topics are the names of the Kafka topics, each configurable.
type topics struct{ logs, spans, metrics, signals, dlq string }

func (t topics) all() []string { return []string{t.logs, t.spans, t.metrics, t.signals, t.dlq} }

// The roles of a process.
const (
	roleEdge   = "edge"
	roleAdmin  = "admin"
	roleAlerts = "alerts"
	roleScope  = "scope" // idle without a judge
)

var allRoles = []string{roleEdge, roleAdmin, roleAlerts, roleScope}

// The groups of flags. A command takes those that it uses.

func (c *config) storeFlags(f *pflag.FlagSet) {
	f.StringVar(&c.dataDir, "data-dir", "./sluice-data", "directory of the data of sluice dev; the other commands find a running one through it")
	f.StringVar(&c.postgresURL, "postgres-url", "", "PostgreSQL, as postgres://user:password@host:5432/database (secret: also --postgres-url-file)")
}

func (c *config) kafkaFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&c.kafkaBrokers, "kafka-brokers", nil, "Kafka brokers to start from, as host:port, comma-separated")
	f.BoolVar(&c.kafkaTLS, "kafka-tls", false, "speak TLS to Kafka")
	f.StringVar(&c.kafkaTLSCA, "kafka-tls-ca", "", "PEM file of the authorities that sign Kafka's certificates (default: the system's)")
	f.StringVar(&c.kafkaSASL, "kafka-sasl", "", "SASL mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512 (default: none)")
	f.StringVar(&c.kafkaUser, "kafka-user", "", "SASL user")
	f.StringVar(&c.kafkaPassword, "kafka-password", "", "SASL password (secret: also --kafka-password-file)")
	f.StringVar(&c.topics.logs, "topic-logs", "otlp_logs", "topic of OTLP logs")
	f.StringVar(&c.topics.spans, "topic-spans", "otlp_spans", "topic of OTLP spans")
	f.StringVar(&c.topics.metrics, "topic-metrics", "otlp_metrics", "topic of OTLP metrics")
	f.StringVar(&c.topics.signals, "topic-signals", "ai_signals", "topic of signals")
	f.StringVar(&c.topics.dlq, "topic-signals-dlq", "ai_signals_dlq", "topic of signals that can never be read")
}

func (c *config) topicFlags(f *pflag.FlagSet) {
	f.IntVar(&c.partitions, "partitions", -1, "partitions of topics made here (-1: the broker's default)")
	f.IntVar(&c.replication, "replication", -1, "replicas of topics made here (-1: the broker's default)")
	f.IntVar(&c.minInSync, "min-insync-replicas", 0, "how many replicas must have a message before it is acknowledged, of topics made here (0: 2 from --replication=3 on, else the broker's default)")
}

func (c *config) listenFlags(f *pflag.FlagSet, host string) {
	f.StringVar(&c.edgeAddr, "edge-addr", host+":4318", "address of the edge: OTLP/HTTP and JSON signals")
	f.StringVar(&c.grpcAddr, "grpc-addr", host+":4317", "address of OTLP/gRPC")
	f.StringVar(&c.adminAddr, "admin-addr", host+":8318", "address of the console and the admin API")
	f.StringVar(&c.opsAddr, "ops-addr", host+":9318", "address of /metrics, /livez and /readyz")
}

func (c *config) serverFlags(f *pflag.FlagSet) {
	f.StringVar(&c.edgeURL, "edge-url", "", "URL of the edge as workloads see it (default: from --edge-addr)")
	f.StringVar(&c.consoleURL, "console-url", "", "URL of the console as admins see it (default: from --admin-addr)")
	f.StringSliceVar(&c.trustedProxies, "trusted-proxies", nil, "networks whose X-Forwarded-For (and PROXY header, see --proxy-protocol) is believed, as CIDR, comma-separated")
	f.DurationVar(&c.authMaxStale, "auth-max-stale", 15*time.Minute, "how long known keys are served while neither PostgreSQL nor Redis can be asked")
	f.IntVar(&c.authCacheKeys, "auth-cache-keys", 100_000, "keys that an edge keeps in memory, about 0.9 KB each; the least used go first")
	f.IntVar(&c.authMissesPerSecond, "auth-misses-per-second", 500,
		"keys that turn out not to exist that an edge looks up in PostgreSQL a second, beyond which unknown keys get 503; 100 for one address. Of it a quarter is for addresses of good keys, an eighth for the first look-up of an address")
	f.IntVar(&c.maxRequestBytes, "max-request-bytes", 64<<20, "largest request body, as sent")
	f.IntVar(&c.maxDecodedBytes, "max-decoded-bytes", 64<<20, "largest request body after decompression")
	f.Int64Var(&c.maxBodyBytes, "max-body-bytes", 256<<20,
		"bytes of request bodies in memory, as sent, decompressed and rewritten, beyond which requests are answered 503; at least 4 times the larger of the two before")
	f.IntVar(&c.maxConnections, "max-connections", 10_000, "open connections of each of the edge's listeners, beyond which new ones are turned away")
	f.StringVar(&c.tlsCert, "tls-cert", "", "PEM file of the edge's certificate and its intermediates: TLS on --edge-addr and --grpc-addr. Read again when it changes")
	f.StringVar(&c.tlsKey, "tls-key", "", "PEM file of the key of --tls-cert")
	f.BoolVar(&c.proxyProtocol, "proxy-protocol", false, "connections from --trusted-proxies to the edge begin with a PROXY header, version 1 or 2")
	f.BoolVar(&c.kafkaIdempotent, "kafka-idempotent", false,
		"number what is sent to Kafka, so that a batch sent again because its answer was lost is written once. Brokers before 3.0 want IDEMPOTENT_WRITE on the cluster for it")
	f.Int64Var(&c.maxInflightBytes, "max-inflight-bytes", 256<<20, "bytes waiting for Kafka, beyond which requests are answered 503")
	f.Int64Var(&c.defaultLimits.RequestsPerSecond, "default-requests-per-second", 0, "limit on each edge of a key that names none (0: no limit)")
	f.Int64Var(&c.defaultLimits.BytesPerSecond, "default-bytes-per-second", 0, "limit on each edge of a key that names none, bytes as sent (0: no limit)")
	f.StringVar(&c.alertsGroup, "alerts-group", "sluice-alerts", "Kafka consumer group of the alerts")
	f.StringVar(&c.signalTypesFile, "signal-types-file", "", `JSON file that adds signal types, as {"add":[{"type","category","applies_to","base_severity"}],"persons_only":[…]}`)
	f.StringToStringVar(&c.severityCaps, "severity-caps", nil, "highest severity by environment (default production=BLOCK,staging=WARN,development=INFO)")
	f.DurationVar(&c.alertsRetention, "alerts-retention", 400*24*time.Hour, "how long alerts are kept (0: for ever)")
	f.DurationVar(&c.auditRetention, "audit-retention", 0, "how long rows of the audit log are kept (0: for ever)")
	c.trace.flags(f)
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&c.logFormat, "log-format", "auto", "json, text, or auto: text on a terminal")
}

func (c *config) signInFlags(f *pflag.FlagSet) {
	f.StringVar(&c.oidcIssuer, "oidc-issuer", "", "OpenID Connect issuer, exactly as its discovery document says; empty: admins sign in by token")
	f.StringVar(&c.oidcClientID, "oidc-client-id", "", "client id at the issuer; its redirect URL is --console-url followed by "+callbackPath)
	f.StringVar(&c.oidcClientSecret, "oidc-client-secret", "", "client secret; empty for a public client (secret: also --oidc-client-secret-file)")
	f.StringVar(&c.oidcGroupsClaim, "oidc-groups-claim", "groups", "claim that lists the admin's groups")
	f.StringSliceVar(&c.oidcGrants, "oidc-grant", nil, "what a group may do, as GROUP=ORG:PERMISSION+PERMISSION; more than once or comma-separated")
	f.StringVar(&c.oidcCookieSecret, "oidc-cookie-secret", "", "32 random bytes or more, the same for all admin processes behind one address (secret: also --oidc-cookie-secret-file)")
}

// check refuses what can never work, before anything starts, and names all of it. A message names the flag and never a secret's value.
func (c *config) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	type listener struct {
		flag, addr string
		role       string // that listens there; every process where it is empty
	}
	var listeners []listener
	for _, a := range []listener{
		{"edge-addr", c.edgeAddr, roleEdge}, {"grpc-addr", c.grpcAddr, roleEdge}, {"admin-addr", c.adminAddr, roleAdmin}, {"ops-addr", c.opsAddr, ""},
	} {
		if _, port, err := net.SplitHostPort(a.addr); err != nil {
			wrong("--%s: %w (use host:port, or :port)", a.flag, err)
		} else if _, err := net.LookupPort("tcp", port); err != nil {
			wrong("--%s: %s is no port", a.flag, port)
		} else if a.role == "" || slices.Contains(c.roles, a.role) {
			for _, other := range listeners {
				if sameListener(a.addr, other.addr) {
					wrong("--%s %s and --%s %s are the same port: give each its own", other.flag, other.addr, a.flag, a.addr)
				}
			}
			listeners = append(listeners, a)
		}
	}
	for _, u := range []struct{ flag, url string }{{"edge-url", c.edgeURL}, {"console-url", c.consoleURL}} {
		if u.url == "" {
			continue
		}
		p, err := url.Parse(u.url)
		if err != nil || p.Host == "" || (p.Scheme != "http" && p.Scheme != "https") {
			wrong("--%s: %q is not an http or https URL", u.flag, u.url)
		}
	}
	for _, b := range c.kafkaBrokers {
		if _, port, err := net.SplitHostPort(b); err != nil {
			wrong("--kafka-brokers: %w (use host:port)", err)
		} else if !auth.IsPort(port) {
			wrong("--kafka-brokers: %s: %s is no port", b, port)
		}
	}
	if _, err := c.proxies(); err != nil {
		errs = append(errs, err)
	}
	for _, r := range c.roles {
		if !slices.Contains(allRoles, r) {
			wrong("--roles: %q is not one of %s", r, strings.Join(allRoles, ", "))
		}
	}
	if c.authMaxStale < 0 || c.maxRequestBytes <= 0 || c.maxDecodedBytes <= 0 || c.maxInflightBytes <= 0 {
		wrong("--auth-max-stale, --max-request-bytes, --max-decoded-bytes and --max-inflight-bytes must be positive")
	}
	if c.authCacheKeys <= 0 || c.authMissesPerSecond <= 0 {
		wrong("--auth-cache-keys and --auth-misses-per-second must be positive")
	}
	errs = append(errs, c.spool.check())
	errs = append(errs, c.judge.check(), c.trace.check())
	if c.maxConnections <= 0 || c.maxBodyBytes < 4*int64(max(c.maxRequestBytes, c.maxDecodedBytes)) {
		wrong("--max-connections must be positive, and --max-body-bytes at least 4 times --max-request-bytes and --max-decoded-bytes")
	}
	if (c.tlsCert == "") != (c.tlsKey == "") {
		wrong("--tls-cert and --tls-key go together")
	}
	if c.proxyProtocol && len(c.trustedProxies) == 0 {
		wrong("--proxy-protocol needs --trusted-proxies: whose PROXY header is to be believed")
	}
	seen := map[string]bool{}
	for _, t := range c.topics.all() {
		if t == "" || seen[t] {
			wrong("--topic-*: topics need names, each its own; got %q", t)
		} else if !topicName.MatchString(t) {
			wrong("--topic-*: Kafka has no topic %q: letters, digits, dots, underscores and hyphens, at most 249", t)
		}
		seen[t] = true
	}
	if err := errors.Join(errs...); err != nil {
		return &usageError{err}
	}
	return nil
}

// topicName is what Kafka allows.
var topicName = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,249}$`)

// sameListener says whether two addresses cannot both be listened on, so far as the text tells: the same port, not 0, of the same host or of all.
func sameListener(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	if hostA == "localhost" {
		hostA = "127.0.0.1"
	}
	if hostB == "localhost" {
		hostB = "127.0.0.1"
	}
	everyHost := func(h string) bool { return h == "" || h == "0.0.0.0" || h == "::" }
	return portA == portB && portA != "0" && (hostA == hostB || everyHost(hostA) || everyHost(hostB))
}

// checkSASL is about all commands that speak to Kafka.
func (c *config) checkSASL() error {
	switch c.kafkaSASL {
	case "":
		if c.kafkaUser != "" || c.kafkaPassword != "" {
			return usagef("--kafka-user and --kafka-password need --kafka-sasl: without it nobody is told them")
		}
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		if c.kafkaUser == "" || c.kafkaPassword == "" {
			return usagef("--kafka-sasl needs --kafka-user and --kafka-password")
		}
	default:
		return usagef("--kafka-sasl: %q is not PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.kafkaSASL)
	}
	return nil
}

func (c *config) proxies() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range c.trustedProxies {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			addr, addrErr := netip.ParseAddr(s)
			if addrErr != nil {
				return nil, usagef("--trusted-proxies: %w", err)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}

// publicURL is the URL that others use for a listener: as configured, else its own address, with a host that can be dialled.
func publicURL(configured string, addr net.Addr) string {
	if configured != "" {
		return strings.TrimRight(configured, "/")
	}
	return "http://" + dialable(addr)
}

// dialable is a listener's address as this machine can reach it.
func dialable(addr net.Addr) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// listen takes an address, and names the flag when it is taken.
func listen(flag, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("--%s %s: %w (set --%s to another address, or :0 for any free port)", flag, addr, err, flag)
	}
	return ln, nil
}
