package signals

import (
	"context"
	"errors"
	"regexp"
	"strings"

	"flowstate.inc/sluice/auth"
)

// Kinds of subject that have no key of their own.
const (
	kindSession = "session"
	kindTurn    = "turn"
)

// A subject is whom a signal is about, looked up.
type subject struct {
	kind, id string
	name     string          // of persons and detectors, where known
	service  *auth.Principal // the account behind it: itself, or the owner of a session or turn
	ownerID  string          // of a session or turn whose owner is a person
}

// isPerson reports whether a type for persons only may pass. It is the filter: true only for what is known to be a person,
// so that every kind there is not, or not yet, counts as a service.
func (s *subject) isPerson() bool {
	if s.service != nil {
		return false
	}
	return s.kind == string(auth.KindPerson) || s.ownerID != "" && (s.kind == kindSession || s.kind == kindTurn)
}

// about is whose page a verdict belongs on.
func (s *subject) about() About {
	if s.service != nil {
		return About{Kind: string(s.service.Kind), ID: s.service.ID}
	}
	return About{Kind: s.kind, ID: s.id}
}

func (s *subject) label() string {
	switch {
	case s.kind == string(auth.KindServiceAccount) && s.service != nil:
		return ServiceLabel(s.service.Name, s.service.Environment)
	case s.name != "":
		return s.kind + ": " + s.name
	}
	return s.kind + ": " + s.id
}

func (s *subject) owner() *EventOwner {
	switch {
	case s.kind != kindSession && s.kind != kindTurn:
		return nil
	case s.service != nil:
		return &EventOwner{Kind: string(auth.KindServiceAccount), ID: s.service.ID, Label: ServiceLabel(s.service.Name, s.service.Environment)}
	case s.ownerID != "":
		return &EventOwner{Kind: string(auth.KindPerson), ID: s.ownerID, Label: "person: " + s.ownerID}
	}
	return nil
}

// principalSubject is the authenticated principal as its own subject. A kind that this version does not know is a service
// whose toggle is off, whatever its record says.
func principalSubject(p *auth.Principal) *subject {
	s := &subject{kind: string(p.Kind), id: p.ID, name: p.Name}
	switch p.Kind {
	case auth.KindPerson, auth.KindDetector:
	default:
		s.service = p
	}
	return s
}

func invalidSubject(detail string) *Verdict {
	return &Verdict{Outcome: Invalid, Reason: BadSubject, Detail: detail}
}

// subject settles whom a signal of type st is about, or returns the verdict that ends it.
func (d *Decider) subject(ctx context.Context, p *auth.Principal, ref *SubjectRef, st SignalType) (*subject, *Verdict) {
	if ref == nil {
		return principalSubject(p), nil
	}
	if ref.Kind == "" {
		return nil, invalidSubject("subject.kind is missing: service_account, person, session or turn")
	}
	if namesItself(p, ref) {
		return principalSubject(p), nil
	}
	if p.Kind != auth.KindDetector {
		return nil, invalidSubject("only a detector's key may name another subject: leave subject out, and name a session with session_id")
	}
	if ref.Owner != nil && ref.Kind != kindSession && ref.Kind != kindTurn {
		return nil, invalidSubject("subject.owner belongs to a session or turn")
	}
	if ref.Kind != string(auth.KindServiceAccount) && (ref.Name != "" || ref.Environment != "") {
		return nil, invalidSubject("subject.name and subject.environment name service accounts only: give the id")
	}
	switch ref.Kind {
	case string(auth.KindServiceAccount):
		a, bad := d.account(ctx, p, ref)
		if bad != nil {
			return nil, bad
		}
		return &subject{kind: ref.Kind, id: a.ID, service: a}, nil
	case string(auth.KindPerson):
		if ref.ID == "" {
			return nil, invalidSubject("subject.id is missing")
		}
		if bad := d.noAccount(ctx, p, ref.ID); bad != nil {
			return nil, bad
		}
		return &subject{kind: ref.Kind, id: ref.ID}, nil
	case kindSession, kindTurn:
		return d.session(ctx, p, ref, st)
	}
	return nil, invalidSubject("subject.kind " + quoted(ref.Kind) + " is not service_account, person, session or turn")
}

// session settles a session or turn, and whose it is.
func (d *Decider) session(ctx context.Context, p *auth.Principal, ref *SubjectRef, st SignalType) (*subject, *Verdict) {
	if ref.ID == "" {
		return nil, invalidSubject("subject.id is missing")
	}
	s := &subject{kind: ref.Kind, id: ref.ID}
	if ref.Owner == nil {
		if st.AppliesTo == Persons {
			return nil, invalidSubject(st.Type + " applies to persons only: say whose " + ref.Kind + " it is, with subject.owner{kind, id}")
		}
		return s, nil
	}
	if ref.Owner.ID == "" {
		return nil, invalidSubject("subject.owner.id is missing")
	}
	switch ref.Owner.Kind {
	case string(auth.KindServiceAccount):
		a, bad := d.account(ctx, p, &SubjectRef{ID: ref.Owner.ID})
		if bad != nil {
			return nil, bad
		}
		s.service = a
		return s, nil
	case string(auth.KindPerson):
		if bad := d.noAccount(ctx, p, ref.Owner.ID); bad != nil {
			return nil, bad
		}
		s.ownerID = ref.Owner.ID
		return s, nil
	}
	return nil, invalidSubject("subject.owner.kind " + quoted(ref.Owner.Kind) + " is not service_account or person")
}

// namesItself reports whether a sender only repeats who it is, which anybody may.
func namesItself(p *auth.Principal, ref *SubjectRef) bool {
	if ref.Kind != string(p.Kind) || ref.Owner != nil {
		return false
	}
	if ref.ID != "" && ref.Name == "" && ref.Environment == "" {
		return ref.ID == p.ID
	}
	return p.Kind == auth.KindServiceAccount && (ref.ID == "" || ref.ID == p.ID) && ref.Name == p.Name && ref.Environment == p.Environment
}

// account looks a service account of p's org up by id, or by name and environment.
func (d *Decider) account(ctx context.Context, p *auth.Principal, ref *SubjectRef) (*auth.Principal, *Verdict) {
	byName := ref.Name != "" || ref.Environment != ""
	switch {
	case ref.ID != "" && byName:
		return nil, invalidSubject("name the service account by id, or by name and environment, not by both")
	case ref.ID == "" && (ref.Name == "" || ref.Environment == ""):
		return nil, invalidSubject("name the service account by subject.id, or by subject.name and subject.environment")
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	var (
		a   *auth.Principal
		err = errors.New("no look-up is set up")
	)
	switch {
	case byName && d.cfg.AccountByName != nil:
		a, err = d.cfg.AccountByName(ctx, p.Org, p.KeyPrefix, ref.Name, ref.Environment)
	case !byName && d.cfg.Account != nil:
		a, err = d.cfg.Account(ctx, p.Org, p.KeyPrefix, ref.ID)
	}
	switch {
	case errors.Is(err, auth.ErrNoKey):
		return nil, invalidSubject("there is no such service account in this org")
	case err != nil, a == nil:
		return nil, &Verdict{Outcome: Unavailable, Reason: SubjectAway, Detail: "nobody can say who the subject is at the moment"}
	case a.Org != p.Org || a.Kind != auth.KindServiceAccount:
		return nil, invalidSubject("there is no such service account in this org")
	}
	return a, nil
}

// accountID is the form of the ids that the accounts room makes; all of them begin with accountTag.
var accountID = regexp.MustCompile(`^sa_[0-9a-f]{32}$`)

const accountTag = "sa_"

// noAccount makes sure that an id which is said to be a person's is not a service account's. Calling an account a person is then no way
// past the filter, its abuse detection, its badge or its cap.
func (d *Decider) noAccount(ctx context.Context, p *auth.Principal, id string) *Verdict {
	folded := strings.ToLower(strings.TrimSpace(id))
	if !strings.HasPrefix(folded, accountTag) {
		return nil // so that signals about people wait for no look-up, of which each would be a miss
	}
	// A deleted account is no longer found, but is no person for that: the form of its id is enough.
	if accountID.MatchString(folded) {
		return invalidSubject("the subject is said to be a person, but its id is a service account's")
	}
	_, bad := d.account(ctx, p, &SubjectRef{ID: id})
	switch {
	case bad == nil:
		return invalidSubject("the subject is said to be a person, but its id is a service account's")
	case bad.Outcome == Invalid:
		return nil
	}
	return bad
}
