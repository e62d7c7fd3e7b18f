package console_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"flowstate.inc/sluice/auth"
)

func TestSmoke(t *testing.T) {
	s := newSite(t)
	s.seed(t, 0)
	id := s.session(t, "acme", auth.AllPermissions()...)
	for _, path := range []string{listPath, listPath + "?create=1", listPath + "?state=deleted", listPath + "?q=nothing", "/sign-in/once?token=abc", "/nowhere"} {
		a := s.do(t, id, http.MethodGet, path, nil)
		if a.StatusCode >= 500 {
			t.Errorf("%s: %d %s\n%s", path, a.StatusCode, a.text(t), s.log)
		}
		if len(a.body) > 60<<10 {
			t.Errorf("%s: %d bytes", path, len(a.body))
		}
	}
	a := s.do(t, id, http.MethodPost, listPath, url.Values{"name": {"x"}, "environment": {"production"}, "token": {"t1"}})
	if a.StatusCode != 201 || !strings.Contains(a.body, "fsk_") {
		t.Errorf("create: %d\n%s\n%s", a.StatusCode, a.text(t), s.log)
	}
}
