// Package accounts is the truth about who may send: orgs, service accounts and their keys, the keys of persons and detectors, admin tokens and
// sessions, and the audit trail of every change to them; and the admin API over it.
//
// [Store] keeps it in PostgreSQL or in SQLite by one set of SQL. It promises:
//
//   - A change, its audit row, the new versions of the keys it touches and their rows in key_changes are one transaction: all of it happens or none.
//   - StoreConfig.OnChange has returned for each touched key before the changing call returns, also when the answer to the commit was lost.
//   - Raw keys, admin tokens and session ids are returned once and stored as SHA-256 only; no error, log line or audit row holds one.
//   - Names are unique per org and environment among live accounts, whatever their case. Nothing is ever removed but what retention takes.
//   - A list page reads a bounded number of rows, however many accounts there are; a search inside names reads the names of one org.
//
// It fails by typed errors for what the caller can mend ([ErrNotFound], [ErrConflict], [ErrStale], [ErrDeleted], [ErrUnknownOrg], [*InvalidError], …);
// every other error is the database's, and the state is then as before the call, or (a lost commit) as after it, never between.
//
// Times are UTC with millisecond precision. All methods are safe for use by many goroutines.
package accounts
