package otlp

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A clientBody is one request as an unmodified OpenTelemetry SDK has sent it: testdata/clients has those of Python, Node.js and Go, in protobuf and JSON.
type clientBody struct {
	name string
	kind Kind
	json bool
	body []byte
}

func clientBodies(t testing.TB) []clientBody {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "clients", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no bodies of clients: %v", err)
	}
	var out []clientBody
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(file)
		_, what, _ := strings.Cut(name, "-")
		what, ext, _ := strings.Cut(what, ".")
		kind, ok := map[string]Kind{"logs": Logs, "traces": Spans, "metrics": Metrics}[what]
		if !ok {
			t.Fatalf("%s is of no kind", file)
		}
		out = append(out, clientBody{name, kind, ext == "json", b})
	}
	return out
}

// What the SDKs send comes through whole, but for their signals and what wears our name.
func TestClientBodies(t *testing.T) {
	for _, c := range clientBodies(t) {
		body := c.body
		if c.json {
			var err error
			if body, err = JSONToProto(nil, c.kind, body); err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
		}
		signals := 0
		_, result, err := Rewrite(nil, c.kind, body, testBadge(), func(*SignalRecord) { signals++ })
		if err != nil || result.Records == 0 {
			t.Errorf("%s: %+v, %v", c.name, result, err)
			continue
		}
		if want := c.kind == Logs; (signals > 0) != want {
			t.Errorf("%s: %d signals", c.name, signals)
		}
		if c.kind == Spans && result.Stripped == 0 {
			t.Errorf("%s: nothing that wears our name was removed", c.name)
		}
		checkRewrite(t, c.kind, body)
	}
}
