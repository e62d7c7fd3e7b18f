package ingest

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// What is invalid is counted whole by reason, and by the types that we know as we spell them, however many ways a sender has.
func TestInvalidIsCounted(t *testing.T) {
	got := map[string]int64{}
	drops := signals.NewDrops(func(_ context.Context, drops []signals.Drop) error {
		for _, d := range drops {
			if d.SubjectKind != string(auth.KindServiceAccount) {
				t.Errorf("about %s", d.SubjectKind)
			}
			got[d.Type+" "+string(d.Reason)] += d.Count
		}
		return nil
	}, slog.New(slog.DiscardHandler))
	e := startEdge(t, func(c *EdgeConfig, _ *ServerConfig, _ *ProducerConfig) { c.Drops = drops })
	key := e.add(service(auth.Production))
	var all []string
	for i := range 3 * maxNotes {
		all = append(all, fmt.Sprintf(`{"type":"p%[1]si%[1]si_detected","severity":"x%[2]d"}`, strings.Repeat("_", i%5+1), i), fmt.Sprintf(`{"type":"own_%d","severity":"x"}`, i))
	}
	all = append(all, `{"type":"pii_detected"}`)
	if a := e.send("POST", "/v1/signals", []byte("["+strings.Join(all, ",")+"]"), "Content-Type", "application/json", "x-flowstate-key", key); a.code != 200 {
		t.Fatalf("%s", a)
	}
	drops.Flush(t.Context())
	known, others := got["pii_detected bad_severity"], got["signals bad_severity"]
	if len(got) != 2 || known == 0 || known+others != 6*maxNotes {
		t.Errorf("%v, of %d", got, 6*maxNotes)
	}
}
