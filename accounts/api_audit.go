package accounts

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"flowstate.inc/sluice/auth"
)

func (a *API) listAudit(w http.ResponseWriter, r *http.Request, admin auth.Admin) error {
	q, err := readQuery(r)
	if err != nil {
		return err
	}
	format := q.text("format")
	if format != "" && format != "json" && format != "csv" && format != "ndjson" {
		q.c.fail("format", "must be json, csv or ndjson")
	}
	f := AuditFilter{
		Actions: q.list("action"), Actors: q.list("actor"), TargetKinds: q.list("target_kind"), Target: q.text("target"),
		Since: q.time("since"), Until: q.time("until"), Cursor: q.text("cursor"), Limit: q.limit(),
	}
	if err := q.done(); err != nil {
		return err
	}
	switch format {
	case "csv":
		return a.exportAudit(w, r, admin.Org, f, "text/csv; charset=utf-8; header=present", "csv", newCSVRows)
	case "ndjson":
		return a.exportAudit(w, r, admin.Org, f, "application/x-ndjson", "ndjson", newJSONRows)
	}
	p, err := a.cfg.Store.Audit(r.Context(), admin.Org, f)
	if err != nil {
		return err
	}
	return writePage(w, p)
}

// An auditWriter writes rows in one format. flush hands on what it holds.
type auditWriter struct {
	row   func(AuditEvent) error
	flush func() error
}

// exportEvery is after how many rows an export is sent on and its write deadline moved.
const exportEvery = 1000

// exportAudit streams all rows that the filter matches. It holds one page of them, whatever their number.
func (a *API) exportAudit(w http.ResponseWriter, r *http.Request, org string, f AuditFilter, contentType, suffix string, rows func(io.Writer) (auditWriter, error)) error {
	rc := http.NewResponseController(w)
	out := bufio.NewWriterSize(w, 64<<10)
	var aw auditWriter
	begin := func() error {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Content-Disposition", `attachment; filename="audit-`+org+`.`+suffix+`"`)
		var err error
		aw, err = rows(out)
		return err
	}
	n := 0
	for e, err := range a.cfg.Store.AuditAll(r.Context(), org, f) {
		if err != nil && n == 0 {
			return err
		}
		if err == nil && n == 0 {
			err = begin()
		}
		if err == nil {
			err = aw.row(e)
		}
		if n++; err == nil && n%exportEvery == 0 {
			err = errors.Join(aw.flush(), out.Flush())
			// Not every server has deadlines; the one that has must not end a long export that moves.
			_ = rc.SetWriteDeadline(time.Now().Add(30 * time.Second))
		}
		if err != nil {
			a.cfg.Logger.WarnContext(r.Context(), "an export of the audit broke off", "request_id", stateOf(r).id, "rows", n, "error", err)
			panic(http.ErrAbortHandler) // the way to tell the client, after a 200, that what it got is not whole
		}
	}
	if n == 0 {
		if err := begin(); err != nil {
			return err
		}
	}
	if err := errors.Join(aw.flush(), out.Flush()); err != nil {
		panic(http.ErrAbortHandler)
	}
	return nil
}

func newJSONRows(w io.Writer) (auditWriter, error) {
	enc := json.NewEncoder(w)
	return auditWriter{row: func(e AuditEvent) error { return enc.Encode(e) }, flush: func() error { return nil }}, nil
}

func newCSVRows(w io.Writer) (auditWriter, error) {
	cw := csv.NewWriter(w)
	cw.UseCRLF = true // RFC 4180
	err := cw.Write([]string{"id", "seq", "at", "actor", "action", "target_kind", "target_id", "target_label", "before", "after", "source_ip", "source_via"})
	return auditWriter{
		row: func(e AuditEvent) error {
			cells := []string{e.ID, strconv.FormatInt(e.Seq, 10), *jsonTime(e.At), e.Actor, e.Action, e.Target.Kind, e.Target.ID, e.Target.Label,
				string(e.Before), string(e.After), e.IP, e.Via}
			for i := range cells {
				cells[i] = defuse(cells[i])
			}
			return cw.Write(cells)
		},
		flush: func() error {
			cw.Flush()
			return cw.Error()
		},
	}, err
}

// defuse keeps spreadsheets from reading a cell as a formula: quoting alone does not.
func defuse(cell string) string {
	if cell == "" {
		return cell
	}
	switch r := []rune(cell)[0]; r {
	// The full-width forms are formulas too where the spreadsheet's language is Japanese.
	case '=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠':
		return "'" + cell
	}
	return cell
}
