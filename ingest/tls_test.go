package ingest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"github.com/prometheus/client_golang/prometheus"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"flowstate.inc/sluice/auth"
)

// pair writes a certificate of its own for 127.0.0.1, valid until then, and returns the pool that trusts it.
func pair(t *testing.T, dir, name string, until time.Time, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(cert)
	// The certificate first: for a moment the two do not fit together, which must do no harm.
	for file, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: der}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Certificates change under load on both listeners: not a request fails, open connections stay, new ones see the new certificate.
func TestCertificatesChangeUnderLoad(t *testing.T) {
	dir, pool := t.TempDir(), x509.NewCertPool()
	soon, later := time.Now().Add(time.Hour).Truncate(time.Second), time.Now().Add(48*time.Hour).Truncate(time.Second)
	pair(t, dir, "first", soon, pool)
	var c *Certificate
	var stop func()
	e := startEdge(t, func(ec *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) {
		var err error
		c, err = LoadCertificate(CertificateConfig{CertFile: filepath.Join(dir, "tls.crt"), KeyFile: filepath.Join(dir, "tls.key"),
			Interval: 10 * time.Millisecond, Registerer: ec.Registerer, Logger: ec.Logger})
		if err != nil {
			t.Fatal(err)
		}
		sc.Certificate = c
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		stop = func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		}
	})
	defer stop()
	key := e.add(service(auth.Production))
	failing := func() float64 { return e.metric("sluice_tls_certificate_reload_failing") }
	expiry := func() float64 { return e.metric("sluice_tls_certificate_expiry_timestamp_seconds") }
	if expiry() != float64(soon.Unix()) {
		t.Errorf("expiry %v", expiry())
	}
	// The pool of the client is filled before it dials again, since pair adds to it before it writes.
	pool2 := pool.Clone()
	secondDir := t.TempDir()
	pair(t, secondDir, "second", later, pool2)

	config := &tls.Config{RootCAs: pool2}
	body := marshal(t, logsRequest(logRecord("a")))
	kept := &http.Client{Transport: &http.Transport{TLSClientConfig: config.Clone()}}
	fresh := &http.Client{Transport: &http.Transport{TLSClientConfig: config.Clone(), DisableKeepAlives: true}}
	post := func(client *http.Client) (string, error) {
		req, err := http.NewRequest("POST", e.url+"/v1/logs", bytes.NewReader(body))
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/x-protobuf")
		req.Header.Set("x-flowstate-key", key)
		res, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return "", err
		}
		if res.StatusCode != 200 {
			return "", fmt.Errorf("%s", res.Status)
		}
		if v := res.TLS.Version; v < tls.VersionTLS12 {
			return "", fmt.Errorf("TLS version %x", v)
		}
		return res.TLS.PeerCertificates[0].Subject.CommonName, nil
	}
	rpc := func() error {
		conn, err := grpc.NewClient(e.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config.Clone())))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = collogs.NewLogsServiceClient(conn).Export(withKey(t, "x-flowstate-key", key), logsRequest(logRecord("a")))
		return err
	}
	if name, err := post(kept); err != nil || name != "first" {
		t.Fatalf("%q %v", name, err)
	}
	var sent, failed atomic.Int64
	load, endLoad := context.WithCancel(t.Context())
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for load.Err() == nil {
			if _, err := post(fresh); err != nil {
				failed.Add(1)
				t.Errorf("under load: %v", err)
			}
			if err := rpc(); err != nil {
				failed.Add(1)
				t.Errorf("gRPC under load: %v", err)
			}
			sent.Add(1)
		}
	}()
	eventually(t, "load", func() bool { return sent.Load() > 3 })

	// Half of a change: the certificate without its key. The old pair stays in use, and it is said once.
	if err := copyFile(filepath.Join(secondDir, "tls.crt"), filepath.Join(dir, "tls.crt")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the half change in the log", func() bool { return strings.Contains(e.log.String(), "the one before stays in use") })
	if name, err := post(fresh); err != nil || name != "first" || failing() != 1 {
		t.Errorf("after half a change: %q %v, failing %v", name, err, failing())
	}
	if err := copyFile(filepath.Join(secondDir, "tls.key"), filepath.Join(dir, "tls.key")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new certificate", func() bool { name, err := post(fresh); return err == nil && name == "second" && failing() == 0 })
	if name, err := post(kept); err != nil || name != "first" {
		t.Errorf("the connection that was open: %q %v", name, err)
	}
	if expiry() != float64(later.Unix()) || e.metric("sluice_tls_certificate_reloads_total", "result", "ok") != 1 || e.metric("sluice_tls_certificate_reloads_total", "result", "failed") != 1 {
		t.Errorf("expiry %v", expiry())
	}
	if err := os.Remove(filepath.Join(dir, "tls.key")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the missing file in the log", func() bool { return strings.Contains(e.log.String(), "no such file") })
	if _, err := post(fresh); err != nil || failing() != 1 {
		t.Errorf("with the file gone: %v, failing %v", err, failing())
	}
	endLoad()
	<-loaded
	if failed.Load() > 0 {
		t.Errorf("%d of %d failed", failed.Load(), sent.Load())
	}

	old := config.Clone()
	old.MaxVersion = tls.VersionTLS11
	for _, addr := range []string{e.addr, e.grpc} {
		if c, err := tls.Dial("tcp", addr, old); err == nil {
			c.Close()
			t.Errorf("%s speaks TLS 1.1", addr)
		}
	}
	e.balanced()
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// Files that cannot be used refuse the start.
func TestCertificateMustLoad(t *testing.T) {
	dir := t.TempDir()
	pair(t, dir, "x", time.Now().Add(time.Hour), x509.NewCertPool())
	crt, key := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for _, files := range [][2]string{{crt, crt}, {key, crt}, {crt, dir + "/none"}, {dir + "/none", key}} {
		if _, err := LoadCertificate(CertificateConfig{CertFile: files[0], KeyFile: files[1], Registerer: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)}); err == nil {
			t.Errorf("%v load", files)
		}
	}
}

// With --proxy-protocol a trusted proxy says who the client is, in both versions, over both protocols; without the header it is not served, and from
// somebody else the header is junk.
func TestProxyProtocol(t *testing.T) {
	start := func(trusted string) *testEdge {
		return startEdge(t, func(_ *EdgeConfig, sc *ServerConfig, _ *ProducerConfig) {
			sc.ProxyProtocol, sc.TrustedProxies = true, []netip.Prefix{netip.MustParsePrefix(trusted)}
		})
	}
	header := func(version byte) *proxyproto.Header {
		return &proxyproto.Header{Version: version, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv4,
			SourceAddr: &net.TCPAddr{IP: net.IPv4(203, 0, 113, version), Port: 1234}, DestinationAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4318}}
	}
	e := start("127.0.0.0/8")
	key := e.add(service(auth.Production))
	unknown, _ := auth.MintKey(auth.KindServiceAccount)
	for _, version := range []byte{1, 2} {
		w := e.wire()
		if _, err := header(version).WriteTo(w); err != nil {
			t.Fatal(err)
		}
		// The forwarded address is from somebody who is not trusted, so it is not believed.
		w.say("GET /v1/whoami HTTP/1.1\r\nHost: e\r\nX-Forwarded-For: 198.51.100.9\r\nx-flowstate-key: %s\r\n\r\n", unknown)
		if a := w.hear(); a.code != 401 || !strings.Contains(e.log.String(), fmt.Sprintf("remote=203.0.113.%d", version)) {
			t.Errorf("version %d: %s\n%s", version, a, e.log)
		}
		conn := e.dial(grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err == nil {
				_, err = header(version).WriteTo(c)
			}
			return c, err
		}))
		if _, err := collogs.NewLogsServiceClient(conn).Export(withKey(t, "x-flowstate-key", key), logsRequest(logRecord("a"))); err != nil {
			t.Errorf("gRPC, version %d: %v", version, err)
		}
	}
	w := e.wire()
	w.say("GET /v1/whoami HTTP/1.1\r\nHost: e\r\nx-flowstate-key: %s\r\n\r\n", key)
	if b, err := io.ReadAll(w.r); err == nil && bytes.Contains(b, []byte(" 200 ")) {
		t.Errorf("without the header: %s", b)
	}

	e = start("192.0.2.0/24")
	key = e.add(service(auth.Production))
	if a := e.send("GET", "/v1/whoami", nil, "x-flowstate-key", key); a.code != 200 {
		t.Errorf("a client that comes directly: %s", a)
	}
	w = e.wire()
	if _, err := header(1).WriteTo(w); err != nil {
		t.Fatal(err)
	}
	w.say("GET /v1/whoami HTTP/1.1\r\nHost: e\r\nx-flowstate-key: %s\r\n\r\n", key)
	if a := w.hear(); a.code != 400 {
		t.Errorf("the header from a stranger: %s", a)
	}
}
