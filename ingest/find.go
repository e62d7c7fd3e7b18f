package ingest

import (
	"unsafe"

	"flowstate.inc/sluice/auth"
	"flowstate.inc/sluice/ingest/otlp"
	"flowstate.inc/sluice/signals"
)

// A finder takes the signals out of one payload while it is copied.
type finder struct {
	raised []signals.Raised // to be decided
	early  []tallied        // those that are filtered by their type alone
	fault  error            // why the rest was not looked at

	visitor  otlp.Visitor // calls the finder's own methods
	decider  *signals.Decider
	who      *auth.Principal
	charge   *charge
	found    int
	ordinals signals.Ordinals
	attrs    []signals.Attribute
}

// tallied is how many signals of a request had the same filtered verdict.
type tallied struct {
	verdict signals.Verdict
	n       int
}

// addTo counts n more signals with a verdict. It looks at a few of the last ones only: a detector may name another subject with each.
func addTo(list []tallied, v *signals.Verdict, n int) []tallied {
	for i := max(0, len(list)-8); i < len(list); i++ {
		if o := &list[i].verdict; o.Type == v.Type && o.Reason == v.Reason && o.About == v.About {
			list[i].n += n
			return list
		}
	}
	return append(list, tallied{*v, n})
}

// begin makes the finder ready for a payload of p's. What it keeps of the payload is charged to c.
func (f *finder) begin(d *signals.Decider, p *auth.Principal, c *charge) {
	if f.visitor.Visit == nil {
		f.visitor = otlp.Visitor{Drop: f.drop, Visit: f.visit}
	}
	f.decider, f.who, f.charge = d, p, c
}

// reset lets go of the payload's, and of scratch that only a rare one needs.
func (f *finder) reset() {
	*f = finder{visitor: f.visitor, raised: emptied(f.raised), early: emptied(f.early), attrs: emptied(f.attrs)}
}

// drop filters a signal by its type alone. That is exact but in one case: a signal that is faulty in another way as well is called filtered, not
// invalid. Neither goes anywhere, and to a sender who may not send the type at all its other faults are nothing.
func (f *finder) drop(signalType []byte) bool {
	v, filtered := f.decider.FilteredByType(f.who, signalType)
	if filtered {
		f.found++
		f.early = addTo(f.early, &v, 1)
	}
	return filtered
}

func (f *finder) visit(s *otlp.SignalRecord) {
	f.found++
	if f.found > maxSignals || f.fault != nil {
		return
	}
	index := f.found - 1
	r := signals.Raised{Index: index, Fault: &signals.Fault{Reason: signals.TooLarge, Detail: s.Over}}
	if s.Over == "" {
		f.attrs = f.attrs[:0]
		for _, a := range s.Attributes {
			f.attrs = append(f.attrs, signals.Attribute(a))
		}
		r = signals.FromLogRecord(f.attrs, s.TimeUnixNano, s.ObservedTimeUnixNano, s.Raw, index, &f.ordinals, signals.Limits{})
		clear(f.attrs)
	}
	// Its ids are at most a few hundred bytes each, and most have none.
	if f.fault = f.charge.take(int(unsafe.Sizeof(r)) + len(r.Details)); f.fault == nil {
		f.raised = append(f.raised, r)
	}
}
