package signals

import (
	"context"
	"fmt"
	"maps"
	"time"

	"flowstate.inc/sluice/auth"
)

// Caps say how loud a signal of an environment may be. An environment that is not named is not capped.
type Caps map[string]Severity

// DefaultCaps: production as raised, staging at most WARN, development at most INFO.
func DefaultCaps() Caps {
	return Caps{auth.Staging: Warn, auth.Development: Info}
}

// lookUpTimeout bounds one look-up of a named subject. The first that fails ends the request, so it bounds the failure too.
const lookUpTimeout = time.Second

// DeciderConfig is what a Decider decides by.
type DeciderConfig struct {
	Taxonomy *Taxonomy // nil: the built-in one
	Caps     Caps      // nil: DefaultCaps

	// Account and AccountByName answer who a service account of org is, for the subjects that detectors name: auth.Chain's.
	// auth.ErrNoKey, wrapped or not, says that there is none; any other error says that nobody knows. Nil: nobody ever knows.
	// by is the prefix of the detector's key.
	Account       func(ctx context.Context, org, by, id string) (*auth.Principal, error)
	AccountByName func(ctx context.Context, org, by, name, environment string) (*auth.Principal, error)

	// Policy says which rule of the org's active policy decides an event whose Severity is still the base severity, or nil.
	// It borrows the event. Nil: no policy.
	Policy func(*Event) *RuleRef
}

// A Decider decides what becomes of signals. It is immutable and safe for concurrent use.
type Decider struct{ cfg DeciderConfig }

// NewDecider returns a Decider. Its error names the cap that is no severity.
func NewDecider(cfg DeciderConfig) (*Decider, error) {
	if cfg.Taxonomy == nil {
		t, err := NewTaxonomy(TaxonomyConfig{})
		if err != nil {
			return nil, err
		}
		cfg.Taxonomy = t
	}
	if cfg.Caps == nil {
		cfg.Caps = DefaultCaps()
	}
	cfg.Caps = maps.Clone(cfg.Caps)
	for env, s := range cfg.Caps {
		if s.rank() == 0 {
			return nil, fmt.Errorf("severity caps: %s: %q is not INFO, WARN or BLOCK", env, s)
		}
	}
	return &Decider{cfg: cfg}, nil
}

// withoutPolicy decides all but the policy, which counts what it decides.
func (d *Decider) withoutPolicy() *Decider {
	cfg := d.cfg
	cfg.Policy = nil
	return &Decider{cfg: cfg}
}

// Taxonomy is what the Decider knows of types.
func (d *Decider) Taxonomy() *Taxonomy { return d.cfg.Taxonomy }

// A Verdict is what became of one signal.
type Verdict struct {
	Outcome Outcome // Accepted: Event goes on; its final outcome is the sink's to say
	Reason  Reason  // "" while Accepted: InKafka or InSpool is the sink's to say
	Detail  string  // for the sender of an invalid or unavailable signal: what is wrong
	Type    string  // normalised where it could be, else as sent, at most 64 bytes; never lends bytes of the request
	About   About   // whose signal it is, where that was settled: the service account behind a session or turn, else the subject
	Event   *Event  // nil unless Accepted
}

// An About names the subject of a verdict.
type About struct{ Kind, ID string }

// Decide works in the order of the design: subject, applies to this kind?, abuse detection, policy, severity, badge.
// p is the authenticated principal, receivedAt when the edge had the whole request. Only what a detector says of others
// needs a look-up, which ctx bounds, at most one second each.
func (d *Decider) Decide(ctx context.Context, p *auth.Principal, r *Raised, receivedAt time.Time) Verdict {
	if r.Fault != nil {
		return Verdict{Outcome: Invalid, Reason: r.Fault.Reason, Detail: r.Fault.Detail, Type: r.name()}
	}
	st := d.cfg.Taxonomy.Resolve(r.Type)
	if r.eventType != "" && d.cfg.Taxonomy.Known(r.eventType) && d.cfg.Taxonomy.Resolve(r.eventType).Type != st.Type {
		return Verdict{Outcome: Invalid, Reason: DuplicateField, Type: st.Type,
			Detail: "the event's type says " + r.eventType + ", and data.type says " + st.Type + ": name the signal's type once"}
	}
	s, bad := d.subject(ctx, p, r.Subject, st)
	if bad != nil {
		bad.Type = st.Type
		return *bad
	}
	about := s.about()
	switch {
	case st.AppliesTo == Persons && !s.isPerson():
		return Verdict{Outcome: Filtered, Reason: PersonsOnly, Type: st.Type, About: about}
	case st.AppliesTo == Services && s.isPerson():
		return Verdict{Outcome: Filtered, Reason: ServicesOnly, Type: st.Type, About: about}
	case st.Type == AbusePattern && s.service != nil && !s.service.AbuseDetection:
		return Verdict{Outcome: Filtered, Reason: AbuseDetectionOff, Type: st.Type, About: about}
	}
	e := &Event{
		ID:           eventID(p.Org, s.kind, s.id, r.identity),
		SourceID:     r.SourceID,
		Org:          p.Org,
		Type:         st.Type,
		Category:     st.Category,
		BaseSeverity: st.BaseSeverity,
		DetectedAt:   r.DetectedAt,
		ReceivedAt:   receivedAt.UTC(),
		Subject:      EventSubject{Kind: s.kind, ID: s.id, Label: s.label(), Owner: s.owner()},
		Service:      serviceOf(s.service),
		SessionID:    r.SessionID,
		KeyPrefix:    p.KeyPrefix,
		Details:      r.Details,
	}
	if r.Severity != "" {
		e.BaseSeverity = r.Severity
	}
	if e.DetectedAt.IsZero() {
		e.DetectedAt = e.ReceivedAt
	}
	if e.SessionID == "" && s.kind == kindSession {
		e.SessionID = s.id
	}
	e.Severity = e.BaseSeverity
	if d.cfg.Policy != nil {
		e.Rule = d.cfg.Policy(e)
	}
	e.Severity = d.severity(e)
	return Verdict{Outcome: Accepted, Type: st.Type, About: about, Event: e}
}

// FilteredByType decides a signal of p's own by nothing but the type that it was sent with, where that is enough: p is a service account and the type
// is for persons only. The signal must be about p itself, and its type given once. It is what Decide would say of a signal without a fault of its
// own; one with a fault is called filtered too, and dropped either way. It borrows sent, and allocates nothing for a type in its usual spelling.
func (d *Decider) FilteredByType(p *auth.Principal, sent []byte) (Verdict, bool) {
	if p.Kind != auth.KindServiceAccount {
		return Verdict{}, false
	}
	st, ok := d.cfg.Taxonomy.byName[string(sent)]
	if !ok {
		name, good := NormaliseType(string(sent))
		if !good {
			return Verdict{}, false
		}
		st = d.cfg.Taxonomy.Resolve(name)
	}
	if st.AppliesTo != Persons {
		return Verdict{}, false
	}
	return Verdict{Outcome: Filtered, Reason: PersonsOnly, Type: st.Type, About: principalSubject(p).about()}, true
}

// severity is the rule's where one decided, else the base, capped by the environment of the service.
func (d *Decider) severity(e *Event) Severity {
	if e.Rule != nil {
		return e.Rule.Action.Severity()
	}
	// These two speak of the credential, which is as good or bad in development as in production.
	if e.Service == nil || e.Type == KeyMisuseDetected || e.Type == AuthContextMismatch {
		return e.BaseSeverity
	}
	most, capped := d.cfg.Caps[e.Service.Environment]
	if capped && e.BaseSeverity.rank() > most.rank() {
		return most
	}
	return e.BaseSeverity
}

// Severity is what an action sets. An unknown action, which no compiled policy has, is loud.
func (a Action) Severity() Severity {
	switch a {
	case ActionObserve:
		return Info
	case ActionWarn:
		return Warn
	}
	return Block
}

func (r *Raised) name() string {
	if r.Type != "" {
		return r.Type
	}
	return r.Sent
}
