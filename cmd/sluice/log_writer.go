package main

import (
	"bytes"
	"io"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// logLines are how many lines wait for whoever reads the log.
const logLines = 4096

// logFlush is how long the end waits for them.
const logFlush = time.Second

// logDropped is one for the whole program, as its log is. While nobody reads the log it is the only sign of it.
var logDropped = prometheus.NewCounter(prometheus.CounterOpts{Name: "sluice_log_lines_dropped_total",
	Help: "Lines of the log that were left out, because whoever reads it was too slow or is gone."})

// A logWriter writes lines that others hand over. Requests, what goes to Kafka and the end must not wait for a pipe that nobody reads: while more than
// logLines wait the rest is left out and counted, and when there is room again a line says how many. What cannot be written is counted too.
type logWriter struct {
	w     io.Writer
	lines chan []byte
	flush chan chan struct{}
	left  atomic.Int64
	said  func(left int64) // writes the line that says so to w
}

// newLogWriter writes to w as long as the program runs.
func newLogWriter(w io.Writer, said func(left int64)) *logWriter {
	l := &logWriter{w: w, lines: make(chan []byte, logLines), flush: make(chan chan struct{}), said: said}
	go l.run()
	return l
}

// Write hands one line over. It never waits and never fails.
func (l *logWriter) Write(line []byte) (int, error) {
	select {
	case l.lines <- bytes.Clone(line):
	default:
		l.left.Add(1)
		logDropped.Inc()
	}
	return len(line), nil
}

func (l *logWriter) run() {
	for {
		select {
		case line := <-l.lines:
			l.write(line)
		case done := <-l.flush:
			for len(l.lines) > 0 {
				l.write(<-l.lines)
			}
			close(done)
		}
	}
}

func (l *logWriter) write(line []byte) {
	if _, err := l.w.Write(line); err != nil {
		logDropped.Inc()
	}
	if len(l.lines) == 0 { // what was left out came after all that waited
		if n := l.left.Swap(0); n > 0 {
			l.said(n)
		}
	}
}

// Flush returns when everything is written, or after logFlush.
func (l *logWriter) Flush() {
	late := time.NewTimer(logFlush)
	defer late.Stop()
	done := make(chan struct{})
	select {
	case l.flush <- done:
	case <-late.C:
		return
	}
	select {
	case <-done:
	case <-late.C:
	}
}
