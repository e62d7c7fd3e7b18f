package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/redis/go-redis/v9"

	"flowstate.inc/sluice/ingest"
)

// newLogger writes to w: text on a terminal, JSON elsewhere, unless format says otherwise. The level may be moved while it is in use. The warnings of calmed are
// written so many times in calmTime and then left out, which the next one says.
func newLogger(w io.Writer, level, format string) (*slog.Logger, *slog.LevelVar, error) {
	handler, l, err := logHandler(w, level, format)
	if err != nil {
		return nil, nil, err
	}
	return calmLogger(handler(w)), l, nil
}

// startLog is newLogger for what serves: nobody waits for whoever reads w. The caller flushes it at the end.
func startLog(w io.Writer, level, format string) (*slog.Logger, *slog.LevelVar, *logWriter, error) {
	handler, l, err := logHandler(w, level, format)
	if err != nil {
		return nil, nil, nil, err
	}
	signal.Ignore(syscall.SIGPIPE) // a reader of the log that ends must not end us
	direct := slog.New(handler(w))
	out := newLogWriter(w, func(left int64) {
		direct.Warn("lines of the log were left out: whoever reads it is too slow", "left_out", left)
	})
	return calmLogger(handler(out)), l, out, nil
}

func calmLogger(h slog.Handler) *slog.Logger {
	return slog.New(&calmHandler{h, &calm{lines: map[string]*calmLine{}}})
}

// logHandler gives what makes handlers of a level and a format, the latter by what w is.
func logHandler(w io.Writer, level, format string) (func(io.Writer) slog.Handler, *slog.LevelVar, error) {
	l := new(slog.LevelVar)
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, usagef("--log-level: %q is not debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l, ReplaceAttr: readableDurations}
	asText := func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, opts) }
	asJSON := func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, opts) }
	switch format {
	case "json":
		return asJSON, l, nil
	case "text":
		return asText, l, nil
	case "auto":
		if f, ok := w.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
			return asText, l, nil
		}
		return asJSON, l, nil
	}
	return nil, nil, usagef("--log-format: %q is not json, text or auto", format)
}

// readableDurations has JSON say 1.5s, as text does, where it would say 1500000000.
func readableDurations(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}

// calmTime is how long the counts of calmed hold.
const calmTime = 10 * time.Second

// calmed are the warnings that each request, or each connection, may have, and how many of them are enough: while something is away, or because a stranger likes it so.
// The others differ from one another in what they name, so none of them may be left out.
var calmed = map[string]int{"request refused": 10, ingest.SaidGRPCToHTTP: 1, "sign-in refused": 10, redisSaid: 1}

const redisSaid = "redis client"

// A calmHandler keeps the warnings of calmed from burying everything else. At the level debug everything is written. How many requests were refused, those left out
// at the end of an outage among them, the metrics say.
type calmHandler struct {
	slog.Handler
	calm *calm
}

func (h *calmHandler) Handle(ctx context.Context, r slog.Record) error {
	most, calm := calmed[r.Message]
	if !calm || r.Level < slog.LevelWarn || r.Level >= slog.LevelError || h.Enabled(ctx, slog.LevelDebug) {
		return h.Handler.Handle(ctx, r)
	}
	left, ok := h.calm.allow(r.Message, most, r.Time)
	if !ok {
		return nil
	}
	if left > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("left_out", left))
	}
	return h.Handler.Handle(ctx, r)
}

func (h *calmHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &calmHandler{h.Handler.WithAttrs(attrs), h.calm}
}

func (h *calmHandler) WithGroup(name string) slog.Handler {
	return &calmHandler{h.Handler.WithGroup(name), h.calm}
}

// calm counts lines by their message, of which calmed has few.
type calm struct {
	mu    sync.Mutex
	lines map[string]*calmLine
}

type calmLine struct {
	since         time.Time
	written, left int
}

// allow says whether a line may be written now, and how many like it have been left out since the last one that was.
func (c *calm) allow(message string, most int, now time.Time) (left int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.lines[message]
	if l == nil {
		l = &calmLine{}
		c.lines[message] = l
	}
	if now.Sub(l.since) >= calmTime {
		l.since, l.written = now, 0
	}
	if l.written == most {
		l.left++
		return 0, false
	}
	l.written++
	left, l.left = l.left, 0
	return left, true
}

// logRedis has the Redis client say what it says, of connections that it cannot make, in our log. It is one for the whole program.
func logRedis(log *slog.Logger) { redis.SetLogger(redisLog{log}) }

type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, v ...any) {
	l.log.WarnContext(ctx, redisSaid, "said", fmt.Sprintf(format, v...))
}
