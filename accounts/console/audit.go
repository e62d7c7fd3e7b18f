package console

import (
	"context"
	"net/http"
)

type eventView struct {
	Action, Target, TargetURL, Actor, Source string
	At                                       whenView
	Changes                                  []changeView
}

type changeView struct {
	Field, Before, After string
	HasBefore, HasAfter  bool
}

func (c *Console) eventsOf(ctx context.Context, v *visit, id string) ([]eventView, error) {
	return nil, nil
}

func (c *Console) audit(w http.ResponseWriter, r *http.Request, v *visit) error { return errNotFound }

func (c *Console) auditExport(w http.ResponseWriter, r *http.Request, v *visit) error { return errNotFound }
