package ingest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// CertificateConfig says where a Certificate comes from.
type CertificateConfig struct {
	CertFile, KeyFile string        // PEM; the certificate file has the intermediates as well
	Interval          time.Duration // how often the files are looked at; default 10 s
	Registerer        prometheus.Registerer
	Logger            *slog.Logger
}

// A Certificate is a key pair for TLS that follows its files: when they change, new handshakes use what they hold now, and connections that are
// open stay. A pair that cannot be read or does not fit together is logged and counted, and the one before stays in use, since a certificate is
// often written in two steps.
//
// The files are read again and compared, not watched: a watch misses what happens to a mounted Secret, which is swapped by a symbolic link.
type Certificate struct {
	cfg     CertificateConfig
	current atomic.Pointer[tls.Certificate]
	cert    []byte // what current was made of
	key     []byte
	failed  string // the last failure, said once

	expiry         prometheus.Gauge
	failing        prometheus.Gauge
	loaded, spoilt prometheus.Counter
}

// LoadCertificate reads the pair. It fails where the files cannot be used; later, only Run does that.
func LoadCertificate(cfg CertificateConfig) (*Certificate, error) {
	if cfg.Interval == 0 {
		cfg.Interval = 10 * time.Second
	}
	reloads := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_tls_certificate_reloads_total",
		Help: "Changes of the certificate's files, by whether they could be used.",
	}, []string{"result"})
	c := &Certificate{
		cfg: cfg,
		expiry: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_tls_certificate_expiry_timestamp_seconds",
			Help: "When the certificate in use ceases to be valid, as Unix time.",
		}),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_tls_certificate_reload_failing",
			Help: "1 while what the certificate's files hold cannot be used, and the certificate before them is.",
		}),
		// Both exist from the start: an increase from nothing is not seen.
		loaded: reloads.WithLabelValues("ok"),
		spoilt: reloads.WithLabelValues("failed"),
	}
	cfg.Registerer.MustRegister(c.expiry, c.failing, reloads)
	if _, err := c.load(); err != nil {
		return nil, err
	}
	return c, nil
}

// load reads the files and reports whether they hold something new.
func (c *Certificate) load() (bool, error) {
	cert, err := os.ReadFile(c.cfg.CertFile)
	if err != nil {
		return false, fmt.Errorf("read the TLS certificate: %w", err)
	}
	key, err := os.ReadFile(c.cfg.KeyFile)
	if err != nil {
		return false, fmt.Errorf("read the TLS key: %w", err)
	}
	if bytes.Equal(cert, c.cert) && bytes.Equal(key, c.key) {
		return false, nil
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return false, fmt.Errorf("TLS certificate %s with key %s: %w", c.cfg.CertFile, c.cfg.KeyFile, err)
	}
	c.cert, c.key = cert, key
	c.current.Store(&pair)
	c.expiry.Set(float64(pair.Leaf.NotAfter.Unix()))
	return true, nil
}

// Run follows the files until ctx ends, then returns nil.
func (c *Certificate) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			c.reload()
		}
	}
}

func (c *Certificate) reload() {
	changed, err := c.load()
	if err != nil {
		c.failing.Set(1)
	} else {
		c.failing.Set(0)
	}
	switch {
	case err != nil && err.Error() != c.failed:
		c.failed = err.Error()
		c.spoilt.Inc()
		c.cfg.Logger.Error("the changed TLS certificate cannot be used; the one before stays in use", "error", err)
	case err == nil && changed:
		c.failed = ""
		c.loaded.Inc()
		c.cfg.Logger.Info("the TLS certificate was changed", "expires", c.current.Load().Leaf.NotAfter)
	case err == nil:
		c.failed = ""
	}
}

// Config is for a server that speaks the given protocols (ALPN), by TLS 1.2 at least.
func (c *Certificate) Config(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     protocols,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current.Load(), nil },
	}
}
