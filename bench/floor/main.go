// Command floor is the least that a Go gateway of this kind can do: HTTP, the SHA-256 of the key and a map, gunzip, one walk over the protobuf that drops the
// filtered records and splices four attributes into each resource, and a produce request that is answered by all in-sync replicas before the client is.
//
// It is a bound to measure against and no product: one encoding besides gzip, no limits, no retries, no TLS, no metrics, nothing that may be away.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/valyala/fasthttp"
)

// strangers are further keys in the map, so that it is as large as a fleet's.
const strangers = 10_000

// A subject is what is known of a key.
type subject struct {
	key   []byte // of its messages in Kafka
	badge []byte // the attributes that are spliced in
	part  int
}

type server struct {
	subjects map[[32]byte]*subject
	producer *producer
	buffers  sync.Pool
	gzips    sync.Pool
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	brokers := flag.String("brokers", "127.0.0.1:9092", "one Kafka broker that leads all partitions")
	topic := flag.String("topic", "floor_logs", "topic")
	keys := flag.String("keys", "", "file of keys, one a line")
	flag.Parse()
	if err := run(*listen, *brokers, *topic, *keys); err != nil {
		log.Fatal(err)
	}
}

func run(listen, brokers, topic, keyFile string) error {
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	s := &server{subjects: map[[32]byte]*subject{}}
	for i, key := range strings.Fields(string(text)) {
		s.add(i, key)
	}
	for i := range strangers {
		s.add(i, fmt.Sprintf("stranger %d", i))
	}
	if s.producer, err = newProducer(brokers, topic); err != nil {
		return err
	}
	http := &fasthttp.Server{Handler: s.handle, NoDefaultServerHeader: true, NoDefaultDate: true, MaxRequestBodySize: 64 << 20, Concurrency: 20_000}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		os.Exit(0) // nothing here is worth keeping
	}()
	return http.ListenAndServe(listen)
}

func (s *server) add(i int, key string) {
	sub := &subject{key: fmt.Appendf(nil, "bench/service_account/sa_%016x", i), part: i % partitions}
	for _, a := range [][2]string{
		{"flowstate.org", "bench"}, {"flowstate.subject.kind", "service_account"},
		{"flowstate.subject.id", fmt.Sprintf("sa_%016x", i)}, {"flowstate.key_prefix", key[:min(16, len(key))]},
	} {
		sub.badge = appendField(sub.badge, 1, attribute(a[0], a[1]))
	}
	s.subjects[sha256.Sum256([]byte(key))] = sub
}

func attribute(key, value string) []byte {
	return appendField(appendField(nil, 1, []byte(key)), 2, appendField(nil, 1, []byte(value)))
}

func appendField(dst []byte, number int, b []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(number)<<3|2)
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

var bearer = []byte("Bearer ")

func (s *server) handle(ctx *fasthttp.RequestCtx) {
	if ctx.IsGet() {
		if string(ctx.Path()) == "/allocs" {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			fmt.Fprintln(ctx, m.Mallocs)
		}
		return
	}
	sub := s.subjects[sha256.Sum256(bytes.TrimPrefix(ctx.Request.Header.Peek("Authorization"), bearer))]
	if sub == nil {
		ctx.SetStatusCode(401)
		return
	}
	code, err := s.take(sub, ctx.PostBody(), ctx.Request.Header.ContentEncoding(), string(ctx.Request.Header.ContentType()) == "application/json")
	if err != nil {
		ctx.SetStatusCode(code)
		ctx.SetBodyString(err.Error())
		return
	}
	ctx.SetContentType("application/x-protobuf")
}

func (s *server) take(sub *subject, body, encoding []byte, isJSON bool) (int, error) {
	if string(encoding) == "gzip" {
		plain := s.buffer()
		defer func() { s.buffers.Put(plain) }()
		if err := s.gunzip(plain, body); err != nil {
			return 400, err
		}
		body = *plain
	}
	if isJSON {
		converted := s.buffer()
		defer func() { s.buffers.Put(converted) }()
		var err error
		if *converted, err = fromJSON((*converted)[:0], body); err != nil {
			return 400, err
		}
		body = *converted
	}
	out := s.buffer()
	defer func() { s.buffers.Put(out) }()
	var left int
	var err error
	if *out, left, err = rewrite((*out)[:0], body, sub.badge); err != nil {
		return 400, err
	}
	if left == 0 {
		return 200, nil
	}
	if err := s.producer.produce(sub, *out); err != nil {
		return 503, err
	}
	return 200, nil
}

func (s *server) buffer() *[]byte {
	if b, ok := s.buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, 64<<10)
	return &b
}

func (s *server) gunzip(dst *[]byte, src []byte) error {
	zr, ok := s.gzips.Get().(*gzip.Reader)
	if !ok {
		zr = new(gzip.Reader)
	}
	defer s.gzips.Put(zr)
	if err := zr.Reset(bytes.NewReader(src)); err != nil {
		return err
	}
	b := (*dst)[:0]
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		n, err := zr.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		*dst = b
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
