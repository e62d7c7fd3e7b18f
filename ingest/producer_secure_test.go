package ingest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/compress"
	"github.com/twmb/franz-go/pkg/kfake"
)

// testTLS gives a server's configuration for 127.0.0.1 and a client's that trusts it.
func testTLS(t *testing.T) (*tls.Config, *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool}
}

func TestProduceSecurely(t *testing.T) {
	server, client := testTLS(t)
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			c := newFake(t, kfake.TLS(server), kfake.EnableSASL(), kfake.Superuser(mechanism, "app", "app-secret"))
			cfg := brokersOf(c)
			cfg.Timeout = 500 * time.Millisecond
			cfg.TLS, cfg.SASL = client, &SASLConfig{Mechanism: mechanism, Username: "app", Password: "app-secret"}
			if _, err := EnsureTopics(context.Background(), cfg.KafkaConfig, []TopicSpec{{Name: testTopic}}); err != nil {
				t.Error(err)
			}
			if err := produceOne(startProducer(t, cfg), "k", "v"); err != nil {
				t.Error(err)
			}
			wrong := cfg
			wrong.SASL = &SASLConfig{Mechanism: mechanism, Username: "app", Password: "not-the-secret"}
			p := startProducer(t, wrong)
			err := produceOne(p, "k", "v")
			if err == nil || p.Healthy() == nil || strings.Contains(err.Error()+p.Healthy().Error(), "not-the-secret") {
				t.Errorf("with a wrong password: %v, healthy %v", err, p.Healthy())
			}
			untrusting := cfg
			untrusting.TLS = &tls.Config{}
			if err := produceOne(startProducer(t, untrusting), "k", "v"); err == nil || !strings.Contains(err.Error(), "certificate") {
				t.Errorf("with an unknown authority: %v", err)
			}
		})
	}
}

// On a real Kafka a wrong password is told apart from a network that fails.
func TestProduceSecurelyReal(t *testing.T) {
	s, _ := startKafka(t, 1, "KAFKA_SECURE=1")
	if s == nil {
		return
	}
	pem, err := os.ReadFile(s.get("KAFKA_CA"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		cfg := ProducerConfig{KafkaConfig: KafkaConfig{Brokers: strings.Split(s.get("KAFKA_SSL"), ","), TLS: &tls.Config{RootCAs: pool},
			SASL: &SASLConfig{Mechanism: mechanism, Username: s.get("KAFKA_USER"), Password: s.get("KAFKA_PASSWORD")}}, Topics: []string{testTopic}}
		if _, err := EnsureTopics(context.Background(), cfg.KafkaConfig, []TopicSpec{{Name: testTopic}}); err != nil {
			t.Error(err)
		}
		if err := produceOne(startProducer(t, cfg), "k", "v"); err != nil {
			t.Error(err)
		}
		cfg.SASL = &SASLConfig{Mechanism: mechanism, Username: "app", Password: "wrong"}
		wantUnavailable(t, produceOne(startProducer(t, cfg), "k", "v"), KindAuthorization)
	}
}

func TestProduceCompressed(t *testing.T) {
	onEach(t, func(t *testing.T, cfg ProducerConfig, topic string) {
		for i, codec := range []compress.Compression{compress.None, compress.Gzip, compress.Snappy, compress.Lz4, compress.Zstd} {
			for j, idempotent := range []bool{false, true} {
				cfg.Compression, cfg.Idempotent = codec, idempotent
				value := strings.Repeat(codec.String(), 1000)
				p := startProducer(t, cfg)
				if err := p.Produce(context.Background(), []Message{message(topic, "k", value), message(topic, "k", "second")}); err != nil {
					t.Fatalf("%v: %v", codec, err)
				}
				records := read(t, cfg.Brokers, topic, 2*(2*i+j+1))
				if seen := valuesOf(records); seen[value] != j+1 {
					t.Errorf("%v idempotent=%v: the value is there %d times", codec, idempotent, seen[value])
				}
				if got := records[len(records)-1].Attrs.CompressionType(); got != uint8(codec) {
					t.Errorf("%v: compressed as %d", codec, got)
				}
			}
		}
	})
}
