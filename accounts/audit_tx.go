package accounts

import (
	"context"
	"database/sql"
	"time"
)

// AuditTx writes one row of the audit in somebody else's transaction on the same database, so that another room's change and its row stand or fall
// together. It must be the transaction's last statement: the org's chain is locked until it ends. Before and After of ev are the caller's
// allow-list; no secret belongs there.
func (s *Store) AuditTx(ctx context.Context, in *sql.Tx, org string, by By, ev Event) error {
	t := &tx{Tx: in, dialect: s.dialect, now: s.now().UTC().Truncate(time.Millisecond)}
	return t.audit(ctx, org, by, ev)
}
