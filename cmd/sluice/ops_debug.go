package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
)

// debugRoutes adds to the ops port what tells about, or changes, the inside of the process: profiles and the level of the log. They answer callers on
// loopback alone: `kubectl port-forward`, ssh, or a shell beside the process. Profiles hold no keys of requests on purpose, but they are not for the network.
func (p *process) debugRoutes(mux *http.ServeMux) {
	for path, h := range map[string]http.HandlerFunc{
		"GET /debug/pprof/": pprof.Index, "GET /debug/pprof/cmdline": noCommandLine, "GET /debug/pprof/profile": pprof.Profile,
		"GET /debug/pprof/symbol": pprof.Symbol, "POST /debug/pprof/symbol": pprof.Symbol, "GET /debug/pprof/trace": pprof.Trace,
		"GET /loglevel": p.serveLevel, "PUT /loglevel": p.setLevel,
	} {
		mux.Handle(path, loopbackCaller(h))
	}
}

// noCommandLine stands where pprof would show the flags, of which some may be secrets.
func noCommandLine(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprint(w, "sluice")
}

// loopbackCaller refuses everybody whose connection does not come from this machine, whatever their headers say; what a proxy on this machine
// passes on for somebody else; and pages whose made-up host name leads a browser here.
func loopbackCaller(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		forwarded := false
		for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"} {
			forwarded = forwarded || len(r.Header.Values(name)) > 0
		}
		if err != nil || !from.Addr().Unmap().IsLoopback() || forwarded || !loopbackHost(r.Host) {
			http.Error(w, "This answers callers on loopback only: use kubectl port-forward, ssh -L, or a shell on the machine; under Compose see ops-port.md of the docs.", http.StatusForbidden)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

func loopbackHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

func (p *process) serveLevel(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]string{"level": strings.ToLower(p.level.Level().String())}) // the client has gone; nobody is left to tell
}

// setLevel takes the level as text, or as the JSON that serveLevel answers. It holds until the process ends or it is set again.
func (p *process) setLevel(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1024))
	text := strings.TrimSpace(string(body))
	var object struct{ Level string }
	if err == nil && json.Unmarshal(body, &object) == nil {
		text = object.Level
	}
	var level slog.Level
	if err != nil || level.UnmarshalText([]byte(text)) != nil {
		http.Error(w, `Send debug, info, warn or error, as text or as {"level":"debug"}.`, http.StatusBadRequest)
		return
	}
	before := p.level.Level()
	p.level.Set(level)
	// Above every level that there is: who reads the log must see why it has more in it, or less.
	p.log.Log(r.Context(), max(level, slog.LevelInfo), "log level set", "before", before, "now", level)
	p.serveLevel(w, r)
}
