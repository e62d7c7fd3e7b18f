package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest"
	"flowstate.inc/sluice/signals"
)

// checkServe is check, and what serve needs beside it: the addresses of its servers, and that what other settings name can be read. It
// connects to nothing and changes nothing.
func (c *config) checkServe() error {
	var errs []error
	wrong := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	for _, need := range []struct{ flag, value string }{
		{"postgres-url", c.postgresURL}, {"redis-url", c.redisURL}, {"kafka-brokers", strings.Join(c.kafkaBrokers, ",")},
	} {
		if need.value == "" {
			wrong(fmt.Errorf("--%s (or %s) is needed", need.flag, envName(need.flag)))
		}
	}
	if len(c.roles) == 0 {
		wrong(fmt.Errorf("--roles: name at least one of %s", strings.Join(allRoles, ", ")))
	}
	wrong(c.check())
	_, _, err := newLogger(io.Discard, c.logLevel, c.logFormat)
	wrong(err)
	if c.redisURL != "" {
		shared, err := auth.OpenRedis(c.redisURL)
		if err == nil {
			shared.Close()
		} else {
			wrong(fmt.Errorf("--redis-url: %w", err))
		}
	}
	if c.postgresURL != "" {
		writer, reader, err := openPostgres(c.postgresURL)
		if err == nil {
			writer.Close()
			reader.Close()
		}
		wrong(err)
	}
	_, err = c.kafkaTransport()
	wrong(err)
	if c.tlsCert != "" && c.tlsKey != "" {
		if _, err := ingest.LoadCertificate(ingest.CertificateConfig{CertFile: c.tlsCert, KeyFile: c.tlsKey, Registerer: prometheus.NewRegistry(), Logger: discardLogger()}); err != nil {
			wrong(fmt.Errorf("--tls-cert, --tls-key: %w", err))
		}
	}
	taxonomy, err := c.taxonomy()
	wrong(err)
	if err == nil {
		if _, err := signals.NewTaxonomy(taxonomy); err != nil {
			wrong(fmt.Errorf("--signal-types-file: %w", err))
		}
	}
	_, err = c.caps()
	wrong(err)
	if slices.Contains(c.roles, roleAdmin) {
		wrong(c.checkOIDC())
	}
	if err := errors.Join(errs...); err != nil {
		return &usageError{err}
	}
	return nil
}

// checkOIDC looks at the sign-in without asking its issuer.
func (c *config) checkOIDC() error {
	console := c.consoleURL
	if addr, err := net.ResolveTCPAddr("tcp", c.adminAddr); console == "" && err == nil {
		console = publicURL("", addr)
	}
	o, err := c.oidcConfig(console)
	if err != nil || o == nil {
		return err
	}
	if _, err := auth.NewOIDC(*o); err != nil {
		return fmt.Errorf("--oidc-*: %w", err)
	}
	return nil
}

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check the configuration of sluice serve", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newConfigCheck())
	return cmd
}

// A settingView is one setting as config check shows it.
type settingView struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	From   string `json:"from"`
	Secret bool   `json:"secret,omitempty"`
}

func newConfigCheck() *cobra.Command {
	var cfg config
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration without starting, and print what is in effect and where it comes from",
		Long: "Check the configuration without starting anything: give it the flags, the environment and the file that sluice serve is to have. It prints the settings in\n" +
			"effect, each with where it comes from (flag, environment, file with its line, or default) and never a secret. Exit status 2 where serve would refuse to start.\n" +
			"It connects to nothing: sluice doctor does.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return checkConfig(cmd, &cfg, asJSON)
		},
	}
	cfg.serveFlags(cmd.Flags())
	cfg.topicFlags(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	layered(cmd)
	return cmd
}

func checkConfig(cmd *cobra.Command, cfg *config, asJSON bool) error {
	err := cfg.checkServe()
	problems := []string{}
	if err != nil {
		problems = strings.Split(err.Error(), "\n")
	}
	warnings := configWarnings(cmd)
	settings := effective(cmd)
	out := cmd.OutOrStdout()
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"ok": err == nil, "problems": problems, "warnings": warnings, "settings": settings}); err != nil {
			return err
		}
		return err
	}
	t := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, "SETTING\tVALUE\tFROM")
	for _, s := range settings {
		fmt.Fprintf(t, "%s\t%s\t%s\n", s.Name, s.Value, s.From)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, w := range warnings {
		fmt.Fprintf(out, "warning: %s\n", w)
	}
	if err == nil {
		fmt.Fprintln(out, "The configuration is good for sluice serve.")
	}
	return err
}

// configWarnings are what is odd and keeps nothing from starting.
func configWarnings(cmd *cobra.Command) []string {
	warnings := []string{}
	for _, name := range strangers(cmd.Root()) {
		warnings = append(warnings, name+": nothing reads this environment variable")
	}
	path := cmd.Flags().Lookup(configFlag).Value.String()
	for _, name := range secretFlags {
		f := cmd.Flags().Lookup(name)
		if f == nil {
			continue
		}
		if strings.HasPrefix(originOf(f), "flag --"+name) && !strings.HasSuffix(originOf(f), "-file") {
			warnings = append(warnings, "--"+name+": a secret on the command line can be read by every user of this machine; use --"+name+"-file or "+envName(name))
		}
		if strings.HasPrefix(originOf(f), "file ") && path != "" && readableByOthers(path) {
			warnings = append(warnings, path+" holds --"+name+" and can be read by every user of this machine: chmod 640")
		}
	}
	if f := cmd.Flags().Lookup("spool-max-bytes"); f != nil && cmd.Flags().Lookup("spool-dir").Value.String() != "" {
		if n, err := strconv.ParseInt(f.Value.String(), 10, 64); err == nil && n > 0 && n < smallSpool {
			warnings = append(warnings, fmt.Sprintf("--spool-max-bytes: %s may be full within seconds of an outage of Kafka; the number is of bytes", byteSize(n)))
		}
	}
	return warnings
}

// smallSpool is less than a spool that somebody means: one request may bring 64 MiB.
const smallSpool = 64 << 20

// effective lists the settings in effect, by name.
func effective(cmd *cobra.Command) []settingView {
	var out []settingView
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Name == "json" || strings.HasSuffix(f.Name, "-file") && slices.Contains(secretFlags, strings.TrimSuffix(f.Name, "-file")) {
			return
		}
		v := settingView{Name: f.Name, Value: f.Value.String(), From: originOf(f), Secret: slices.Contains(secretFlags, f.Name)}
		switch {
		case v.Value == "" || v.Value == "[]":
			v.Value = "-"
		case v.Secret:
			v.Value = withoutSecret(v.Value)
		}
		out = append(out, v)
	})
	return out
}

// withoutSecret is what may be shown of a secret: of a URL where it leads, of anything else that it is set.
func withoutSecret(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || auth.MisplacedAt(s) {
		return "(set)"
	}
	// A slash in a password moves a part of it into the path.
	if strings.ContainsAny(u.Path, "@:") || strings.Contains(u.Host, "@") {
		return "(set)"
	}
	shown := u.Scheme + "://"
	if u.User != nil {
		shown += "(user and password)@"
	}
	shown += u.Host + u.Path
	if u.RawQuery != "" {
		shown += "?…"
	}
	return shown
}
