package accounts

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
)

// A Problem is an answer of RFC 9457 that a handler returns as its error. Everything in it is for the client to read.
type Problem struct {
	Status int
	Code   string // ends the problem's type, urn:sluice:problem:CODE; stable, for programs
	Detail string // for people: what happened and what to do
	Fields []FieldError
	header http.Header
}

func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// The codes of problems.
const (
	codeInvalid      = "invalid-input"
	codeUnauthorised = "unauthenticated"
	codeForbidden    = "forbidden"
	codeNotFound     = "not-found"
	codeMethod       = "method-not-allowed"
	codeConflict     = "name-taken"
	codeDeleted      = "account-deleted"
	codeAccountKey   = "account-key"
	codeStale        = "stale"
	codeTooLarge     = "too-large"
	codeMediaType    = "unsupported-media-type"
	codeIdempotency  = "idempotency-mismatch"
	codeInternal     = "internal"
	codeUnavailable  = "unavailable"
)

// problemOf is the one place that turns errors into answers. What it does not know is ours: its text stays in the log.
func problemOf(err error) *Problem {
	var p *Problem
	var inv *InvalidError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &inv):
		return &Problem{Status: http.StatusBadRequest, Code: codeInvalid, Detail: "Some of what was sent is not acceptable; errors has what and why.", Fields: inv.Fields}
	case errors.As(err, &tooLarge):
		return &Problem{Status: http.StatusRequestEntityTooLarge, Code: codeTooLarge, Detail: "The body is over " + strconv.FormatInt(tooLarge.Limit, 10) + " bytes."}
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrUnknownOrg):
		return &Problem{Status: http.StatusNotFound, Code: codeNotFound, Detail: "There is no such thing in this org."}
	case errors.Is(err, ErrConflict):
		return &Problem{Status: http.StatusConflict, Code: codeConflict, Detail: "A live account of this environment has the name already, in whatever case.",
			Fields: []FieldError{{"name", "is taken by a live account of this environment"}}}
	case errors.Is(err, ErrDeleted):
		return &Problem{Status: http.StatusConflict, Code: codeDeleted, Detail: "The account is deleted. It can be read, not edited; create it again under the same name."}
	case errors.Is(err, ErrAccountKey):
		return &Problem{Status: http.StatusConflict, Code: codeAccountKey, Detail: "The key belongs to a service account: delete the account to revoke it."}
	case errors.Is(err, ErrStale):
		return &Problem{Status: http.StatusPreconditionFailed, Code: codeStale, Detail: "The account has changed since it was read. Read it again and repeat the change."}
	case errors.Is(err, ErrIdempotencyMismatch):
		return &Problem{Status: http.StatusUnprocessableEntity, Code: codeIdempotency, Detail: "The Idempotency-Key was used with another body within the last day."}
	case errors.Is(err, ErrNoAdmin):
		return unauthorised()
	case Unavailable(err), errors.Is(err, context.Canceled):
		return &Problem{Status: http.StatusServiceUnavailable, Code: codeUnavailable, Detail: "The database does not answer. Nothing is lost; try again.",
			header: http.Header{"Retry-After": {"2"}}}
	}
	return &Problem{Status: http.StatusInternalServerError, Code: codeInternal, Detail: "This is a fault of ours. The request id finds it in our log."}
}

func unauthorised() *Problem {
	return &Problem{Status: http.StatusUnauthorized, Code: codeUnauthorised,
		Detail: "Send an admin token as \"Authorization: Bearer fat_…\". Telemetry keys open nothing here.",
		header: http.Header{"Www-Authenticate": {`Bearer realm="sluice admin API"`}}}
}

// write sends the problem; instance is the request id.
func (p *Problem) write(w http.ResponseWriter, requestID string) {
	body, err := json.Marshal(struct {
		Type     string       `json:"type"`
		Title    string       `json:"title"`
		Status   int          `json:"status"`
		Detail   string       `json:"detail"`
		Instance string       `json:"instance"`
		Errors   []FieldError `json:"errors,omitempty"`
	}{"urn:sluice:problem:" + p.Code, http.StatusText(p.Status), p.Status, p.Detail, requestID, p.Fields})
	if err != nil {
		panic("BUG: a problem is not JSON: " + err.Error())
	}
	for name, values := range p.header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // the client has gone; nobody is left to tell
}

// WriteJSON sends v with status. An error means that v is not JSON, and nothing was sent.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return wrap("write the answer", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // the client has gone; nobody is left to tell
	return nil
}
