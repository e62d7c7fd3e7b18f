package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/user"
	"strings"
	"time"

	"flowstate.inc/sluice/accounts"
	"flowstate.inc/sluice/auth"
)

// An adminClient speaks the admin API: over the network to a running sluice dev, or to the same handlers in this process on the database.
// The commands have one way to do a thing whichever it is.
type adminClient struct {
	http  *http.Client
	base  string
	token string
	org   string
	close func()
}

// openAdmin reaches the admin API for org: of the database with --postgres-url, else of the sluice dev that runs on --data-dir, else on that
// directory's own database. An empty org means the only one there is.
func openAdmin(ctx context.Context, c *config, org string) (*adminClient, error) {
	store, closeStore, err := openStore(ctx, c)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*adminClient, error) {
		closeStore()
		return nil, err
	}
	if c.postgresURL == "" {
		run, err := readRunFile(c.dataDir)
		if err == nil {
			return openRunning(ctx, run, store, closeStore, org)
		}
		if !errors.Is(err, errNotRunning) {
			return fail(err)
		}
	}
	if org == "" {
		if org, err = onlyOrg(ctx, store); err != nil {
			return fail(err)
		}
	}
	operator := auth.Admin{Org: org, Actor: "cli:" + osUser(), Permissions: auth.AllPermissions()}
	api := accounts.NewAPI(accounts.APIConfig{
		Store:        store,
		Authenticate: func(*http.Request) (auth.Admin, error) { return operator, nil },
		Logger:       discardLogger(),
	})
	return &adminClient{http: &http.Client{Transport: handlerTransport{api}}, base: "http://sluice.local", org: org, close: closeStore}, nil
}

// openRunning goes through the process that runs, so that a change holds for its very next request. Its token is for its own org; for
// another one a token is made for this command and revoked after it.
func openRunning(ctx context.Context, run *runFile, store *accounts.Store, closeStore func(), org string) (*adminClient, error) {
	client := &adminClient{http: &http.Client{Timeout: 2 * time.Minute}, base: run.Admin, token: run.AdminToken, org: run.Org, close: closeStore}
	if org == "" || org == run.Org {
		return client, nil
	}
	token, raw, err := store.CreateToken(ctx, cliBy(), org, "cli", auth.AllPermissions(), time.Now().Add(time.Minute))
	if err != nil {
		closeStore()
		return nil, err
	}
	client.org, client.token = org, raw
	client.close = func() {
		// Should this fail, the token ends by itself within the minute.
		_, _ = store.RevokeToken(context.WithoutCancel(ctx), cliBy(), org, token.Prefix)
		closeStore()
	}
	return client, nil
}

func onlyOrg(ctx context.Context, store *accounts.Store) (string, error) {
	orgs, err := store.Orgs(ctx)
	if err != nil {
		return "", err
	}
	if len(orgs) == 1 {
		return orgs[0].Slug, nil
	}
	if len(orgs) == 0 {
		return "", usagef("there is no org yet: sluice orgs create SLUG makes one")
	}
	return "", usagef("there are %d orgs: give --org", len(orgs))
}

func osUser() string {
	u, err := user.Current()
	if err != nil {
		return "unknown"
	}
	return u.Username
}

// call sends in as JSON (nil: no body) and decodes the answer into out (nil: dropped).
func (c *adminClient) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if res.StatusCode >= 300 {
		return problemError(res.StatusCode, b)
	}
	if out == nil || len(b) == 0 {
		return nil
	}
	return json.Unmarshal(b, out)
}

// problemError is what a problem (RFC 9457) says, as one line.
func problemError(status int, body []byte) error {
	var p struct {
		Title  string `json:"title"`
		Detail string `json:"detail"`
		Errors []struct {
			Field  string `json:"field"`
			Detail string `json:"detail"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &p) != nil || p.Title == "" {
		return fmt.Errorf("the admin API answered %d", status)
	}
	var s strings.Builder
	s.WriteString(p.Title)
	// Where each field has its reason, the sentence above them only points to the list, which nobody sees here.
	if p.Detail != "" && (len(p.Errors) == 0 || !strings.Contains(p.Detail, "errors has what and why")) {
		s.WriteString(": " + p.Detail)
	}
	for i, e := range p.Errors {
		separator := "; "
		if i == 0 {
			separator = ": "
		}
		fmt.Fprintf(&s, "%s%s: %s", separator, e.Field, e.Detail)
	}
	return errors.New(s.String())
}

// A handlerTransport answers requests by a handler in this process.
type handlerTransport struct{ handler http.Handler }

func (t handlerTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	w := &memoryResponse{header: http.Header{}, code: http.StatusOK}
	if req.Body == nil {
		req.Body = http.NoBody
	}
	req.RemoteAddr = "local"
	req.RequestURI = req.URL.RequestURI()
	t.handler.ServeHTTP(w, req)
	return &http.Response{
		StatusCode: w.code, Status: http.StatusText(w.code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: req,
	}, nil
}

type memoryResponse struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (w *memoryResponse) Header() http.Header         { return w.header }
func (w *memoryResponse) WriteHeader(code int)        { w.code = code }
func (w *memoryResponse) Write(b []byte) (int, error) { return w.body.Write(b) }
