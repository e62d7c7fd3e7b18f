package console

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// accountDialogs is what may lie over a page about accounts; at most one is set.
type accountDialogs struct {
	Create *createDialog
	Edit   *editDialog
	Delete *deleteDialog
	Reveal *revealDialog
	Shown  *shownDialog
}

type createDialog struct {
	Title, Action, CloseURL string
	Token                   string // makes a repeated post the same post
	Form                    accountForm
}

type editDialog struct {
	Label, Action, CloseURL, DeleteURL string
	KeyPrefix                          string
	Version                            int64
	Form                               accountForm
	Try                                tryView
}

type deleteDialog struct {
	Label, Action, CloseURL string
	Environment, KeyPrefix  string
	LastSeen                whenView
	Busy                    bool         // it has sent within the last day
	Senders                 []senderView // the latest of that day
	MoreSenders             string
	UsageURL                string
	Rules                   []string
}

type revealDialog struct {
	ID, Label, CloseURL string
	Key, KeyPrefix      string
	Snippets            []snippet
	Waiting             waitingView
}

type snippet struct{ Title, Text string }

// A waitingView is the line that turns when the first event arrives.
type waitingView struct {
	URL  string // answers {"first_seen_at"}
	Seen whenView
}

type shownDialog struct{ Label, AccountURL, CloseURL string }

const environmentNote = "A change of environment holds for signals from now on: as raised in production, WARN at most in staging, INFO at most in development. Signals of the past keep their severity, and the key stays the same."

// dialogs makes the dialog that the query asks for: create, edit or delete. here is the page's own address without it.
func (c *Console) dialogs(r *http.Request, v *visit, here string) (accountDialogs, error) {
	q := r.URL.Query()
	var d accountDialogs
	switch {
	case q.Get("create") != "":
		create, err := c.createDialog(r.Context(), v, here, q)
		if err != nil {
			return d, err
		}
		d.Create = create
	case q.Get("edit") != "":
		a, err := c.liveAccount(r.Context(), v, q.Get("edit"))
		if err != nil {
			return d, err
		}
		d.Edit = newEditDialog(a, here)
		d.Edit.Try = c.tryView(a, a.IntendedScope, "")
	case q.Get("delete") != "":
		a, err := c.liveAccount(r.Context(), v, q.Get("delete"))
		if err != nil {
			return d, err
		}
		d.Delete = c.deleteDialog(r.Context(), v, a, here)
	}
	return d, nil
}

// liveAccount is the account to change. A deleted one has nothing to change, so its dialogs do not exist.
func (c *Console) liveAccount(ctx context.Context, v *visit, id string) (accounts.Account, error) {
	a, err := c.store.Account(ctx, v.admin.Org, id)
	if err != nil {
		return a, err
	}
	if !a.Live() {
		return a, errNotFound
	}
	return a, nil
}

// createDialog is empty, or with from=ID filled as the twin of an account: for another environment where it is live, as
// it was where it is deleted.
func (c *Console) createDialog(ctx context.Context, v *visit, here string, q url.Values) (*createDialog, error) {
	d := &createDialog{Title: "Create service account", Action: accountsPath, CloseURL: here, Token: rand.Text()}
	a := accounts.Account{AbuseDetection: true}
	if from := q.Get("from"); from != "" {
		like, err := c.store.Account(ctx, v.admin.Org, from)
		if err != nil {
			return nil, err
		}
		a = like
		if like.Live() {
			d.Title = "Create " + like.Name + " in another environment"
			a.Environment = otherEnvironment(like.Environment)
		} else {
			d.Title = "Recreate " + label(like)
		}
	}
	d.Form = newAccountForm(a)
	return d, nil
}

// otherEnvironment is where a counterpart is most likely wanted.
func otherEnvironment(environment string) string {
	if environment == auth.Production {
		return auth.Staging
	}
	return auth.Production
}

func newEditDialog(a accounts.Account, here string) *editDialog {
	d := &editDialog{
		Label: label(a), Action: accountURL(a.ID) + "/edit", CloseURL: here, DeleteURL: withParam(here, "delete", a.ID),
		KeyPrefix: a.KeyPrefix, Version: a.Version, Form: newAccountForm(a),
	}
	d.Form.EnvironmentNote = environmentNote
	return d
}

// busyHours is for how long after its last request an account counts as in use.
const busyHours = 24

func (c *Console) deleteDialog(ctx context.Context, v *visit, a accounts.Account, here string) *deleteDialog {
	d := &deleteDialog{
		Label: label(a), Action: accountURL(a.ID) + "/delete", CloseURL: here, Environment: a.Environment, KeyPrefix: a.KeyPrefix,
		LastSeen: c.render.when(a.LastSeenAt), Busy: !a.LastSeenAt.IsZero() && c.now().Sub(a.LastSeenAt).Hours() < busyHours,
	}
	if d.Busy {
		if err := c.dialogSenders(ctx, d, a); err != nil {
			c.log.WarnContext(ctx, "senders of an account unknown", "request_id", v.request, "error", cutKeys(err.Error()))
		}
	}
	if c.rules != nil {
		rules, err := c.rules(ctx, v.admin.Org, a.ID, a.Name, a.Environment)
		if err != nil {
			c.log.WarnContext(ctx, "policy rules of an account unknown", "request_id", v.request, "error", err.Error())
		}
		d.Rules = rules
	}
	return d
}

// dialogSenders fills in who would be refused from now on: who deletes in a hurry has not been on the account's page.
func (c *Console) dialogSenders(ctx context.Context, d *deleteDialog, a accounts.Account) error {
	const most = 3
	now := c.now()
	use, err := c.store.AccountUsage(ctx, a.Org, a.ID, now.Add(-time.Hour), now)
	if err != nil {
		return err
	}
	var all []accounts.KeySender
	for _, k := range use.Keys {
		for _, s := range k.Senders {
			if k.Key.Active() && now.Sub(s.Last).Hours() < busyHours {
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all, func(a, b accounts.KeySender) int { return b.Last.Compare(a.Last) })
	for i, s := range all {
		if i == most {
			d.MoreSenders = grouped(int64(len(all) - most))
			break
		}
		d.Senders = append(d.Senders, c.senderView(s))
	}
	d.UsageURL = accountURL(a.ID) + "#usage-title"
	return nil
}

func (c *Console) revealDialog(created accounts.Created) *revealDialog {
	a := created.Account
	return &revealDialog{
		ID: a.ID, Label: label(a), CloseURL: accountsPath, Key: created.Key, KeyPrefix: a.KeyPrefix,
		Snippets: snippets(c.edgeURL, a, created.Key), Waiting: c.waiting(a),
	}
}

func (c *Console) waiting(a accounts.Account) waitingView {
	return waitingView{URL: accountURL(a.ID) + "/first-event", Seen: c.render.when(a.FirstSeenAt)}
}

// snippets is what to paste where, with the key in it.
func snippets(edgeURL string, a accounts.Account, key string) []snippet {
	otel := "export OTEL_EXPORTER_OTLP_ENDPOINT=" + edgeURL + "\n" +
		"export OTEL_EXPORTER_OTLP_HEADERS=\"x-flowstate-key=" + key + "\"\n" +
		"export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf\n"
	return []snippet{
		{"OpenTelemetry", otel},
		{"Claude Code", "export CLAUDE_CODE_ENABLE_TELEMETRY=1\nexport OTEL_LOGS_EXPORTER=otlp\nexport OTEL_METRICS_EXPORTER=otlp\n" + otel},
		{"cron, with curl", "#!/bin/sh\n# With an id and a detected_at, a retry is the same signal, not a second one.\n" +
			"curl --fail-with-body --silent --show-error --retry 3 " + edgeURL + "/v1/signals \\\n" +
			"  -H 'x-flowstate-key: " + key + "' \\\n  -H 'content-type: application/json' \\\n" +
			"  -d \"{\\\"type\\\": \\\"forecast_breach\\\", \\\"id\\\": \\\"" + dnsName(a.Name) + "-$(date -u +%F)\\\", \\\"detected_at\\\": \\\"$(date -u +%FT%TZ)\\\"}\"\n"},
		{"Kubernetes Secret", "apiVersion: v1\nkind: Secret\nmetadata:\n  name: sluice-" + dnsName(a.Name) + "-" + a.Environment + "\ntype: Opaque\nstringData:\n" +
			"  OTEL_EXPORTER_OTLP_ENDPOINT: \"" + edgeURL + "\"\n  OTEL_EXPORTER_OTLP_HEADERS: \"x-flowstate-key=" + key + "\"\n" +
			"  OTEL_EXPORTER_OTLP_PROTOCOL: http/protobuf\n"},
	}
}

// dnsName makes a name fit for an object of Kubernetes and for a shell: an account's own may hold anything.
func dnsName(name string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			b.WriteRune(r)
		} else if b.Len() > 0 && !strings.HasSuffix(b.String(), "-") {
			b.WriteByte('-')
		}
	}
	if s := strings.Trim(b.String(), "-"); s != "" {
		return s
	}
	return "workload"
}

// label is how a person calls an account.
func label(a accounts.Account) string { return a.Name + " / " + a.Environment }

func accountURL(id string) string { return accountsPath + "/" + url.PathEscape(id) }

// withParam is the local address with one parameter set.
func withParam(address, name, value string) string {
	path, query, _ := strings.Cut(address, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		q = url.Values{} // only addresses that we made come here
	}
	q.Set(name, value)
	return path + "?" + q.Encode()
}

// backTo is where a form came from: one of our own pages about accounts, or the list.
func backTo(r *http.Request) string {
	back := r.PostFormValue("back")
	u, err := url.Parse(back)
	if err != nil || u.IsAbs() || u.Host != "" || (u.Path != accountsPath && !strings.HasPrefix(u.Path, accountsPath+"/")) {
		return accountsPath
	}
	return back
}
