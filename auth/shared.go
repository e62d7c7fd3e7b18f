package auth

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// OpenRedis opens Redis by URL without connecting: redis://, rediss:// and unix://, with ?addr=host:port repeated for a
// cluster, or ?master_name= (and addr) for Sentinel; user, password and the options of go-redis in the URL. What the URL
// leaves out is set for a cache that may be away: it honours contexts, dials within 200 ms and never retries.
func OpenRedis(rawURL string) (redis.UniversalClient, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, errors.New("redis URL: not a URL") // the error of net/url would show the password
	}
	if !slices.Contains([]string{"redis", "rediss", "unix"}, u.Scheme) || u.Opaque != "" {
		return nil, errors.New("redis URL: it must begin with redis:// or, for TLS, rediss://, as in redis://redis:6379/0")
	}
	if err := CheckURL(rawURL, u); err != nil {
		return nil, fmt.Errorf("redis URL: %w", err)
	}
	q := u.Query()
	switch {
	case q.Has("master_name"):
		o, err := redis.ParseFailoverURL(rawURL)
		if err != nil {
			return nil, fmt.Errorf("redis URL: %w", err)
		}
		o.ContextTimeoutEnabled, o.MaxRetries = true, -1
		orDurations(&o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout)
		return redis.NewFailoverClient(o), nil
	case q.Has("addr"):
		o, err := redis.ParseClusterURL(rawURL)
		if err != nil {
			return nil, fmt.Errorf("redis URL: %w", err)
		}
		o.ContextTimeoutEnabled, o.MaxRetries = true, -1
		orDurations(&o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout)
		return redis.NewClusterClient(o), nil
	}
	o, err := redis.ParseURL(rawURL)
	if err != nil {
		return nil, fmt.Errorf("redis URL: %w", err)
	}
	o.ContextTimeoutEnabled, o.MaxRetries = true, -1
	orDurations(&o.DialTimeout, &o.ReadTimeout, &o.WriteTimeout)
	return redis.NewClient(o), nil
}

// ErrPercentEncode is what is to be done where a password does not survive in its URL.
var ErrPercentEncode = errors.New("percent-encode what is special in the user or the password: % is %25, # is %23, / is %2F, ? is %3F, @ is %40")

// CheckURL says what is wrong with the URL of a server, parsed as u, without any of it that may be of the password.
func CheckURL(rawURL string, u *url.URL) error {
	if MisplacedAt(rawURL) {
		return ErrPercentEncode
	}
	if port := u.Port(); port != "" && !IsPort(port) {
		return errors.New("its port is none from 1 to 65535")
	}
	return nil
}

// IsPort says whether text is the number of a port that can be dialled.
func IsPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0
}

// MisplacedAt says whether a URL has an @ where it can hardly be meant, because the user or the password before it holds a / ? # or @ that is not
// percent-encoded. Parsers cut such a URL in different places, so that a part of the password passes for a host, a port or a path, which errors name.
func MisplacedAt(rawURL string) bool {
	_, rest, _ := strings.Cut(rawURL, "://")
	authority, after := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, after = rest[:i], rest[i:]
	}
	return strings.Count(authority, "@") > 1 || strings.Contains(after, "@")
}

const (
	redisDial = 200 * time.Millisecond
	redisIO   = time.Second // an upper bound; the chain's contexts are shorter
)

// orDurations fills what the URL left out.
func orDurations(dial, read, write *time.Duration) {
	*dial = cmp.Or(*dial, redisDial)
	*read = cmp.Or(*read, redisIO)
	*write = cmp.Or(*write, redisIO)
}

// keepHigher writes a record, or only a version, unless the cache holds a later one. A record is a hash of v (version)
// and c (checked_at), both as 20 digits so that Lua compares them exactly, and d, the record, empty where only the
// version is known. It returns 1 when it wrote.
//
// KEYS[1]; ARGV: v, c, d, TTL in ms. The TTL is kept as l: with what is left of it, it tells how long ago this was
// written, whatever the clocks of the machines say.
const keepHigher = `
local h = redis.call('HMGET', KEYS[1], 'v', 'c', 'd')
if h[1] then
  if h[1] > ARGV[1] then return 0 end
  if h[1] == ARGV[1] then
    if ARGV[3] == '' then return 0 end
    if h[3] ~= '' and h[2] >= ARGV[2] then return 0 end
  end
end
redis.call('HSET', KEYS[1], 'v', ARGV[1], 'c', ARGV[2], 'd', ARGV[3], 'l', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1`

// sharedCache is the tier that a fleet shares. Besides records it holds the feed's progress: the database's clock up to
// which every change has been written to this Redis. It lets an edge that cannot reach the database, or starts while
// nobody can, know until when a record was certainly right.
type sharedCache struct {
	client  redis.UniversalClient
	script  *redis.Script
	prefix  string // of the records' keys
	feedKey string
	ttl     int64 // ms
	pending pendingChanges
}

// sharedRecord is the form of d. The hash is no secret: nobody finds 256 random bits by their SHA-256.
type sharedRecord struct {
	Hash      []byte    `json:"hash"`
	RevokedAt int64     `json:"revoked_at,omitempty"` // unix ms
	Principal Principal `json:"principal"`
}

func newSharedCache(cfg ChainConfig) *sharedCache {
	return &sharedCache{
		client:  cfg.Redis,
		script:  redis.NewScript(keepHigher),
		prefix:  cfg.KeyPrefix + "key:",
		feedKey: cfg.KeyPrefix + "feed",
		ttl:     int64((cfg.Bounds.MaxAge + cfg.MaxStale) / time.Millisecond),
		pending: pendingChanges{m: map[PublicID]need{}, wake: make(chan struct{}, 1)},
	}
}

func (s *sharedCache) key(id PublicID) string { return s.prefix + id.String() }

// get returns the record, or only the version where that is all there is; a version of 0 means nothing.
func (s *sharedCache) get(ctx context.Context, id PublicID) (Record, int64, int64, error) {
	vals, err := s.client.HMGet(ctx, s.key(id), "v", "c", "d").Result()
	if err != nil {
		return Record{}, 0, 0, err
	}
	v, _ := vals[0].(string)
	c, _ := vals[1].(string)
	d, _ := vals[2].(string)
	if v == "" {
		return Record{}, 0, 0, nil
	}
	version, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return Record{}, 0, 0, fmt.Errorf("version of a cached record: %w", err)
	}
	if d == "" {
		return Record{}, version, 0, nil
	}
	checked, err := strconv.ParseInt(c, 10, 64)
	if err != nil {
		return Record{}, 0, 0, fmt.Errorf("age of a cached record: %w", err)
	}
	var sr sharedRecord
	err = json.Unmarshal([]byte(d), &sr)
	if err != nil {
		return Record{}, 0, 0, fmt.Errorf("cached record: %w", err)
	}
	rec := Record{Prefix: id.String(), Version: version, Principal: sr.Principal}
	if len(sr.Hash) != len(rec.Hash) {
		return Record{}, 0, 0, errors.New("cached record: no hash")
	}
	copy(rec.Hash[:], sr.Hash)
	if sr.RevokedAt != 0 {
		rec.RevokedAt = time.UnixMilli(sr.RevokedAt)
	}
	return rec, version, checked, nil
}

func encodeRecord(rec Record) (string, error) {
	sr := sharedRecord{Hash: rec.Hash[:], Principal: rec.Principal}
	if !rec.RevokedAt.IsZero() {
		sr.RevokedAt = rec.RevokedAt.UnixMilli()
	}
	d, err := json.Marshal(sr)
	return string(d), err
}

// digits writes a number that is not negative so that text order is its order.
func digits(n int64) string {
	s := strconv.FormatInt(max(n, 0), 10)
	return strings.Repeat("0", 20-len(s)) + s
}

// put writes a record with the database's time of its check, in unix ns.
func (s *sharedCache) put(ctx context.Context, rec Record, checked int64) error {
	d, err := encodeRecord(rec)
	if err != nil {
		return err
	}
	return s.script.Run(ctx, s.client, []string{s.prefix + rec.Prefix}, digits(rec.Version), digits(checked), d, s.ttl).Err()
}

// better looks into Redis and returns the better of what it holds and known: the higher version, then the later check.
// It returns nil when Redis knows of a version newer than any record at hand.
func (c *Chain) better(ctx context.Context, id PublicID, known *entry) *entry {
	if c.shared == nil || !c.redisUp.allow(c.clock()) {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Bounds.Redis)
	defer cancel()
	begun := c.clock()
	if c.feed.Load() == nil && c.shared.pending.dbClock.Load() == 0 {
		_ = c.readMark(ctx) // how old is what follows? Failing leaves the machine's own clock
	}
	upTo := c.shared.pending.upTo.Load() // before the record: a later mark may stand for changes that the record was read without
	rec, version, checked, err := c.shared.get(ctx, id)
	c.metrics.redisSeconds.Observe(float64(c.clock()-begun) / 1e9)
	c.redisResult(err)
	switch {
	case err != nil:
		c.metrics.redisError.Inc()
		return known
	case version == 0 || version < c.recent.version(id) && rec.RevokedAt.IsZero():
		c.metrics.redisMiss.Inc()
		return known
	case known != nil && known.rec.Version > version:
		c.metrics.redisMiss.Inc()
		return known
	case rec.Prefix == "": // only the version
		c.metrics.redisMiss.Inc()
		if known != nil && known.rec.Version < version {
			return nil
		}
		return known
	}
	e := c.newEntry(rec, nil, c.chainTime(checked))
	if known != nil && known.rec.Version == version {
		e.state = known.state
		e.vouched = max(e.vouched, known.vouched)
		if known.checked > e.checked {
			e.checked, e.oldest = known.checked, known.oldest
		}
	}
	// The fleet's feed stands for a record that it covered, as this edge's own does.
	if upTo != 0 && upTo >= checked {
		limit := checked + int64(c.cfg.Bounds.MaxAge)
		e.vouched = max(e.vouched, c.chainTime(min(upTo, limit)))
	}
	if c.fresh(e, c.clock()) {
		c.metrics.redisHit.Inc()
	} else {
		c.metrics.redisStale.Inc()
	}
	return e
}

// redisResult tells the breaker. A cache that answers nonsense works, as far as time goes.
func (c *Chain) redisResult(err error) {
	if err == nil {
		c.redisUp.success(c.clock())
		return
	}
	c.redisUp.failure(c.clock())
}

// storeShared writes what Truth said. Should the key have changed meanwhile, the change is written once more, after it.
func (c *Chain) storeShared(id PublicID, e *entry) {
	if !c.redisUp.allow(c.clock()) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Bounds.Redis)
	defer cancel()
	err := c.shared.put(ctx, e.rec, c.dbTime(e.checked))
	c.redisResult(err)
	if err != nil {
		c.metrics.redisError.Inc()
		return
	}
	if c.behind(id, e) {
		c.shared.pending.add(id, needRecord)
	}
}

// forgetShared removes what Truth does not know.
func (c *Chain) forgetShared(id PublicID) {
	if !c.redisUp.allow(c.clock()) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.cfg.Bounds.Redis)
	defer cancel()
	err := c.shared.client.Del(ctx, c.shared.key(id)).Err()
	c.redisResult(err)
}
