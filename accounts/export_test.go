package accounts

import "context"

// OpenAPIForTest is the document as it is embedded.
func OpenAPIForTest() []byte { return openAPI }

// RoutesForTest is every method and path that the API answers by itself.
func RoutesForTest(a *API) []Route { return a.routes() }

// DefuseForTest is what a CSV export does to a cell.
func DefuseForTest(cell string) string { return defuse(cell) }

// ListQueryForTest is the statement of a page of accounts, for its plan.
func ListQueryForTest(s *Store, org string, f AccountFilter) (string, []any, error) {
	l, err := newAccountList(org, f, s.now())
	if err != nil {
		return "", nil, err
	}
	query, args := l.query()
	return query, args, nil
}

// AuditQueryForTest is the statement of a page of the audit, for its plan.
func AuditQueryForTest(ctx context.Context, s *Store, org string, f AuditFilter, limit int) (string, []any, error) {
	q, err := s.auditQuery(ctx, org, f)
	if err != nil {
		return "", nil, err
	}
	query, args := q.query(limit)
	return query, args, nil
}
