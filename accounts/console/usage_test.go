package console_test

import (
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// seedUsage gives an account a week of use, by two senders, and two refusals.
func (s *site) seedUsage(t *testing.T, a accounts.Account) {
	t.Helper()
	now := time.Now().UTC()
	b := auth.UsageBatch{Writer: "edge-test", Seq: now.UnixNano()}
	for hour := 160; hour >= 0; hour-- {
		at := now.Truncate(time.Hour).Add(-time.Duration(hour) * time.Hour)
		if at.Hour() < 2 || at.Hour() > 5 {
			continue
		}
		b.Usage = append(b.Usage, auth.KeyUsage{Prefix: a.KeyPrefix, Hour: at, Usage: auth.Usage{Requests: 40, Accepted: 1200 + int64(hour)*7, Filtered: 90, Invalid: 3, Refused: 1, Bytes: 400_000}})
	}
	b.Usage = append(b.Usage, auth.KeyUsage{Prefix: a.KeyPrefix, Hour: now.Truncate(time.Hour), Usage: auth.Usage{Requests: 1, Accepted: 5, Bytes: 700}})
	if n := len(b.Usage); n > 1 && b.Usage[n-1].Hour.Equal(b.Usage[n-2].Hour) {
		b.Usage = b.Usage[:n-1]
	}
	for i, agent := range []string{"OTel-OTLP-Exporter-Python/1.38.0", "curl/8.14.1 <b>bold</b>"} {
		b.Senders = append(b.Senders, auth.SenderUse{Prefix: a.KeyPrefix, New: true, Count: 1234, First: now.Add(-6 * 24 * time.Hour), Last: now.Add(-time.Duration(i) * time.Hour),
			Sender: auth.Sender{Address: netip.MustParseAddr("203.0.113.7"), UserAgent: agent, Service: []string{"digest-worker", ""}[i]}})
	}
	if err := s.Use(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	err := s.AddRefusals(t.Context(), []accounts.Refusal{
		{At: now, Code: 401, Reason: "hash_mismatch", Address: "198.51.100.9", Prefix: a.KeyPrefix, Path: "/v1/logs", UserAgent: "python-requests/2.32", RequestID: "00112233aabbccdd", Count: 17},
		{At: now, Code: 401, Reason: "malformed", Address: "198.51.100.9", Path: "/v1/logs", RequestID: "00112233aabbccde", Count: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestUsageOnTheAccountsPage: the chart and its table, the senders, what was refused, and nothing of it for other orgs.
func TestUsageOnTheAccountsPage(t *testing.T) {
	s := newSite(t)
	a := s.account(t, "nightly-digest-summariser", auth.Production).Account
	quiet := s.account(t, "eval-harness", auth.Staging).Account
	s.seedUsage(t, a)
	session := s.session(t, "acme", auth.SettingsIntegrationsUpdate)
	get := func(path string) string { return string(s.do(t, session, http.MethodGet, path, nil).body) }
	text := get(listPath + "/" + a.ID)
	for _, want := range []string{
		"Usage", "<svg", `class="sent"`, "<caption>Records a quarter of a day", "203.0.113.7", "OTel-OTLP-Exporter-Python/1.38.0", "digest-worker", "1,234",
		"curl/8.14.1 &lt;b&gt;bold&lt;/b&gt;", "Known prefix, wrong secret", "198.51.100.9", "17 times", "/settings/ai/refusals?account=" + a.ID,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(text, "00112233aabbccde") {
		t.Error("a refusal that belongs to no key is on the page")
	}
	if text := get(listPath + "/" + quiet.ID); !strings.Contains(text, "Nothing was sent in this time") || strings.Contains(text, "203.0.113.7") {
		t.Error("the page of an account without use")
	}
	list := get("/settings/ai/refusals")
	if !strings.Contains(list, "Known prefix, wrong secret") || strings.Contains(list, "00112233aabbccde") {
		t.Error("the page of refused requests")
	}
	if list := get("/settings/ai/refusals?q=" + quiet.KeyPrefix); !strings.Contains(list, "No refused request matches") {
		t.Error("a filter by another key finds something")
	}
	if list := get("/settings/ai/refusals?q=nonsense"); !strings.Contains(list, "prefix looks like") {
		t.Error("what is no prefix is not explained")
	}
	// Who deletes in an incident sees who would be refused.
	if err := s.Stamp(t.Context(), []auth.Stamp{{Prefix: a.KeyPrefix, First: time.Now().Add(-time.Hour), Last: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	dialog := get(listPath + "?delete=" + a.ID)
	for _, want := range []string{"something in production is using it now:", "203.0.113.7", "digest-worker", "OTel-OTLP-Exporter-Python/1.38.0", "curl/8.14.1 &lt;b&gt;bold&lt;/b&gt;"} {
		if !strings.Contains(dialog, want) {
			t.Errorf("the dialog lacks %q", want)
		}
	}
	rival := s.session(t, "rival", auth.SettingsIntegrationsUpdate)
	if list := string(s.do(t, rival, http.MethodGet, "/settings/ai/refusals", nil).body); !strings.Contains(list, "Nothing was refused") {
		t.Error("another organisation sees what was refused here")
	}
}
