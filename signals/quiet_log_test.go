package signals

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An outage has one line in half a minute, and one when it is over; what comes and goes is not over.
func TestQuietLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		q := NewQuietLog(slog.New(slog.NewTextHandler(&out, nil)))
		want := func(lines ...string) {
			t.Helper()
			var got []string
			for l := range strings.Lines(out.String()) {
				_, l, _ = strings.Cut(strings.TrimSpace(l), "level=")
				got = append(got, l)
			}
			out.Reset()
			if strings.Join(got, "\n") != strings.Join(lines, "\n") {
				t.Errorf("logged\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
			}
		}
		q.Well(ReadsWell, "again")
		want()
		for range 100 {
			q.Say(slog.LevelWarn, "read", "away")
			q.Well(ReadsWell, "again")
			time.Sleep(time.Second / 2)
		}
		want("WARN msg=away", "WARN msg=away left_out=59")
		time.Sleep(ReadsWell)
		q.Well(ReadsWell, "again")
		q.Well(ReadsWell, "again")
		q.Say(slog.LevelWarn, "read", "away")
		want("INFO msg=again", "WARN msg=away")
		q.Well(0, "again")
		want("INFO msg=again")
	})
}
