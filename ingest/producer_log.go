package ingest

import (
	"log/slog"
	"sync"
	"time"
)

type logLine struct {
	level slog.Level
	msg   string
	attrs []slog.Attr
}

// say hands a warning over to be logged, unless the same was said lately or too much is being said. It never blocks.
func (p *Producer) say(what, msg string, attrs ...slog.Attr) {
	if p.said.allow(what) {
		p.tell(slog.LevelWarn, msg, attrs...)
	}
}

// tell hands a line over to be logged, unless too much is being said. It never blocks: whoever sends, settles or looks up the leaders must not wait for a log.
func (p *Producer) tell(level slog.Level, msg string, attrs ...slog.Attr) {
	select {
	case p.lines <- logLine{level, msg, attrs}:
	default:
	}
}

// A logLimiter lets the same thing be logged once in a while.
type logLimiter struct {
	every time.Duration
	mu    sync.Mutex
	last  map[string]time.Time
}

func newLogLimiter(every time.Duration) *logLimiter {
	return &logLimiter{every: every, last: make(map[string]time.Time)}
}

// allow says whether what may be logged now. The whats must be few: they are kept.
func (l *logLimiter) allow(what string) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.last[what]; ok && now.Sub(t) < l.every {
		return false
	}
	l.last[what] = now
	return true
}
