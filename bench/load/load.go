// Package load sends HTTP requests and measures the answers.
//
// It writes prepared bytes to plain connections and reads no more of an answer than it must, so that on a machine shared with the server it takes as
// little as possible. Two loops: closed, where each connection sends its next request when the answer to the last is there; and open, where requests are
// due at a fixed rate whatever the server does, and latency is counted from the moment a request was due, so that a server that stalls is not
// spared the requests that it kept from being sent (no coordinated omission).
//
// An answer that is not 200 is counted by its code. A connection that breaks is counted and dialled again.
package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// A Body is what a request carries.
type Body struct {
	Bytes   []byte
	Records int
	Forward bool // something of it goes on to Kafka
}

// A Plan is what is sent to whom.
type Plan struct {
	Addr            string // host:port
	Path            string
	ContentType     string
	ContentEncoding string // "": none
	Keys            []string
	Rotate          bool // each request has the next key, instead of each connection its own
	Bodies          []Body
	Connections     int
	Rate            float64       // requests a second; 0: closed loop
	Warm            time.Duration // sent before anything is measured
	Measure         time.Duration
	// Begin and End are called as the measured time begins and ends, while the load goes on.
	Begin, End func()
}

// A Result is what was seen in the measured time.
type Result struct {
	Requests int64 // answered 200
	Records  int64
	Forward  int64 // answered 200 over the whole run, warm-up included, that put a message into Kafka
	Codes    map[int]int64
	Broken   int64 // connections that failed
	Elapsed  time.Duration
	Latency  *hdrhistogram.Histogram // microseconds
	Late     time.Duration           // open loop: the most that the generator itself was behind its schedule
}

const (
	warming int32 = iota
	measuring
	stopped
)

// lowest and highest latency that is told apart, in microseconds, to three digits.
const (
	lowest  = 1
	highest = 60_000_000
)

type worker struct {
	plan    *Plan
	n       int
	before  string
	after   string
	conn    net.Conn
	read    *bufio.Reader
	scratch []byte
	next    int

	requests, records, forward, broken int64
	codes                              map[int]int64
	latency                            *hdrhistogram.Histogram
}

// Run sends by the plan and returns what it saw. An error means that the measurement is worthless.
func Run(ctx context.Context, p Plan) (Result, error) {
	if len(p.Bodies) == 0 || len(p.Keys) == 0 || p.Connections == 0 {
		return Result{}, errors.New("a plan needs bodies, keys and connections")
	}
	var phase atomic.Int32
	var due chan time.Time
	if p.Rate > 0 {
		due = make(chan time.Time, int(p.Rate*(p.Warm+p.Measure).Seconds())+1)
	}
	workers := make([]*worker, p.Connections)
	before, after := p.heads()
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	dialling := make(chan struct{}, 64)
	began := time.Now()
	for i := range workers {
		w := &worker{plan: &p, n: i, before: before, after: after, next: i * 7, codes: map[int]int64{}, latency: hdrhistogram.New(lowest, highest, 3)}
		workers[i] = w
		wg.Go(func() {
			dialling <- struct{}{}
			err := w.dial()
			<-dialling
			if err != nil {
				select {
				case failed <- err:
				default:
				}
				return
			}
			if due == nil {
				w.closed(&phase)
			} else {
				w.open(due, began.Add(p.Warm), began.Add(p.Warm+p.Measure))
			}
			w.conn.Close()
		})
	}
	late := make(chan time.Duration, 1)
	if due != nil {
		go func() { late <- p.pace(ctx, due, began) }()
	}
	var err error
	wait := func(until time.Time) {
		select {
		case <-time.After(time.Until(until)):
		case e := <-failed:
			err = e
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	wait(began.Add(p.Warm))
	res := Result{Codes: map[int]int64{}, Latency: hdrhistogram.New(lowest, highest, 3)}
	if err == nil {
		if p.Begin != nil {
			p.Begin()
		}
		from := time.Now()
		phase.Store(measuring)
		wait(from.Add(p.Measure))
		phase.Store(stopped)
		res.Elapsed = time.Since(from)
		if p.End != nil {
			p.End()
		}
	}
	phase.Store(stopped)
	if due != nil {
		res.Late = <-late
		for len(due) > 0 && err == nil { // what was due is still sent, and its wait counted
			<-time.After(time.Millisecond)
			if time.Since(began) > p.Warm+p.Measure+10*time.Second {
				err = errors.New("the server is still behind ten seconds after the end of an open loop")
			}
		}
		close(due)
		if err != nil {
			for range due { // leave nothing to send
			}
		}
	}
	wg.Wait()
	for _, w := range workers {
		res.Requests += w.requests
		res.Records += w.records
		res.Forward += w.forward
		res.Broken += w.broken
		for code, n := range w.codes {
			res.Codes[code] += n
		}
		res.Latency.Merge(w.latency)
	}
	return res, err
}

// heads are what stands before and after the key.
func (p *Plan) heads() (before, after string) {
	before = "POST " + p.Path + " HTTP/1.1\r\nHost: " + p.Addr + "\r\nUser-Agent: sluice-bench\r\nAuthorization: Bearer "
	after = "\r\nContent-Type: " + p.ContentType + "\r\n"
	if p.ContentEncoding != "" {
		after += "Content-Encoding: " + p.ContentEncoding + "\r\n"
	}
	return before, after + "Content-Length: "
}

// pace puts what is due on the channel. It has a thread of its own, since Go's timers are good to a millisecond only. It returns how late it was at most.
func (p *Plan) pace(ctx context.Context, due chan<- time.Time, began time.Time) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	every := float64(time.Second) / p.Rate
	n := int(p.Rate * (p.Warm + p.Measure).Seconds())
	var most time.Duration
	for i := range n {
		at := began.Add(time.Duration(float64(i) * every))
		for left := time.Until(at); left > 0; left = time.Until(at) {
			ts := unix.NsecToTimespec(int64(left))
			_ = unix.Nanosleep(&ts, nil) // interrupted: what is left is slept again
		}
		if ctx.Err() != nil {
			break
		}
		if i > n/10 {
			most = max(most, time.Since(at))
		}
		due <- at
	}
	return most
}

func (w *worker) closed(phase *atomic.Int32) {
	for phase.Load() != stopped {
		began := time.Now()
		before := phase.Load()
		code, body, ok := w.send()
		if !ok {
			return
		}
		w.note(code, body, time.Since(began), before == measuring && phase.Load() == measuring)
	}
}

// open counts what was due in the measured time, whenever it was answered: to leave out the late ones would flatter the server.
func (w *worker) open(due <-chan time.Time, from, to time.Time) {
	for at := range due {
		measured := !at.Before(from) && at.Before(to)
		code, body, ok := w.send()
		if !ok {
			return
		}
		w.note(code, body, time.Since(at), measured)
	}
}

func (w *worker) note(code int, body *Body, took time.Duration, measured bool) {
	if code == 200 && body.Forward {
		w.forward++
	}
	if !measured {
		return
	}
	w.codes[code]++
	if code != 200 {
		return
	}
	w.requests++
	w.records += int64(body.Records)
	_ = w.latency.RecordValue(min(max(took.Microseconds(), lowest), highest)) // within the bounds by this line
}

// send makes one exchange. False: the connection broke and there is no other.
func (w *worker) send() (int, *Body, bool) {
	body := &w.plan.Bodies[w.next%len(w.plan.Bodies)]
	key := w.n
	if w.plan.Rotate {
		key = w.n + w.next*w.plan.Connections
	}
	w.next++
	w.scratch = append(w.scratch[:0], w.before...)
	w.scratch = append(w.scratch, w.plan.Keys[key%len(w.plan.Keys)]...)
	w.scratch = append(w.scratch, w.after...)
	w.scratch = strconv.AppendInt(w.scratch, int64(len(body.Bytes)), 10)
	w.scratch = append(w.scratch, "\r\n\r\n"...)
	w.scratch = append(w.scratch, body.Bytes...)
	_, err := w.conn.Write(w.scratch)
	code, keep := 0, false
	if err == nil {
		code, keep, err = readAnswer(w.read)
	}
	if err == nil && keep {
		return code, body, true
	}
	if err != nil {
		w.broken++
	}
	w.conn.Close()
	return code, body, w.dial() == nil
}

func (w *worker) dial() error {
	conn, err := net.DialTimeout("tcp", w.plan.Addr, 5*time.Second)
	if err != nil {
		return fmt.Errorf("connection %d: %w", w.n, err)
	}
	w.conn = conn
	if w.read == nil {
		w.read = bufio.NewReaderSize(conn, 1024)
	} else {
		w.read.Reset(conn)
	}
	return nil
}

var (
	lengthHeader = []byte("content-length:")
	closeHeader  = []byte("connection: close")
)

// readAnswer reads one answer to its end; keep is false where the server will close.
func readAnswer(r *bufio.Reader) (int, bool, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, false, fmt.Errorf("not an HTTP/1.1 answer: %q", line)
	}
	code, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, false, err
	}
	length, keep := -1, true
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		switch {
		case len(line) > len(lengthHeader) && bytes.EqualFold(line[:len(lengthHeader)], lengthHeader):
			length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(lengthHeader):])))
			if err != nil {
				return 0, false, err
			}
		case bytes.EqualFold(line, closeHeader):
			keep = false
		}
	}
	if length < 0 {
		return 0, false, errors.New("an answer without Content-Length")
	}
	_, err = r.Discard(length)
	return code, keep, err
}
