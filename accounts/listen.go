package accounts

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// parsePostgres reads a postgres:// URL or a key=value string. Its error never holds the URL, which holds a password.
func parsePostgres(url string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		var pe *pgconn.ParseConfigError
		if errors.As(err, &pe) {
			// pgconn redacts the password in its text.
			return nil, fmt.Errorf("read the PostgreSQL URL: %w", pe)
		}
		return nil, errors.New("read the PostgreSQL URL: it is malformed")
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	return cfg, nil
}

// unreachable is true for errors of the way to the database and of time.
func unreachable(err error) bool {
	var ne net.Error
	var ce *pgconn.ConnectError
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &ne) || errors.As(err, &ce) || pgconn.Timeout(err)
}

const (
	listenKeepalive = 30 * time.Second
	listenBackoff   = 5 * time.Second
)

// Listen wakes for every change that any process commits to the PostgreSQL at url, and after each connect, since something may have been missed
// before it. The channel has room for one wake, is closed when ctx ends, and never carries more than "look": losing the connection costs promptness
// only, since edges poll key_changes anyway. It reconnects for as long as ctx lasts. The error is about the URL.
func Listen(ctx context.Context, url string, log *slog.Logger) (<-chan struct{}, error) {
	cfg, err := parsePostgres(url)
	if err != nil {
		return nil, err
	}
	wake := make(chan struct{}, 1)
	go func() {
		defer close(wake)
		delay := 100 * time.Millisecond
		cut := false // and said so
		for ctx.Err() == nil {
			started := time.Now()
			err := listenOnce(ctx, cfg, wake, func() {
				if cut {
					log.InfoContext(ctx, "listening for key changes again")
				}
				cut = false
			})
			if ctx.Err() != nil {
				return
			}
			if !cut {
				log.WarnContext(ctx, "listening for key changes was cut; edges poll until it is back", "error", err)
			}
			cut = true
			if time.Since(started) > listenKeepalive {
				delay = 100 * time.Millisecond
			}
			select {
			case <-ctx.Done():
			case <-time.After(delay):
			}
			delay = min(2*delay, listenBackoff)
		}
	}()
	return wake, nil
}

// listenOnce returns when the connection is lost or ctx ends. It calls listening when it does.
func listenOnce(ctx context.Context, cfg *pgx.ConnConfig, wake chan<- struct{}, listening func()) error {
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return fmt.Errorf("connect to listen: %w", err)
	}
	defer func() {
		closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closeCtx)
	}()
	if _, err := conn.Exec(ctx, `LISTEN `+notifyChannel); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	listening()
	for {
		select {
		case wake <- struct{}{}:
		default:
		}
		for {
			waitCtx, cancel := context.WithTimeout(ctx, listenKeepalive)
			_, err = conn.WaitForNotification(waitCtx)
			timedOut := waitCtx.Err() != nil && ctx.Err() == nil
			cancel()
			if err == nil {
				break
			}
			if !timedOut {
				return fmt.Errorf("wait for a notification: %w", err)
			}
			// A dead peer does not say so: ask. pgx keeps the connection usable after a wait that timed out.
			pingCtx, cancel := context.WithTimeout(ctx, 5*time.Second)
			err = conn.Ping(pingCtx)
			cancel()
			if err != nil {
				return fmt.Errorf("keep the listening connection alive: %w", err)
			}
		}
	}
}
