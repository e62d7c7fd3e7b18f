package console

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"
)

//go:embed templates static
var content embed.FS

// pages are the templates that the handlers render by name; each is parsed with the layout and the parts, so that one
// page's "content" never meets another's.
var pageNames = []string{"list", "account", "alerts", "audit", "policy", "draft", "editor", "refusals", "usage", "scope", "signin", "once", "message"}

// An asset is one static file under a name that carries its hash, so that it can be cached for ever.
type asset struct {
	body     []byte
	zipped   []byte
	mimeType string
}

// renderer holds every template and asset, read once at start: a page cannot fail for a missing file later.
type renderer struct {
	pages  map[string]*template.Template
	assets map[string]asset  // by public path
	urls   map[string]string // file name → public path
	now    func() time.Time
}

func newRenderer(now func() time.Time) (*renderer, error) {
	rd := &renderer{pages: map[string]*template.Template{}, assets: map[string]asset{}, urls: map[string]string{}, now: now}
	files, err := fs.ReadDir(content, "static")
	if err != nil {
		return nil, fmt.Errorf("console: read assets: %w", err)
	}
	for _, f := range files {
		body, err := content.ReadFile("static/" + f.Name())
		if err != nil {
			return nil, fmt.Errorf("console: read asset: %w", err)
		}
		sum := sha256.Sum256(body)
		ext := path.Ext(f.Name())
		public := "/assets/" + strings.TrimSuffix(f.Name(), ext) + "." + hex.EncodeToString(sum[:6]) + ext
		rd.urls[f.Name()] = public
		rd.assets[public] = asset{body: body, zipped: zip(body), mimeType: mime.TypeByExtension(ext)}
	}
	base, err := template.New("layout").Funcs(rd.funcs()).ParseFS(content, "templates/layout.html", "templates/parts.html", "templates/dialogs.html")
	if err != nil {
		return nil, fmt.Errorf("console: parse the layout: %w", err)
	}
	for _, name := range pageNames {
		clone, err := base.Clone()
		if err != nil {
			return nil, fmt.Errorf("console: clone the layout: %w", err)
		}
		page, err := clone.ParseFS(content, "templates/"+name+".html")
		if err != nil {
			return nil, fmt.Errorf("console: parse page %s: %w", name, err)
		}
		rd.pages[name] = page
	}
	return rd, nil
}

func (rd *renderer) funcs() template.FuncMap {
	return template.FuncMap{
		"asset": func(name string) (string, error) {
			url, ok := rd.urls[name]
			if !ok {
				return "", fmt.Errorf("no asset %q", name)
			}
			return url, nil
		},
		// The name is one of ours, never a caller's: anything else would not match a symbol and is escaped all the same.
		"icon": func(name string) template.HTML {
			return template.HTML(`<svg class="icon" aria-hidden="true"><use href="#i-` + template.HTMLEscapeString(name) + `"/></svg>`)
		},
		"split": splitName,
		"when":  rd.when,
		"copy":  func(of, what string) copyView { return copyView{Of: of, What: what} },
	}
}

type copyView struct{ Of, What string }

// A whenView is a time as the pages say it: in words, exact on hover, or "never".
type whenView struct{ ISO, Exact, Relative string }

func (rd *renderer) when(t time.Time) whenView {
	if t.IsZero() {
		return whenView{}
	}
	t = t.UTC()
	return whenView{ISO: t.Format(time.RFC3339), Exact: t.Format("2 Jan 2006, 15:04:05") + " UTC", Relative: relative(rd.now().UTC(), t)}
}

// relative says how long ago t was: in minutes, hours and days up to a month, then as a date.
func relative(now, t time.Time) string {
	d := now.Sub(t)
	switch {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return ago(int(d/time.Minute), "minute")
	case d < 24*time.Hour:
		return ago(int(d/time.Hour), "hour")
	case d < 30*24*time.Hour:
		return ago(int(d/(24*time.Hour)), "day")
	}
	return t.Format("2 Jan 2006")
}

func ago(n int, unit string) string {
	if n == 1 {
		return "1 " + unit + " ago"
	}
	return strconv.Itoa(n) + " " + unit + "s ago"
}

// A nameView is a name in two parts: the first gives way where there is no room, the last stays. Workloads tend to
// differ at both ends (nightly-digest-…-eu-west-1), so the middle is what can go.
type nameView struct{ Head, Tail string }

func splitName(name string) nameView {
	const short, tail = 28, 10
	runes := []rune(name)
	if len(runes) <= short {
		return nameView{Head: name}
	}
	return nameView{Head: string(runes[:len(runes)-tail]), Tail: string(runes[len(runes)-tail:])}
}

// page renders to a buffer first: an error in a template is a clean 500, never half a page.
func (rd *renderer) page(name string, data any) ([]byte, error) {
	tmpl, ok := rd.pages[name]
	if !ok {
		panic("BUG: no page named " + name)
	}
	var buf bytes.Buffer
	if err := tmpl.ExecuteTemplate(&buf, "layout", data); err != nil {
		return nil, fmt.Errorf("render page %s: %w", name, err)
	}
	return buf.Bytes(), nil
}

// part renders what all pages share, without a page around it.
func (rd *renderer) part(name string, data any) ([]byte, error) {
	var buf bytes.Buffer
	if err := rd.pages["message"].ExecuteTemplate(&buf, name, data); err != nil {
		return nil, fmt.Errorf("render part %s: %w", name, err)
	}
	return buf.Bytes(), nil
}

func (rd *renderer) serveAsset(w http.ResponseWriter, r *http.Request) {
	a, ok := rd.assets[r.URL.Path]
	if !ok {
		http.Error(w, "no such asset", http.StatusNotFound)
		return
	}
	h := w.Header()
	h.Set("Content-Type", a.mimeType)
	h.Set("Cache-Control", "public, max-age=31536000, immutable")
	h.Set("Vary", "Accept-Encoding")
	body := a.body
	if acceptsGzip(r) {
		h.Set("Content-Encoding", "gzip")
		body = a.zipped
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the browser went away: nobody is left to tell
	}
}

func acceptsGzip(r *http.Request) bool {
	for part := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		coding, params, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.EqualFold(coding, "gzip") && strings.ReplaceAll(params, " ", "") != "q=0" {
			return true
		}
	}
	return false
}

func zip(body []byte) []byte {
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	_, _ = zw.Write(body) // a buffer takes everything
	_ = zw.Close()
	return buf.Bytes()
}
