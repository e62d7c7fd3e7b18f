package console

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"flowstate.inc/sluice/accounts"
)

const refusalsPath = "/settings/ai/refusals"

// A refusalView is one refused request in words, or several of the same sender within a second.
type refusalView struct {
	Why, Address, Prefix, Path, UserAgent, RequestID string
	Code                                             int
	Count                                            string // "" for one
	At                                               whenView
}

type refusalsPage struct {
	frame
	BaseURL           string
	Q                 string // what is looked for: a key's prefix
	Account           string // id, kept while paging
	AccountLabel      string
	Problem           string
	Rows              []refusalView
	ClearURL          string
	NextURL, FirstURL string
}

// whyRefused says a reason of the edge as people do; another one is shown by its own name.
func whyRefused(reason string) string {
	words := map[string]string{
		"revoked":           "Revoked key",
		"hash_mismatch":     "Known prefix, wrong secret",
		"slug_mismatch":     "Key of another organisation than its user name says",
		"rate_limited":      "Over the key’s limit",
		"unknown":           "Unknown key",
		"malformed_body":    "Body that cannot be read",
		"nothing_valid":     "No valid signal in it",
		"content_type":      "Wrong Content-Type",
		"content_encoding":  "Wrong Content-Encoding",
		"body_too_large":    "Body too large",
		"body_cut":          "Body cut off",
		"timeout":           "Too slow",
		"method":            "Wrong method",
		"headers_too_large": "Headers too large",
	}
	if w, ok := words[reason]; ok {
		return w
	}
	return strings.ReplaceAll(reason, "_", " ")
}

func (c *Console) refusalView(r accounts.Refusal) refusalView {
	v := refusalView{Why: whyRefused(r.Reason), Address: r.Address, Prefix: r.Prefix, Path: r.Path, UserAgent: r.UserAgent, RequestID: r.RequestID, Code: r.Code, At: c.render.when(r.At)}
	if r.Count > 1 {
		v.Count = grouped(r.Count)
	}
	return v
}

// refusals lists what the edges refused of this org's keys.
func (c *Console) refusals(w http.ResponseWriter, r *http.Request, v *visit) error {
	q := r.URL.Query()
	p := &refusalsPage{frame: c.frame(w, r, v, refusalsPath, "Refused requests"), BaseURL: refusalsPath, Q: strings.TrimSpace(q.Get("q")), Account: q.Get("account")}
	f := accounts.RefusalFilter{Prefix: p.Q, Account: p.Account, Cursor: q.Get("cursor")}
	if p.Account != "" {
		a, err := c.store.Account(r.Context(), v.admin.Org, p.Account)
		if err != nil {
			return err
		}
		p.AccountLabel = label(a)
	}
	here := func(cursor string) string {
		u := url.Values{}
		for name, value := range map[string]string{"q": cutKeys(p.Q), "account": p.Account, "cursor": cursor} {
			if value != "" {
				u.Set(name, value)
			}
		}
		if len(u) == 0 {
			return refusalsPath
		}
		return refusalsPath + "?" + u.Encode()
	}
	if p.Q != "" || p.Account != "" {
		p.ClearURL = refusalsPath
	}
	page, err := c.store.Refusals(r.Context(), v.admin.Org, f)
	var invalid *accounts.InvalidError
	if errors.As(err, &invalid) && p.Q != "" {
		p.Problem = "A key’s prefix looks like fsk_ and twelve letters or digits; a whole key is cut to it."
	} else if err != nil {
		return err
	}
	p.Q = cutKeys(p.Q)
	for _, item := range page.Items {
		p.Rows = append(p.Rows, c.refusalView(item))
	}
	if page.Next != "" {
		p.NextURL = here(page.Next)
	}
	if f.Cursor != "" {
		p.FirstURL = here("")
	}
	return c.show(w, r, http.StatusOK, "refusals", p)
}
