package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestDebugIsForLoopback(t *testing.T) {
	var out bytes.Buffer
	log, level, err := newLogger(&out, "info", "json")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{log: log, level: level}
	mux := http.NewServeMux()
	p.debugRoutes(mux)
	ask := func(method, path, from, host, body string, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.RemoteAddr, r.Host = from, host
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w
	}
	for _, tt := range []struct {
		what, from, host string
		header           []string
		want             int
	}{
		{"loopback", "127.0.0.1:4711", "127.0.0.1:9318", nil, 200},
		{"loopback by name", "127.0.0.1:4711", "localhost:9318", nil, 200},
		{"IPv6", "[::1]:4711", "[::1]:9318", nil, 200},
		{"IPv4 in IPv6", "[::ffff:127.0.0.1]:4711", "127.0.0.1:9318", nil, 200},
		{"the network", "192.0.2.7:4711", "10.0.0.4:9318", nil, 403},
		{"the network that says loopback", "192.0.2.7:4711", "127.0.0.1:9318", []string{"X-Forwarded-For", "127.0.0.1"}, 403},
		{"another header of that kind", "192.0.2.7:4711", "localhost:9318", []string{"Forwarded", "for=127.0.0.1", "X-Real-Ip", "127.0.0.1"}, 403},
		{"a proxy on this machine", "127.0.0.1:4711", "127.0.0.1:9318", []string{"X-Forwarded-For", "192.0.2.7"}, 403},
		{"a page that has found a name for this machine", "127.0.0.1:4711", "evil.example:9318", nil, 403},
		{"no address", "", "127.0.0.1:9318", nil, 403},
	} {
		for _, path := range []string{"/loglevel", "/debug/pprof/", "/debug/pprof/goroutine?debug=1", "/debug/pprof/cmdline", "/debug/pprof/symbol", "/debug/pprof/heap"} {
			if w := ask("GET", path, tt.from, tt.host, "", tt.header...); w.Code != tt.want {
				t.Errorf("%s, %s: %d, want %d", tt.what, path, w.Code, tt.want)
			}
		}
		before := level.Level()
		if w := ask("PUT", "/loglevel", tt.from, tt.host, before.String(), tt.header...); w.Code != tt.want {
			t.Errorf("%s, set the level: %d, want %d", tt.what, w.Code, tt.want)
		}
	}

	const here, host = "127.0.0.1:4711", "localhost"
	for _, tt := range []struct{ body, want string }{
		{"debug\n", `{"level":"debug"}`}, {`{"level":"warn"}`, `{"level":"warn"}`}, {"ERROR", `{"level":"error"}`}, {"info", `{"level":"info"}`},
	} {
		if w := ask("PUT", "/loglevel", here, host, tt.body); w.Code != 200 || strings.TrimSpace(w.Body.String()) != tt.want {
			t.Errorf("PUT %q: %d %s", tt.body, w.Code, w.Body)
		}
	}
	for _, body := range []string{"", "loud", `{}`, strings.Repeat("x", 5000)} {
		if w := ask("PUT", "/loglevel", here, host, body); w.Code != 400 || level.Level().String() != "INFO" {
			t.Errorf("PUT %.20q: %d, the level is %v", body, w.Code, level.Level())
		}
	}
	out.Reset()
	log.Debug("hidden")
	ask("PUT", "/loglevel", here, host, "debug")
	log.Debug("shown")
	if s := out.String(); strings.Contains(s, "hidden") || !strings.Contains(s, "shown") || !strings.Contains(s, `"log level set"`) {
		t.Errorf("the log is %s", s)
	}
}
