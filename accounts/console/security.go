package console

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"flowstate.inc/sluice/signals"
)

// contentPolicy lets a page load from here and nowhere else, and run and style itself from files only.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// maxForm bounds what a form may post: the longest texts of an account four times over, in bytes of any script.
const maxForm = 128 << 10

// maxDraftForm bounds a policy draft: what the admin API takes, with every byte of it percent-encoded.
const maxDraftForm = 3*signals.MaxDraftBytes + maxForm

// wrap puts what every answer needs around the pages: ids, headers, limits, the cut of pasted keys, the access log.
func (c *Console) wrap(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(c.open(func(http.ResponseWriter, *http.Request, *visit) error {
		return errCrossOrigin
	}))
	next = protection.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := c.now()
		r = r.WithContext(context.WithValue(r.Context(), requestKey{}, newRequestID()))
		h := w.Header()
		h.Set("Content-Security-Policy", contentPolicy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin") // never to another site; sign-in and the audit need nothing of it
		h.Set("X-Frame-Options", "DENY")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Request-Id", requestID(r))
		limit := int64(maxForm)
		if r.URL.Path == policyDraftsPath {
			limit = maxDraftForm
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		rec := &recorder{ResponseWriter: w}
		if target, cut := withoutKeys(r.URL); cut && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			http.Redirect(rec, r, target, http.StatusSeeOther)
		} else {
			next.ServeHTTP(rec, r)
		}
		level := slog.LevelInfo
		if strings.HasPrefix(r.URL.Path, "/assets/") || isPoll(r) {
			level = slog.LevelDebug
		}
		// The query stays out: it may hold what somebody typed. The path is cut like everything else.
		c.log.LogAttrs(r.Context(), level, "console request", slog.String("request_id", requestID(r)), slog.String("method", r.Method),
			slog.String("path", cutKeys(r.URL.Path)), slog.Int("status", rec.status), slog.Duration("took", c.now().Sub(start).Round(time.Microsecond)))
	})
}

// A recorder remembers the status for the access log.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// isPoll says whether a page that is open asks by itself: such a question is answered in JSON and logged at debug level.
func isPoll(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "/first-event") || r.URL.Path == alertsPath+"/new"
}

type requestKey struct{}

func newRequestID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return "req_" + hex.EncodeToString(b[:])
}

func requestID(r *http.Request) string {
	id, _ := r.Context().Value(requestKey{}).(string)
	return id
}

// secretPart finds a key or a token by its prefix and what follows it, also when it is cut short or has a character too
// many: what looks like a secret is treated as one. The script has the same expression.
var secretPart = regexp.MustCompile(`\b(f[spda][kt]_[0-9A-Za-z]{12})_[0-9A-Za-z]*`)

func cutKeys(s string) string { return secretPart.ReplaceAllString(s, "$1") }

// withoutKeys is the address with every key in it cut to its prefix, and whether there was one. Where a one-time link is
// taken, its own parameter is none of these.
func withoutKeys(u *url.URL) (string, bool) {
	if path := cutKeys(u.Path); path != u.Path {
		return (&url.URL{Path: path}).String(), true
	}
	if !strings.Contains(u.RawQuery, "_") {
		return "", false
	}
	query, found := url.Values{}, false
	for name, values := range u.Query() {
		short := cutKeys(name)
		found = found || short != name
		for _, value := range values {
			cut := cutKeys(value)
			found = found || cut != value
			query.Add(short, cut)
		}
	}
	if !found {
		return "", false
	}
	return (&url.URL{Path: u.Path, RawQuery: query.Encode()}).String(), true
}

func remoteIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// writePage sends a rendered page, compressed where the browser takes it. A page that holds a secret must go by
// writeSecretPage: compressing it together with what the sender chose would let its length speak.
func writePage(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	const worthIt = 2 << 10
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Add("Vary", "Accept-Encoding, Cookie")
	if len(body) > worthIt && acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
		body = zip(body)
	}
	send(w, r, status, body)
}

func writeSecretPage(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	send(w, r, status, body)
}

func send(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the browser went away: nobody is left to tell
	}
}
