package ingest

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// say logs a warning, unless the same was said lately.
func (p *Producer) say(what, msg string, attrs ...slog.Attr) {
	if p.said.allow(what) {
		p.tell(slog.LevelWarn, msg, attrs...)
	}
}

func (p *Producer) tell(level slog.Level, msg string, attrs ...slog.Attr) {
	p.log.LogAttrs(context.Background(), level, msg, attrs...)
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
