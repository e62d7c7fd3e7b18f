package signals

import (
	"net/http"
	"time"
)

// filter reads the parameters that choose alerts. Several values of one are joined by or.
func (q *query) filter() AlertFilter {
	f := AlertFilter{Account: q.text("account"), Environments: q.list("environment"), Types: q.list("type"), Since: q.time("since"), Until: q.time("until")}
	switch open := q.text("open"); open {
	case "":
	case "true", "false":
		is := open == "true"
		f.Open = &is
	default:
		q.fail("open", "must be true or false")
	}
	for _, s := range q.list("severity") {
		severity, ok := ParseSeverity(s)
		if !ok {
			q.fail("severity", "must be INFO, WARN or BLOCK")
		}
		f.Severities = append(f.Severities, severity)
	}
	for _, s := range q.list("category") {
		f.Categories = append(f.Categories, Category(s))
	}
	return f
}

type alertPage struct {
	Items      []*Alert `json:"items"`
	NextCursor string   `json:"next_cursor,omitempty"`
}

func pointers(list []Alert) []*Alert {
	out := make([]*Alert, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}

func (a *API) listAlerts(q *request) error {
	params, err := q.query()
	if err != nil {
		return err
	}
	f := params.filter()
	f.Sort, f.Cursor, f.Limit = AlertSort(params.text("sort")), params.text("cursor"), params.number("limit", 1, MaxLimit)
	if err := params.done(); err != nil {
		return err
	}
	page, err := a.cfg.Store.Alerts(q.r.Context(), q.admin.Org, f)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, alertPage{pointers(page.Items), page.NextCursor})
}

func (a *API) alertCounts(q *request) error {
	n, err := a.cfg.Store.Unacknowledged(q.r.Context(), q.admin.Org)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, map[string]any{"unacknowledged": n, "more": n == MaxCounted})
}

func (a *API) alertHistogram(q *request) error {
	params, err := q.query()
	if err != nil {
		return err
	}
	f := params.filter()
	n := params.number("buckets", 1, 500)
	if err := params.done(); err != nil {
		return err
	}
	if n == 0 {
		n = 48
	}
	if f.Until.IsZero() {
		f.Until = a.cfg.Now()
	}
	if f.Since.IsZero() {
		f.Since = f.Until.Add(-24 * time.Hour)
	}
	buckets, err := a.cfg.Store.Histogram(q.r.Context(), q.admin.Org, f, n)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, map[string]any{"since": f.Since.UTC(), "until": f.Until.UTC(), "buckets": buckets})
}

func (a *API) getAlert(q *request) error {
	alert, err := a.cfg.Store.Alert(q.r.Context(), q.admin.Org, q.r.PathValue("id"))
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, &alert)
}

// A resolving is the body of the resolve calls.
type resolving struct {
	IDs        []string   `json:"ids"`
	Resolution Resolution `json:"resolution"`
	Note       string     `json:"note"`
}

func (a *API) resolveOne(q *request) error {
	var b resolving
	if err := q.read(&b); err != nil {
		return err
	}
	if b.IDs != nil {
		return badField("ids", "belongs to /api/v1/alerts/resolve")
	}
	b.IDs = []string{q.r.PathValue("id")}
	alerts, err := a.resolve(q, b)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, &alerts[0])
}

func (a *API) resolveMany(q *request) error {
	var b resolving
	if err := q.read(&b); err != nil {
		return err
	}
	alerts, err := a.resolve(q, b)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, alertPage{Items: pointers(alerts)})
}

func (a *API) resolve(q *request, b resolving) ([]Alert, error) {
	return a.cfg.Store.Resolve(q.r.Context(), q.admin.Org, q.by, b.IDs, b.Resolution, b.Note)
}

func (a *API) reopenOne(q *request) error {
	var nothing struct{}
	if err := q.read(&nothing); err != nil {
		return err
	}
	alerts, err := a.cfg.Store.Reopen(q.r.Context(), q.admin.Org, q.by, []string{q.r.PathValue("id")})
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, &alerts[0])
}

func (a *API) reopenMany(q *request) error {
	var b struct {
		IDs []string `json:"ids"`
	}
	if err := q.read(&b); err != nil {
		return err
	}
	alerts, err := a.cfg.Store.Reopen(q.r.Context(), q.admin.Org, q.by, b.IDs)
	if err != nil {
		return err
	}
	return q.json(http.StatusOK, alertPage{Items: pointers(alerts)})
}

type droppedRecords struct {
	Type   string    `json:"type"`
	Reason Reason    `json:"reason"`
	Count  int64     `json:"count"`
	LastAt time.Time `json:"last_at"`
}

// dropped answers what the filter dropped of an account, or what it sent that was invalid. An account of another org has none here.
func (a *API) dropped(q *request, outcome Outcome) error {
	params, err := q.query()
	if err != nil {
		return err
	}
	since := params.time("since")
	if err := params.done(); err != nil {
		return err
	}
	if since.IsZero() {
		since = a.cfg.Now().Add(-30 * 24 * time.Hour)
	}
	id := q.r.PathValue("id")
	if badText(id) {
		return ErrNotFound
	}
	drops, err := a.cfg.Store.Drops(q.r.Context(), q.admin.Org, "service_account", id, since)
	if err != nil {
		return err
	}
	items := []droppedRecords{}
	for _, d := range drops {
		if OutcomeOf(d.Reason) == outcome {
			items = append(items, droppedRecords{d.Type, d.Reason, d.Count, d.LastAt})
		}
	}
	return q.json(http.StatusOK, map[string]any{"since": since.UTC().Truncate(24 * time.Hour), "items": items})
}
