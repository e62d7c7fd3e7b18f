package main

import (
	"io"
	"log/slog"
	"os"

	"github.com/mattn/go-isatty"
)

// newLogger writes to w: text on a terminal, JSON elsewhere, unless format says otherwise. The level may be moved while it is in use.
func newLogger(w io.Writer, level, format string) (*slog.Logger, *slog.LevelVar, error) {
	l := new(slog.LevelVar)
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, usagef("--log-level: %q is not debug, info, warn or error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), l, nil
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), l, nil
	case "auto":
		if f, ok := w.(*os.File); ok && isatty.IsTerminal(f.Fd()) {
			return slog.New(slog.NewTextHandler(w, opts)), l, nil
		}
		return slog.New(slog.NewJSONHandler(w, opts)), l, nil
	}
	return nil, nil, usagef("--log-format: %q is not json, text or auto", format)
}
