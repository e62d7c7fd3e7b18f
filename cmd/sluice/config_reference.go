package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// A settingGroup is a section of the reference of settings.
type settingGroup struct {
	title    string
	intro    string
	settings []settingUse
}

// A settingUse says who uses a setting.
type settingUse struct{ name, by string }

// everyRole marks what each process uses, whatever its roles.
const everyRole = "all"

// settingGroups is every setting once; a test holds it to the flags.
var settingGroups = []settingGroup{
	{"Servers that it stands on", "`serve` starts while they are away; the addresses must be there.", []settingUse{
		{"postgres-url", everyRole + ", migrate, CLI"}, {"redis-url", everyRole}, {"kafka-brokers", "edge, alerts, scope, migrate, tail"}, {"kafka-tls", "edge, alerts, scope, migrate, tail"},
		{"kafka-tls-ca", "edge, alerts, scope, migrate, tail"}, {"kafka-sasl", "edge, alerts, scope, migrate, tail"}, {"kafka-user", "edge, alerts, scope, migrate, tail"},
		{"kafka-password", "edge, alerts, scope, migrate, tail"}, {"kafka-idempotent", "edge"},
	}},
	{"Topics", "`sluice migrate` makes those that are missing, and leaves the others as they are.", []settingUse{
		{"topic-logs", "edge, scope, migrate, tail"}, {"topic-spans", "edge, scope, migrate, tail"}, {"topic-metrics", "edge, migrate, tail"},
		{"topic-signals", "edge, alerts, scope, migrate, tail"}, {"topic-signals-dlq", "alerts, migrate, tail"}, {"partitions", "migrate"}, {"replication", "migrate"}, {"min-insync-replicas", "migrate"},
	}},
	{"The scope judge", "Off without `judge-url`: then nothing is judged, and nothing leaves. [scope.md](scope.md) says what does.", []settingUse{
		{"judge-url", "scope, admin"}, {"judge-model", "scope, admin"}, {"judge-key", "scope, admin"}, {"judge-proxy", "scope, admin"}, {"judge-timeout", "scope, admin"}, {"judge-sample", "scope"},
		{"judge-samples", "scope"}, {"judge-min-confidence", "scope, admin"}, {"judge-requests-per-day", "scope, admin"}, {"judge-requests-per-day-per-account", "scope, admin"},
		{"judge-tokens-per-day", "scope, admin"}, {"judge-tokens-per-day-per-account", "scope, admin"}, {"judge-cost-per-day", "scope, admin"},
		{"judge-cost-per-day-per-account", "scope, admin"}, {"judge-price-in", "scope, admin"}, {"judge-price-out", "scope, admin"}, {"judge-max-lag", "scope"},
		{"judge-parallel", "scope"}, {"judge-keep-prompts", "scope"}, {"scope-retention", "admin"}, {"scope-group", "scope"},
	}},
	{"What a process does, and where it listens", "", []settingUse{
		{"roles", everyRole}, {"edge-addr", "edge"}, {"grpc-addr", "edge"}, {"admin-addr", "admin"}, {"ops-addr", everyRole}, {"edge-url", "admin"},
		{"console-url", "admin"}, {"tls-cert", "edge"}, {"tls-key", "edge"}, {"trusted-proxies", "edge, admin"}, {"proxy-protocol", "edge"}, {"max-connections", "edge"},
		{"drain-delay", everyRole},
	}},
	{"Limits", "What is over a limit of the edge is answered 503 with Retry-After, or 413 where it can never pass; a key over its own limit gets 429.", []settingUse{
		{"max-request-bytes", "edge"}, {"max-decoded-bytes", "edge"}, {"max-body-bytes", "edge"}, {"max-inflight-bytes", "edge"}, {"max-inflight-bytes-per-key", "edge"},
		{"default-requests-per-second", "edge"}, {"default-bytes-per-second", "edge"},
	}},
	{"Spool", "The disk of an edge while Kafka is away.", []settingUse{
		{"spool-dir", "edge"}, {"spool-max-bytes", "edge"}, {"spool-min-free-bytes", "edge"}, {"spool-max-age", "edge"}, {"spool-replay-bytes-per-second", "edge"},
	}},
	{"Keys and sign-in", "", []settingUse{
		{"auth-max-stale", "edge"}, {"auth-cache-keys", "edge"}, {"auth-misses-per-second", "edge"}, {"oidc-issuer", "admin"}, {"oidc-client-id", "admin"}, {"oidc-client-secret", "admin"}, {"oidc-groups-claim", "admin"},
		{"oidc-grant", "admin"}, {"oidc-cookie-secret", "admin"},
	}},
	{"Signals and alerts", "", []settingUse{
		{"signal-types-file", everyRole}, {"severity-caps", everyRole}, {"alerts-group", "alerts"}, {"alerts-retention", "alerts"}, {"audit-retention", "admin"},
	}},
	{"Logs", "To standard error, by `log/slog`.", []settingUse{{"log-level", everyRole}, {"log-format", everyRole}}},
	{"Tracing of Sluice itself", "Off without `trace-endpoint`. [tracing.md](tracing.md) says what a trace holds.", []settingUse{{"trace-endpoint", "edge, admin"}, {"trace-sample", "edge, admin"}}},
	{"sluice dev", "", []settingUse{{"data-dir", "dev, CLI"}, {"kafka-addr", "dev"}}},
}

const referenceHead = `# Configuration

Generated from the code: ` + "`go test ./cmd/sluice -run TestReference -update`" + `. Each setting is a flag, an environment variable and a key of a YAML file, with one precedence:
**flag, environment, file, default**.

` + "```yaml" + `
# sluice serve --config sluice.yaml, or SLUICE_CONFIG=sluice.yaml
kafka-brokers: [kafka-0:9092, kafka-1:9092]
postgres-url-file: /run/secrets/postgres-url
redis-url-file: /run/secrets/redis-url
roles: [edge]
spool-dir: /var/lib/sluice/spool
severity-caps: {staging: INFO}
` + "```" + `

- The file's keys are the flags' names. One file may serve all commands: ` + "`serve`, `migrate` and `dev`" + ` each take their own settings of it. An unknown key is an error, with its line and
  the nearest known name.
- An environment variable that is a slip away from a setting's (` + "`SLUICE_POSTGRES_ULR`" + `) is an error. What is further off is warned of at the start, and what Kubernetes sets for a
  Service that is called sluice (` + "`SLUICE_SERVICE_HOST`, `SLUICE_PORT_…`" + `) is passed over. An empty variable is none.
- A **secret** may stand in a file of its own: ` + "`--postgres-url-file`, `SLUICE_POSTGRES_URL_FILE`" + `, the key ` + "`postgres-url-file`" + `. The higher layer wins; both forms in one layer are an error.
- Durations are as Go writes them (` + "`90s`, `15m`, `400h`" + `), sizes are bytes. Lists are comma-separated in flags and the environment.
- ` + "`sluice config check`" + ` takes what ` + "`serve`" + ` takes, starts nothing, prints what is in effect and where it comes from, never a secret, and ends with status 2 where ` + "`serve`" + ` would refuse to start.
  ` + "`sluice doctor`" + ` goes further and asks the servers.
`

// configReference is deploy/docs/configuration.md.
func configReference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(referenceHead)
	for _, g := range settingGroups {
		fmt.Fprintf(&b, "\n## %s\n\n", g.title)
		if g.intro != "" {
			b.WriteString(g.intro + "\n\n")
		}
		b.WriteString("| flag and key | environment | type | default | used by | meaning |\n|---|---|---|---|---|---|\n")
		for _, s := range g.settings {
			f := settingFlag(root, s.name)
			if f == nil {
				continue
			}
			name := "`--" + s.name + "`"
			if slices.Contains(secretFlags, s.name) {
				name += ", `--" + s.name + "-file`"
			}
			fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %s | %s |\n", name, envName(s.name), typeName(f), defaultText(root, f), s.by, cell(f.Usage))
		}
	}
	return b.String()
}

// settingFlag is the flag of a setting, as serve has it where it does.
func settingFlag(root *cobra.Command, name string) *pflag.Flag {
	for _, command := range serving {
		c, _, err := root.Find([]string{command})
		if err != nil {
			continue
		}
		if f := c.Flags().Lookup(name); f != nil {
			return f
		}
	}
	return nil
}

func typeName(f *pflag.Flag) string {
	switch t := f.Value.Type(); t {
	case "stringSlice":
		return "list"
	case "stringToString":
		return "list of name=value"
	case "int", "int64":
		if strings.Contains(f.Name, "bytes") {
			return "bytes"
		}
		return "number"
	case "float64":
		return "number"
	case "bool":
		return "true or false"
	case "string":
		return "text"
	default:
		return t
	}
}

// defaultText is the default of serve, and of dev where it differs.
func defaultText(root *cobra.Command, f *pflag.Flag) string {
	show := func(s string) string {
		s = strings.Trim(s, "[]")
		if s == "" {
			return "none"
		}
		return "`" + s + "`"
	}
	text := show(f.DefValue)
	if dev, _, err := root.Find([]string{"dev"}); err == nil {
		if d := dev.Flags().Lookup(f.Name); d != nil && d.DefValue != f.DefValue {
			text += "; dev: " + show(d.DefValue)
		}
	}
	return text
}

// cell escapes what ends a cell of a table.
func cell(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
