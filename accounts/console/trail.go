package console

import (
	"context"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/signals"
)

// trail is what an account's page shows of its signals: the latest, INFO and resolved ones too, and what the filter dropped.
type trail struct {
	AllURL string
	Rows   []alertRow
	Drops  []dropRow // by the filter
	Faults []dropRow // what was invalid
	Days   int
}

type dropRow struct {
	Type, Why string
	Count     int64
	Last      whenView
}

const (
	trailRows = 10
	trailDays = 30
)

func (c *Console) trail(ctx context.Context, v *visit, id string) (*trail, error) {
	every := alertState{Account: id, All: true, Severities: []signals.Severity{signals.Block, signals.Info, signals.Warn}}
	found, err := c.signals.Alerts(ctx, v.admin.Org, signals.AlertFilter{Account: id, Limit: trailRows})
	if err != nil {
		return nil, err
	}
	t := &trail{AllURL: every.url(), Days: trailDays}
	for i := range found.Items {
		t.Rows = append(t.Rows, c.alertRow(v, &found.Items[i], every.url()))
	}
	drops, err := c.signals.Drops(ctx, v.admin.Org, string(auth.KindServiceAccount), id, c.now().AddDate(0, 0, -trailDays))
	if err != nil {
		return nil, err
	}
	for _, d := range drops {
		row := dropRow{Type: d.Type, Why: dropWords(d.Reason), Count: d.Count, Last: c.render.when(d.LastAt)}
		if signals.OutcomeOf(d.Reason) == signals.Filtered {
			t.Drops = append(t.Drops, row)
		} else {
			t.Faults = append(t.Faults, row)
		}
	}
	return t, nil
}

func dropWords(r signals.Reason) string {
	switch r {
	case signals.PersonsOnly:
		return "makes sense for people only"
	case signals.ServicesOnly:
		return "makes sense for services only"
	case signals.AbuseDetectionOff:
		return "abuse detection is off"
	case signals.Malformed:
		return "not of the shape documented"
	case signals.BadType:
		return "no type, or none of the form that types have"
	case signals.BadSeverity:
		return "a severity that is not INFO, WARN or BLOCK"
	case signals.BadSubject:
		return "a subject that its key may not name, or that does not exist"
	case signals.DuplicateField:
		return "a field given twice"
	case signals.TooLarge:
		return "over the limits on one record"
	case signals.TooDeep:
		return "details nested too deep"
	case signals.Refused:
		return "refused by Kafka for good"
	}
	return string(r)
}
