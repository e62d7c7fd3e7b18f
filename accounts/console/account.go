package console

import (
	"context"
	"fmt"
	"html/template"
	"net/http"
	"net/url"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// A Section is a card on an account's page that another room fills: usage, the signal trail. It returns HTML that
// html/template escaped; "" shows nothing. It is called for admins who may open the page, and asks itself whether admin
// may see what it shows.
type Section func(ctx context.Context, admin auth.Admin, a accounts.Account) (template.HTML, error)

// latestEvents is how many rows of the audit an account's page shows; the log has them all.
const latestEvents = 5

type accountPage struct {
	frame
	ListURL, EditURL, DeleteURL, TwinURL, RecreateURL string
	ID, Name, Environment                             string
	Description, IntendedScope, Team, CostCentre      string
	Limits                                            string // "" where the edge's defaults hold
	AbuseDetection, Deleted                           bool
	FirstSeen, LastSeen                               whenView
	CreatedAt, UpdatedAt, DeletedAt                   whenView
	Waiting                                           waitingView
	AtEdges                                           *deletion // nil: nothing of its deletion is to be said
	Sections                                          []template.HTML
	Trail                                             *trail
	Keys                                              []keyView
	MayAudit                                          bool
	AuditURL                                          string
	Events                                            []eventView
	Dialogs                                           accountDialogs
}

type keyView struct {
	Prefix                         string
	Active                         bool
	CreatedBy, RevokedBy           string
	CreatedAt, RevokedAt, LastUsed whenView
}

func (c *Console) account(w http.ResponseWriter, r *http.Request, v *visit) error {
	a, err := c.store.Account(r.Context(), v.admin.Org, r.PathValue("id"))
	if err != nil {
		return err
	}
	p, err := c.accountPage(w, r, v, a)
	if err != nil {
		return err
	}
	if p.Dialogs, err = c.dialogs(r, v, accountURL(a.ID)); err != nil {
		return err
	}
	return c.show(w, r, http.StatusOK, "account", p)
}

// accountPage is the page of one account, without a dialog over it.
func (c *Console) accountPage(w http.ResponseWriter, r *http.Request, v *visit, a accounts.Account) (*accountPage, error) {
	here := accountURL(a.ID)
	again := withParam(withParam(here, "create", "1"), "from", a.ID)
	p := &accountPage{
		frame: c.frame(w, r, v, accountsPath, label(a)), ListURL: accountsPath, EditURL: withParam(here, "edit", a.ID),
		DeleteURL: withParam(here, "delete", a.ID), TwinURL: again, RecreateURL: again,
		ID: a.ID, Name: a.Name, Environment: a.Environment, Description: a.Description, IntendedScope: a.IntendedScope,
		Team: a.Team, CostCentre: a.CostCentre, Limits: limits(a.Limits), AbuseDetection: a.AbuseDetection, Deleted: !a.Live(),
		FirstSeen: c.render.when(a.FirstSeenAt), LastSeen: c.render.when(a.LastSeenAt), CreatedAt: c.render.when(a.CreatedAt),
		UpdatedAt: c.render.when(a.UpdatedAt), DeletedAt: c.render.when(a.DeletedAt), Waiting: c.waiting(a), AtEdges: c.atEdges(r, v, a),
		MayAudit: v.admin.Can(auth.AIGovernanceView), AuditURL: auditPath + "?target=" + url.QueryEscape(a.ID),
	}
	p.Shortcuts = append([]shortcut{{"e", "Edit the account"}}, p.Shortcuts[1:]...)
	keys, err := c.store.AccountKeys(r.Context(), v.admin.Org, a.ID)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		p.Keys = append(p.Keys, keyView{
			Prefix: k.Prefix, Active: k.Active(), CreatedBy: k.CreatedBy, RevokedBy: k.RevokedBy, CreatedAt: c.render.when(k.CreatedAt),
			RevokedAt: c.render.when(k.RevokedAt), LastUsed: c.render.when(k.LastUsedAt),
		})
	}
	if p.MayAudit {
		if p.Events, err = c.eventsOf(r.Context(), v, a.ID); err != nil {
			return nil, err
		}
	}
	if c.signals != nil && v.admin.Can(auth.AIGovernanceView) {
		if p.Trail, err = c.trail(r.Context(), v, a.ID); err != nil {
			return nil, err
		}
	}
	for _, section := range c.sections {
		html, err := section(r.Context(), v.admin, a)
		if err != nil {
			c.log.WarnContext(r.Context(), "section of an account's page failed", "request_id", v.request, "error", cutKeys(err.Error()))
			continue
		}
		if html != "" {
			p.Sections = append(p.Sections, html)
		}
	}
	return p, nil
}

// limits says what one edge lets the account send, where that is not the edge's default.
func limits(l auth.Limits) string {
	switch {
	case l.RequestsPerSecond > 0 && l.BytesPerSecond > 0:
		return fmt.Sprintf("%d requests and %d bytes a second", l.RequestsPerSecond, l.BytesPerSecond)
	case l.RequestsPerSecond > 0:
		return fmt.Sprintf("%d requests a second", l.RequestsPerSecond)
	case l.BytesPerSecond > 0:
		return fmt.Sprintf("%d bytes a second", l.BytesPerSecond)
	}
	return ""
}
