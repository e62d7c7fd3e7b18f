package accounts

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"flowstate.inc/sluice/signals"
)

// fields is what an audit row keeps of a thing before or after a change. Only the names listed in accountFields and the literals beside each call of
// tx.audit get in: never a hash, never a secret.
type fields map[string]any

// An Event is one row of the audit as it is written.
type Event struct {
	Action string // like service_account.created
	Target Subject
	Before fields // nil: nothing was there
	After  fields // nil: nothing is there now
}

// An AuditEvent is one row of the audit as it is read. Rows are never edited; retention removes them from the old end.
type AuditEvent struct {
	ID     string
	Org    string
	Seq    int64 // 1, 2, 3, … per org, without gaps
	At     time.Time
	Actor  string
	Action string
	Target Subject
	Before json.RawMessage // a JSON object, or nil
	After  json.RawMessage // a JSON object, or nil
	IP     string
	Via    string
	Hash   [32]byte // over this row and the hash before it
}

// MarshalJSON is the row as the admin API answers it.
func (e AuditEvent) MarshalJSON() ([]byte, error) {
	type source struct {
		IP  *string `json:"ip"`
		Via string  `json:"via"`
	}
	return json.Marshal(struct {
		ID     string          `json:"id"`
		Seq    int64           `json:"seq"`
		At     *string         `json:"at"`
		Actor  string          `json:"actor"`
		Action string          `json:"action"`
		Target Subject         `json:"target"`
		Before json.RawMessage `json:"before"`
		After  json.RawMessage `json:"after"`
		Source source          `json:"source"`
	}{e.ID, e.Seq, jsonTime(e.At), e.Actor, e.Action, e.Target, e.Before, e.After, source{jsonText(e.IP), e.Via}})
}

// accountFields is the allow-list of what the audit keeps of an account.
func accountFields(a Account) fields {
	return fields{
		"name": a.Name, "environment": a.Environment, "description": a.Description, "intended_scope": a.IntendedScope, "abuse_detection": a.AbuseDetection,
		"team": a.Team, "cost_centre": a.CostCentre, "requests_per_second": a.Limits.RequestsPerSecond, "bytes_per_second": a.Limits.BytesPerSecond,
		"key_prefix": a.KeyPrefix,
	}
}

// changedFields is what differs between two states of an account, before and after.
func changedFields(old, a Account) (fields, fields) {
	before, after := accountFields(old), accountFields(a)
	for name, was := range before {
		if was == after[name] {
			delete(before, name)
			delete(after, name)
		}
	}
	return before, after
}

// audit appends one row to the org's chain, in the transaction of the change. Writers of one org wait for each other on its head, which is locked
// last of all, so that the chain has no forks and nobody deadlocks.
func (t *tx) audit(ctx context.Context, org string, by By, ev Event) error {
	var count, at int64
	var head []byte
	err := t.QueryRowContext(ctx, `SELECT h.count, h.at, h.hash FROM audit_heads h WHERE h.org = $1`+t.dialect.forUpdate("h"), org).Scan(&count, &at, &head)
	if isNoRows(err) {
		// Every org is made with its head. To begin a new chain here would hide that somebody removed the old one.
		return fmt.Errorf("append to the audit: the head of %q is gone; run the audit's verification", org)
	}
	if err != nil {
		return wrap("read the audit's head", err)
	}
	before, err := marshalFields(ev.Before)
	if err != nil {
		return err
	}
	after, err := marshalFields(ev.After)
	if err != nil {
		return err
	}
	row := AuditEvent{
		ID: signals.NewID("ev", t.now), Org: org, Seq: count + 1,
		// Clocks of several processes differ: along the chain time never falls, so that a range of time is a range of the chain.
		At:    fromMilli(max(t.now.UnixMilli(), at)),
		Actor: by.Actor, Action: ev.Action, Target: ev.Target, Before: before, After: after, IP: by.IP, Via: by.Via,
	}
	row.Hash = chainHash([32]byte(head), row)
	_, err = t.ExecContext(ctx, `INSERT INTO audit_events (org, seq, id, at, actor, action, target_kind, target_id, target_label, before_json, after_json,
		source_ip, source_via, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		row.Org, row.Seq, row.ID, row.At.UnixMilli(), row.Actor, row.Action, row.Target.Kind, row.Target.ID, row.Target.Label,
		nullText(row.Before), nullText(row.After), row.IP, row.Via, row.Hash[:])
	if err != nil {
		return wrap("append to the audit", err)
	}
	_, err = t.ExecContext(ctx, `UPDATE audit_heads SET count = $2, at = $3, hash = $4 WHERE org = $1`, org, row.Seq, row.At.UnixMilli(), row.Hash[:])
	return wrap("move the audit's head", err)
}

func marshalFields(f fields) (json.RawMessage, error) {
	if f == nil {
		return nil, nil
	}
	b, err := json.Marshal(map[string]any(f)) // sorts the names
	if err != nil {
		return nil, fmt.Errorf("write the audit's fields: %w", err)
	}
	return b, nil
}

func nullText(b []byte) sql.NullString { return sql.NullString{String: string(b), Valid: b != nil} }

// chainHash is SHA-256 over the hash before and every field of the row, each with its length, so that no two rows read the same. The texts of before
// and after are hashed as they are stored.
func chainHash(prev [32]byte, e AuditEvent) [32]byte {
	b := []byte("sluice-audit-v1")
	b = append(b, prev[:]...)
	add := func(s string) {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	optional := func(j json.RawMessage) {
		if j == nil {
			b = append(b, 0)
			return
		}
		b = append(b, 1)
		add(string(j))
	}
	add(e.Org)
	b = binary.AppendVarint(b, e.Seq)
	b = binary.AppendVarint(b, e.At.UnixMilli())
	for _, s := range []string{e.ID, e.Actor, e.Action, e.Target.Kind, e.Target.ID, e.Target.Label} {
		add(s)
	}
	optional(e.Before)
	optional(e.After)
	add(e.IP)
	add(e.Via)
	return sha256.Sum256(b)
}
