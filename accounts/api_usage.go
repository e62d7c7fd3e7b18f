package accounts

import (
	"net/http"
	"time"

	"flowstate.inc/sluice/auth"
)

// usageCounts is what was done with a key, as the API says it.
type usageCounts struct {
	Requests    int64 `json:"requests"`
	Sent        int64 `json:"sent"`
	Filtered    int64 `json:"filtered"`
	Invalid     int64 `json:"invalid"`
	Unavailable int64 `json:"unavailable"`
	Refused     int64 `json:"refused"`
	Bytes       int64 `json:"bytes"`
}

func countsOf(u auth.Usage) usageCounts {
	return usageCounts{u.Requests, u.Accepted, u.Filtered, u.Invalid, u.Unavailable, u.Refused, u.Bytes}
}

type usageBucket struct {
	At *string `json:"at"`
	usageCounts
}

type usageSender struct {
	Address   string  `json:"address"`
	UserAgent *string `json:"user_agent"`
	Service   *string `json:"service_name"`
	First     *string `json:"first_seen_at"`
	Last      *string `json:"last_seen_at"`
	Requests  int64   `json:"requests"`
}

type keyUsage struct {
	Prefix     string        `json:"prefix"`
	State      string        `json:"state"`
	LastUsedAt *string       `json:"last_used_at"`
	Total      usageCounts   `json:"total"`
	Buckets    []usageBucket `json:"buckets"`
	Senders    []usageSender `json:"senders"`
}

type usageAnswer struct {
	Since         *string    `json:"since"`
	Until         *string    `json:"until"`
	BucketSeconds int        `json:"bucket_seconds"`
	Keys          []keyUsage `json:"keys"`
}

func (a *API) accountUsage(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	id, err := accountID(r)
	if err != nil {
		return err
	}
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	since, until := q.time("since"), q.time("until")
	if err := q.done(); err != nil {
		return err
	}
	u, err := a.cfg.Store.AccountUsage(r.Context(), admin.Org, id, since, until)
	if err != nil {
		return err
	}
	out := usageAnswer{Since: jsonTime(u.Since), Until: jsonTime(u.Until), BucketSeconds: int(time.Hour / time.Second), Keys: []keyUsage{}}
	for _, k := range u.Keys {
		one := keyUsage{k.Key.Prefix, k.Key.State(), jsonTime(k.Key.LastUsedAt), countsOf(k.Total), []usageBucket{}, []usageSender{}}
		for _, b := range k.Buckets {
			one.Buckets = append(one.Buckets, usageBucket{jsonTime(b.At), countsOf(b.Usage)})
		}
		for _, s := range k.Senders {
			one.Senders = append(one.Senders, usageSender{s.Address, jsonText(s.UserAgent), jsonText(s.Service), jsonTime(s.First), jsonTime(s.Last), s.Requests})
		}
		out.Keys = append(out.Keys, one)
	}
	return WriteJSON(w, http.StatusOK, out)
}

func (a *API) listRefusals(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	f := RefusalFilter{Prefix: q.text("prefix"), Account: q.text("account"), Reasons: distinct(q.list("reason")), Cursor: q.text("cursor"), Limit: q.limit()}
	if err := q.done(); err != nil {
		return err
	}
	p, err := a.cfg.Store.Refusals(r.Context(), admin.Org, f)
	if err != nil {
		return err
	}
	return writePage(w, p)
}
