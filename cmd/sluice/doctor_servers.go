package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/redis/go-redis/v9"
	"github.com/segmentio/kafka-go"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/deploy"
	"flowstate.inc/sluice/ingest"
)

// leastPostgres is the oldest major version that is still maintained by its makers and that the tests run on.
const leastPostgres = 14

// connsOfProcess is how many connections one process opens at most: two pools of 16, and one that listens.
const connsOfProcess = 33

// secretsOut finds what may be a password in a driver's error.
var secretsOut = regexp.MustCompile(`(password=)\S+|(://)[^@\s]*@`)

// plain is an error on one line, without what may be a password.
func plain(err error) string {
	return strings.Join(strings.Fields(secretsOut.ReplaceAllString(err.Error(), "$1$2…@")), " ")
}

func (d *doctor) postgres(ctx context.Context) {
	writer, reader, err := openPostgres(d.cfg.postgresURL)
	if err != nil {
		d.fails("postgres", plain(err), "mend --postgres-url")
		return
	}
	defer reader.Close()
	defer writer.Close()
	var version, maxConns, number int
	var standby bool
	var readOnly string
	err = writer.QueryRowContext(ctx, `SELECT pg_is_in_recovery(), current_setting('server_version_num')::int,
		current_setting('max_connections')::int, (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::int, current_setting('default_transaction_read_only')`).
		Scan(&standby, &version, &maxConns, &number, &readOnly)
	if err != nil {
		d.fails("postgres", plain(err), "see that PostgreSQL runs, that its address, user and password are right, and that pg_hba.conf and the network let this machine in")
		return
	}
	if major := version / 10000; major < leastPostgres {
		d.warn("postgres version", fmt.Sprintf("%d.%d", major, version%10000), fmt.Sprintf("upgrade to %d or later", leastPostgres))
	} else {
		d.ok("postgres version", "%d.%d", major, version%10000)
	}
	switch {
	case standby:
		d.fails("postgres primary", "this is a standby", "name the primary in --postgres-url: a replica answers with keys that are revoked already, and nothing can be written to it")
	case readOnly == "on":
		d.fails("postgres primary", "default_transaction_read_only is on", "give the user a session that may write")
	default:
		d.ok("postgres primary", "it takes writes")
	}
	switch free := maxConns - number; {
	case maxConns < 2*connsOfProcess:
		d.warn("postgres connections", fmt.Sprintf("max_connections is %d, %d are in use", maxConns, number), fmt.Sprintf("each process opens up to %d: raise it, or put fewer processes on it", connsOfProcess))
	case free < connsOfProcess:
		d.warn("postgres connections", fmt.Sprintf("%d of %d are in use", number, maxConns), fmt.Sprintf("each process opens up to %d: raise max_connections", connsOfProcess))
	default:
		d.ok("postgres connections", "%d of %d are in use; a process opens up to %d", number, maxConns, connsOfProcess)
	}
	// Asked on a connection that is open by now, so that the time of connecting does not blur it.
	var now float64
	before := time.Now()
	if err := writer.QueryRowContext(ctx, `SELECT EXTRACT(EPOCH FROM clock_timestamp())::float8`).Scan(&now); err != nil {
		d.warn("postgres clock", plain(err), "run doctor again")
	} else {
		d.clock("postgres clock", before, time.Now(), time.UnixMicro(int64(now*1e6)))
	}
	pending, err := deploy.Pending(ctx, reader, deploy.Postgres)
	switch {
	case err != nil:
		d.fails("postgres schema", plain(err), "run sluice migrate, and see that this user may read the tables")
	case pending > 0:
		d.fails("postgres schema", fmt.Sprintf("it lacks %d migrations of this binary", pending), "run sluice migrate")
	default:
		d.ok("postgres schema", "it has all migrations of this binary")
	}
}

func (d *doctor) redis(ctx context.Context) {
	client, err := auth.OpenRedis(d.cfg.redisURL)
	if err != nil {
		d.fails("redis", plain(err), "mend --redis-url")
		return
	}
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		d.fails("redis", plain(err), "see that Redis runs, and that its address, user and password are right (rediss:// for TLS)")
		return
	}
	info, err := client.Info(ctx, "server").Result()
	if err != nil {
		d.warn("redis version", "INFO is refused: "+plain(err), "let the user call INFO, or look for yourself: 6.2 or later")
	} else {
		d.ok("redis version", "%s", infoField(info, "redis_version"))
	}
	d.redisRights(ctx, client)
	before := time.Now()
	if now, err := client.Time(ctx).Result(); err == nil {
		d.clock("redis clock", before, time.Now(), now)
	} else {
		d.warn("redis clock", "TIME is refused: "+plain(err), "let the user call TIME, or compare the clocks for yourself")
	}
	policy, err := client.ConfigGet(ctx, "maxmemory-policy").Result()
	memory, _ := client.Info(ctx, "memory").Result() // "" reads as no limit below
	switch p := policy["maxmemory-policy"]; {
	case err != nil:
		d.warn("redis memory", "CONFIG GET is refused: "+plain(err), "see for yourself that maxmemory-policy evicts (allkeys-lru)")
	case infoField(memory, "maxmemory") == "0":
		d.ok("redis memory", "no maxmemory is set; policy %s", p)
	case p == "noeviction":
		d.warn("redis memory", "maxmemory-policy is noeviction", "set allkeys-lru or volatile-lru: when it is full, revocations cannot be written to it")
	default:
		d.ok("redis memory", "maxmemory-policy is %s", p)
	}
}

// redisRights does what an edge does, on a key of its own, since ACL rules are too rich to be judged by reading them.
func (d *doctor) redisRights(ctx context.Context, client redis.UniversalClient) {
	const key = "sluice:doctor:{probe}"
	script := redis.NewScript(`redis.call('HSET', KEYS[1], 'a', '1') redis.call('PEXPIRE', KEYS[1], 1000) return redis.call('PTTL', KEYS[1])`)
	var refused []string
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"HSET", func() error { return client.HSet(ctx, key, "a", "1").Err() }},
		{"HMGET", func() error { return client.HMGet(ctx, key, "a").Err() }},
		{"PEXPIRE", func() error { return client.PExpire(ctx, key, time.Second).Err() }},
		{"PTTL", func() error { return client.PTTL(ctx, key).Err() }},
		{"SET", func() error { return client.Set(ctx, key+":policies", "1", time.Second).Err() }},
		{"GET", func() error { return client.Get(ctx, key+":policies").Err() }},
		{"EVAL", func() error { return script.Eval(ctx, client, []string{key}).Err() }},
		{"SCRIPT LOAD", func() error { return script.Load(ctx, client).Err() }},
		{"EVALSHA", func() error { return script.EvalSha(ctx, client, []string{key}).Err() }},
		{"DEL", func() error { return client.Del(ctx, key).Err() }},
	} {
		if err := c.do(); err != nil && !errors.Is(err, redis.Nil) {
			refused = append(refused, c.name+" ("+plain(err)+")")
		}
	}
	_ = client.Del(ctx, key+":policies").Err() // else it expires
	if len(refused) > 0 {
		d.fails("redis rights", "refused: "+strings.Join(refused, ", "), "let the user do these on sluice:*: ACL SETUSER NAME ~sluice:* +hmget +hset +pexpire +pttl +del +get +set +eval +evalsha +script +time +info +ping +hello +client")
		return
	}
	d.ok("redis rights", "everything that an edge does is allowed")
}

func infoField(info, name string) string {
	for _, line := range strings.Split(info, "\n") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), name+":"); ok {
			return v
		}
	}
	return ""
}

func (d *doctor) kafka(ctx context.Context) {
	const whereItIs = "see that the brokers run, that --kafka-brokers names them and that their advertised.listeners can be reached from here; with TLS or SASL, that --kafka-tls, --kafka-sasl, the user and the password are right"
	for _, broker := range d.cfg.kafkaBrokers {
		conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", broker)
		if err != nil {
			d.warn("kafka broker", plain(err), "take it out of --kafka-brokers, or start it: the others are asked")
			continue
		}
		conn.Close()
	}
	tr, err := d.cfg.kafkaTransport()
	if err != nil {
		d.fails("kafka", plain(err), "mend the --kafka-* settings")
		return
	}
	defer tr.CloseIdleConnections()
	client := &kafka.Client{Addr: kafka.TCP(d.cfg.kafkaBrokers...), Transport: tr, Timeout: 5 * time.Second}
	meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: d.cfg.topics.all()})
	if err != nil {
		d.fails("kafka", plain(err), whereItIs)
		return
	}
	d.ok("kafka", "%d brokers", len(meta.Brokers))
	for _, b := range meta.Brokers {
		addr := net.JoinHostPort(b.Host, fmt.Sprint(b.Port))
		conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			d.fails("kafka broker", "it calls itself "+addr+", which cannot be reached from here: "+plain(err), "mend its advertised.listeners, or the network")
			continue
		}
		conn.Close()
	}
	k, err := d.cfg.kafkaConfig()
	if err != nil {
		d.fails("kafka", plain(err), "mend the --kafka-* settings")
		return
	}
	problems, err := ingest.CheckTopics(ctx, k, d.cfg.topicSpecs(), ingest.DefaultMaxMessageBytes)
	if err != nil {
		d.fails("kafka topics", plain(err), whereItIs)
		return
	}
	bad := map[string]bool{}
	for _, p := range problems {
		bad[p.Topic] = true
		seen, do, split := strings.Cut(p.Message, ": ")
		if !split {
			seen, do = p.Message, "ask who runs Kafka"
		}
		if p.Fatal {
			d.fails("kafka topic "+p.Topic, seen, do)
		} else {
			d.warn("kafka topic "+p.Topic, seen, do)
		}
	}
	for _, t := range meta.Topics {
		if t.Error != nil {
			if !bad[t.Name] {
				d.fails("kafka topic "+t.Name, t.Error.Error(), "let the user describe and write the topic, and read it and its group for the alerts")
			}
			continue
		}
		replicas := len(t.Partitions[0].Replicas)
		switch {
		case bad[t.Name]:
		case replicas == 1 && len(meta.Brokers) > 1:
			d.warn("kafka topic "+t.Name, "one replica of each partition", "reassign it to three: an acknowledged message is on one disk only")
		default:
			d.ok("kafka topic "+t.Name, "%d partitions, %d replicas", len(t.Partitions), replicas)
		}
	}
}

func (d *doctor) oidc(ctx context.Context) {
	ctx = oidc.ClientContext(ctx, &http.Client{Timeout: 5 * time.Second})
	p, err := oidc.NewProvider(ctx, d.cfg.oidcIssuer)
	if err != nil {
		d.fails("oidc", plain(err), "see that "+strings.TrimRight(d.cfg.oidcIssuer, "/")+"/.well-known/openid-configuration can be fetched from here, and that --oidc-issuer is exactly the issuer in it")
		return
	}
	d.ok("oidc", "discovered; the browser goes to %s", p.Endpoint().AuthURL)
}
