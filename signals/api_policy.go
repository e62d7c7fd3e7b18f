package signals

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
)

// noPolicy is the answer for an org that has never activated one: no rule decides anything.
type noPolicy struct {
	Version     int64      `json:"version"`
	Active      bool       `json:"active"`
	Rules       []Rule     `json:"rules"`
	ActivatedAt *time.Time `json:"activated_at"`
	ActivatedBy *string    `json:"activated_by"`
}

func (a *API) activePolicy(q *request) error {
	v, err := a.cfg.Store.ActivePolicyVersion(q.r.Context(), q.admin.Org)
	if errors.Is(err, ErrNotFound) {
		return q.json(http.StatusOK, noPolicy{Rules: []Rule{}})
	}
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, v)
}

func (a *API) listVersions(q *request) error {
	list, err := a.cfg.Store.PolicyVersions(q.r.Context(), q.admin.Org)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, map[string]any{"items": list})
}

func (a *API) getVersion(q *request) error {
	n, err := strconv.ParseInt(q.r.PathValue("version"), 10, 64)
	if err != nil {
		return ErrNotFound
	}
	v, err := a.cfg.Store.PolicyVersion(q.r.Context(), q.admin.Org, n)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, v)
}

func (a *API) variables(q *request) error {
	return q.json(http.StatusOK, map[string]any{"items": Variables()})
}

func (a *API) listDrafts(q *request) error {
	list, err := a.cfg.Store.Drafts(q.r.Context(), q.admin.Org)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, map[string]any{"items": list})
}

// draft reads a draft of the admin's org, by an id that may be anything.
func (a *API) draft(q *request, id string) (Draft, error) {
	if badText(id) {
		return Draft{}, ErrNotFound
	}
	return a.cfg.Store.Draft(q.r.Context(), q.admin.Org, id)
}

func (a *API) getDraft(q *request) error {
	d, err := a.draft(q, q.r.PathValue("id"))
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, d)
}

func (a *API) createDraft(q *request) error {
	b, err := q.body()
	if err != nil {
		return err
	}
	in, err := ParseDraft(b)
	if err != nil {
		return err
	}
	p, err := a.cfg.Compiler.Compile(0, in.Rules)
	if err != nil {
		return err
	}
	d, err := a.cfg.Store.CreateDraft(q.r.Context(), q.admin.Org, q.by, in)
	if err != nil {
		return err
	}
	q.w.Header().Set("Location", "/api/v1/policy/drafts/"+d.ID)
	return q.json(http.StatusCreated, struct {
		Draft
		Warnings []PolicyError `json:"warnings"`
	}{d, append(append([]PolicyError{}, p.Warnings...), a.unknownAccounts(q, in.Rules)...)})
}

// unknownAccounts warns of accounts that are not there. Where nobody knows, nothing is said: the draft is good all the same.
func (a *API) unknownAccounts(q *request, rules []Rule) []PolicyError {
	if a.cfg.Account == nil || a.cfg.AccountByName == nil {
		return nil
	}
	warnings, err := UnknownAccounts(rules, func(id, name, environment string) (bool, error) {
		var err error
		if id != "" {
			_, err = a.cfg.Account(q.r.Context(), q.admin.Org, "", id)
		} else {
			_, err = a.cfg.AccountByName(q.r.Context(), q.admin.Org, "", name, environment)
		}
		if errors.Is(err, auth.ErrNoKey) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return nil
	}
	return warnings
}

// activate compiles the draft once more: the types that there are may have changed since it was written, and what does not
// compile must not come into force.
func (a *API) activate(q *request) error {
	var nothing struct{}
	if err := q.read(&nothing); err != nil {
		return err
	}
	d, err := a.draft(q, q.r.PathValue("id"))
	if err != nil {
		return err
	}
	if _, err := a.cfg.Compiler.Compile(0, d.Rules); err != nil {
		return err
	}
	v, err := a.cfg.Store.Activate(q.r.Context(), q.admin.Org, d.ID, q.by)
	if err != nil {
		return err
	}
	// The next signal of this process is decided by it; other edges look twice a second.
	a.cfg.Policies.Refresh(context.WithoutCancel(q.r.Context()))
	return q.json(http.StatusOK, v)
}

// Limits of a simulation.
const (
	simulateDays = 7 // unless said
	simulateMost = 100_000
)

func (a *API) simulate(q *request) error {
	b := struct {
		Days int `json:"days"`
	}{simulateDays}
	if err := q.read(&b); err != nil {
		return err
	}
	if b.Days < 1 || b.Days > 365 {
		return badField("days", "must be 1 to 365")
	}
	d, err := a.draft(q, q.r.PathValue("id"))
	if err != nil {
		return err
	}
	p, err := a.cfg.Compiler.Compile(0, d.Rules)
	if err != nil {
		return err
	}
	s := a.cfg.Decider.Simulate(p)
	since := a.cfg.Now().Add(-time.Duration(b.Days) * 24 * time.Hour)
	s.Truncated, err = a.cfg.Store.Each(q.r.Context(), q.admin.Org, since, simulateMost, func(alert *Alert) bool {
		s.Add(&alert.Event)
		return true
	})
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, s)
}

// An explaining is the body of explain: a stored alert, or a signal as it would be sent and by whom.
type explaining struct {
	Alert   string          `json:"alert"`   // id of an alert
	Signal  json.RawMessage `json:"signal"`  // an item as of POST /v1/signals
	Account string          `json:"account"` // whose key sends it: id or name/environment; "": a person's
	Draft   string          `json:"draft"`   // id of a draft to explain by, instead of the active policy
}

// An explained is the answer of explain.
type explained struct {
	Outcome Outcome `json:"outcome"`
	Reason  *Reason `json:"reason"` // why it would be filtered or invalid
	Detail  string  `json:"detail,omitempty"`
	Event   *Event  `json:"event"` // as it would stand, or stands, on the topic; null where it would not
	*Explanation
}

func (a *API) explain(q *request) error {
	var b explaining
	if err := q.read(&b); err != nil {
		return err
	}
	p := a.cfg.Policies.Policy(q.admin.Org)
	if b.Draft != "" {
		d, err := a.draft(q, b.Draft)
		if err != nil {
			return err
		}
		p, err = a.cfg.Compiler.Compile(0, d.Rules)
		if err != nil {
			return err
		}
	}
	if (b.Alert == "") == (b.Signal == nil) {
		return badField("body", "must have either alert, the id of one, or signal, as it would be sent")
	}
	if b.Alert != "" {
		alert, err := a.cfg.Store.Alert(q.r.Context(), q.admin.Org, b.Alert)
		if err != nil {
			return err
		}
		x := a.cfg.Decider.Explain(p, &alert.Event)
		return q.json(http.StatusOK, explained{Outcome: Accepted, Event: &alert.Event, Explanation: &x})
	}
	return a.explainSignal(q, p, b)
}

func (a *API) explainSignal(q *request, p *Policy, b explaining) error {
	sender, err := a.sender(q, b.Account)
	if err != nil {
		return err
	}
	items, err := ParseRequest("application/json", b.Signal, "", Limits{Items: 1})
	if err != nil || len(items) != 1 {
		return badField("signal", "must be one signal, as it would be sent to POST /v1/signals")
	}
	v := a.cfg.Decider.withoutPolicy().Decide(q.r.Context(), sender, &items[0], a.cfg.Now())
	out := explained{Outcome: v.Outcome, Detail: v.Detail}
	if v.Event == nil {
		out.Reason = &v.Reason
		return q.json(http.StatusOK, out)
	}
	x := a.cfg.Decider.Explain(p, v.Event)
	v.Event.Rule, v.Event.Severity = x.Rule, x.Severity
	out.Event, out.Explanation = v.Event, &x
	return q.json(http.StatusOK, out)
}

// sender is who a signal to explain would come from.
func (a *API) sender(q *request, account string) (*auth.Principal, error) {
	if account == "" {
		return &auth.Principal{Org: q.admin.Org, Kind: auth.KindPerson, ID: "somebody", Name: "somebody"}, nil
	}
	var (
		p   *auth.Principal
		err = auth.ErrNoKey
	)
	name, environment, byName := strings.Cut(account, "/")
	if at := strings.LastIndexByte(account, '/'); at >= 0 {
		name, environment = account[:at], account[at+1:]
	}
	switch {
	case badText(account):
	case byName && a.cfg.AccountByName != nil:
		p, err = a.cfg.AccountByName(q.r.Context(), q.admin.Org, "", name, environment)
	case !byName && a.cfg.Account != nil:
		p, err = a.cfg.Account(q.r.Context(), q.admin.Org, "", account)
	}
	if errors.Is(err, auth.ErrNoKey) {
		return nil, badField("account", "is not a service account of this org")
	}
	return p, err
}
