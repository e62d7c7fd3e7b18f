package ingest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/apiversions"
	"github.com/segmentio/kafka-go/protocol/saslauthenticate"
	"github.com/segmentio/kafka-go/protocol/saslhandshake"
	"github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/segmentio/kafka-go/sasl/scram"
)

// kafkaDialTimeout bounds everything until a connection can be used: TCP, TLS, versions, SASL.
const kafkaDialTimeout = 1500 * time.Millisecond

// kafkaIdle is how long an unused connection is trusted: brokers hang up after 10 minutes, network gear often after 5.
const kafkaIdle = 4 * time.Minute

// KafkaConfig says how to reach and convince a Kafka cluster.
type KafkaConfig struct {
	Brokers  []string    // host:port of some brokers; the others are learnt from them
	TLS      *tls.Config // nil: plaintext. An empty ServerName means the name of the broker dialled
	SASL     *SASLConfig // nil: none
	ClientID string      // as brokers log it and their quotas know it; "sluice" unless said
}

// SASLConfig is a user of Kafka.
type SASLConfig struct {
	Mechanism string // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
	Username  string
	Password  string
}

func (c *KafkaConfig) check() error {
	if len(c.Brokers) == 0 {
		return errors.New("kafka: no brokers given")
	}
	for _, b := range c.Brokers {
		host, port, err := net.SplitHostPort(b)
		if err != nil {
			return fmt.Errorf("kafka: broker %q is not host:port: %w", b, err)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
			return fmt.Errorf("kafka: broker %q is not host:port", b)
		}
	}
	_, err := c.mechanism()
	return err
}

// mechanism gives nil where no SASL is configured.
func (c *KafkaConfig) mechanism() (sasl.Mechanism, error) {
	if c.SASL == nil {
		return nil, nil
	}
	if c.SASL.Username == "" {
		return nil, errors.New("kafka: SASL needs a user name")
	}
	var algo scram.Algorithm
	switch c.SASL.Mechanism {
	case "PLAIN":
		return plain.Mechanism{Username: c.SASL.Username, Password: c.SASL.Password}, nil
	case "SCRAM-SHA-256":
		algo = scram.SHA256
	case "SCRAM-SHA-512":
		algo = scram.SHA512
	default:
		return nil, fmt.Errorf("kafka: SASL mechanism %q is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", c.SASL.Mechanism)
	}
	m, err := scram.Mechanism(algo, c.SASL.Username, c.SASL.Password)
	if err != nil {
		return nil, errors.New("kafka: the SASL user or password holds characters that SCRAM does not allow")
	}
	return m, nil
}

// A kafkaDialer makes connections. It stands in for kafka.Transport on the producing path, for three things a Transport does
// not give: an attempt that has ended when its call returns, so that its bytes are accounted for to the end; metadata asked
// for at the moment a leader moves; and a deadline on SASL, without which one mute broker stops the Transport's metadata.
type kafkaDialer struct {
	clientID  string
	tls       *tls.Config
	mechanism sasl.Mechanism
	net       net.Dialer
}

func newKafkaDialer(cfg KafkaConfig) (*kafkaDialer, error) {
	m, err := cfg.mechanism()
	if err != nil {
		return nil, err
	}
	return &kafkaDialer{clientID: cfg.ClientID, tls: cfg.TLS, mechanism: m}, nil
}

// A kafkaConn is one connection, used by one goroutine at a time.
type kafkaConn struct {
	pc   *protocol.Conn
	used time.Time // when the last exchange ended
}

// dial connects to addr and makes the connection ready for requests, within kafkaDialTimeout.
func (d *kafkaDialer) dial(ctx context.Context, addr string) (*kafkaConn, error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaDialTimeout)
	defer cancel()
	nc, err := d.net.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c, err := d.handshake(ctx, nc, addr)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("broker %s: %w", addr, err)
	}
	return c, nil
}

func (d *kafkaDialer) handshake(ctx context.Context, nc net.Conn, addr string) (*kafkaConn, error) {
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) }) // whatever is under way ends now
	defer stop()
	deadline, _ := ctx.Deadline()
	nc.SetDeadline(deadline)

	if d.tls != nil {
		tc := tls.Client(nc, serverNamed(d.tls, addr))
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		nc = tc
	}
	pc := protocol.NewConn(nc, d.clientID)
	res, err := exchange[*apiversions.Response](pc, new(apiversions.Request))
	if err != nil {
		return nil, fmt.Errorf("asking for API versions: %w", err)
	}
	if res.ErrorCode != 0 {
		return nil, fmt.Errorf("asking for API versions: %w", kafka.Error(res.ErrorCode))
	}
	versions := make(map[protocol.ApiKey]int16, len(res.ApiKeys))
	for _, k := range res.ApiKeys {
		key := protocol.ApiKey(k.ApiKey)
		versions[key] = key.SelectVersion(k.MinVersion, k.MaxVersion)
	}
	pc.SetVersions(versions)
	if d.mechanism != nil {
		if err := d.authenticate(ctx, pc, addr); err != nil {
			return nil, fmt.Errorf("SASL %s: %w", d.mechanism.Name(), err)
		}
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return &kafkaConn{pc: pc, used: time.Now()}, nil
}

func (d *kafkaDialer) authenticate(ctx context.Context, pc *protocol.Conn, addr string) error {
	hello, err := exchange[*saslhandshake.Response](pc, &saslhandshake.Request{Mechanism: d.mechanism.Name()})
	if err != nil {
		return err
	}
	if hello.ErrorCode != 0 {
		return fmt.Errorf("%w (the broker offers %v)", kafka.Error(hello.ErrorCode), hello.Mechanisms)
	}
	host, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	session, token, err := d.mechanism.Start(sasl.WithMetadata(ctx, &sasl.Metadata{Host: host, Port: n}))
	if err != nil {
		return err
	}
	for done := false; !done; {
		res, err := exchange[*saslauthenticate.Response](pc, &saslauthenticate.Request{AuthBytes: token})
		if err != nil {
			return err
		}
		if res.ErrorCode != 0 {
			return kafka.Error(res.ErrorCode) // its message may quote the user; the code says enough
		}
		if done, token, err = session.Next(ctx, res.AuthBytes); err != nil {
			return err
		}
	}
	return nil
}

// exchange sends one request and reads its answer of type T.
func exchange[T protocol.Message](pc *protocol.Conn, req protocol.Message) (T, error) {
	var none T
	msg, err := pc.RoundTrip(req)
	if err != nil {
		return none, err
	}
	res, ok := msg.(T)
	if !ok {
		return none, fmt.Errorf("an answer of type %T to a %T", msg, req)
	}
	return res, nil
}

// ask is exchange with a deadline and notes the time. After an error the connection is of no use.
func ask[T protocol.Message](c *kafkaConn, deadline time.Time, req protocol.Message) (T, error) {
	c.pc.SetDeadline(deadline)
	res, err := exchange[T](c.pc, req)
	c.used = time.Now()
	return res, err
}

// stale says whether the other end may have hung up unnoticed.
func (c *kafkaConn) stale(now time.Time) bool { return now.Sub(c.used) > kafkaIdle }

// close may be called by any goroutine and ends an exchange under way.
func (c *kafkaConn) close() { c.pc.Close() }

// serverNamed gives a TLS configuration that checks the name of the broker dialled.
func serverNamed(cfg *tls.Config, addr string) *tls.Config {
	if cfg.ServerName != "" {
		return cfg
	}
	cfg = cfg.Clone()
	if host, _, err := net.SplitHostPort(addr); err == nil {
		cfg.ServerName = host
	}
	return cfg
}
