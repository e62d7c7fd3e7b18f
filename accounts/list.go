package accounts

import (
	"context"
	"database/sql"
	"regexp"
	"slices"
	"strings"
	"time"

	"flowstate.inc/sluice/auth"
)

// IdleAfter is how long an account must not have been seen to count as idle.
const IdleAfter = 30 * 24 * time.Hour

// An AccountFilter is the question that a list of accounts answers. The zero value lists live accounts by name.
type AccountFilter struct {
	// Q is part of a name, in any case; or a key's prefix, or text that holds a whole key or prefix, which is cut to the prefix before anything
	// else; or the beginning of a prefix, as a log that cuts lines leaves it. A prefix is looked for among all accounts, deleted ones too, unless
	// State says otherwise.
	Q            string
	Environments []string // any of; none: all
	State        State
	Seen         Seen
	Sort         AccountSort
	Cursor       string // Next of the page before; "": the first page
	Limit        int    // 1 to MaxLimit; 0: DefaultLimit
}

// A State says which accounts are listed.
type State string

// The states. StateDefault is live, but all where Q is a key's prefix.
const (
	StateDefault State = ""
	StateLive    State = "live"
	StateDeleted State = "deleted"
	StateAll     State = "all"
)

// Seen narrows a list by sightings.
type Seen string

// SeenNever are accounts never seen, SeenIdle those seen, but not within IdleAfter.
const (
	SeenAny   Seen = ""
	SeenNever Seen = "never"
	SeenIdle  Seen = "idle"
)

// An AccountSort orders a list; a leading - turns it round. Never seen sorts as the earliest.
type AccountSort string

// The orders. SortDefault is by name, or by last sighting where Seen is given, which keeps that page bounded too.
const (
	SortDefault     AccountSort = ""
	SortName        AccountSort = "name"
	SortEnvironment AccountSort = "environment" // and within it by name
	SortCreated     AccountSort = "created_at"
	SortFirstSeen   AccountSort = "first_seen_at"
	SortLastSeen    AccountSort = "last_seen_at"
)

// AccountSorts lists every order that lists accept.
func AccountSorts() []AccountSort {
	var all []AccountSort
	for _, s := range []AccountSort{SortName, SortEnvironment, SortCreated, SortFirstSeen, SortLastSeen} {
		all = append(all, s, "-"+s)
	}
	return all
}

// A Page is one page of a list. Next is "" on the last one.
type Page[T any] struct {
	Items []T
	Next  string
}

// Accounts lists accounts. Without Q and Seen a page reads a bounded number of rows, and so does the search for a whole prefix; a search inside names,
// or for the beginning of a prefix, reads all names, or prefixes, of the org. Errors: *InvalidError.
func (s *Store) Accounts(ctx context.Context, org string, f AccountFilter) (Page[Account], error) {
	l, err := newAccountList(org, f, s.now())
	if err != nil {
		return Page[Account]{}, err
	}
	query, args := l.query()
	if query == "" { // no branch can hold what is asked for
		return Page[Account]{}, nil
	}
	rows, err := s.r.QueryContext(ctx, query, args...)
	if err != nil {
		return Page[Account]{}, wrap("list the accounts", err)
	}
	items, err := collect(rows, func(rows *sql.Rows) (Account, error) { return scanAccount(rows) })
	if err != nil {
		return Page[Account]{}, wrap("list the accounts", err)
	}
	p := Page[Account]{Items: items}
	if len(items) > l.limit {
		p.Items = items[:l.limit]
		p.Next = l.placeOf(p.Items[l.limit-1]).encode()
	}
	return p, nil
}

// cutPrefixPattern is the beginning of a key's prefix.
var cutPrefixPattern = regexp.MustCompile(`^f[spd]k_[0-9A-Za-z]{1,11}$`)

// An accountList is a checked AccountFilter.
type accountList struct {
	org          string
	like         string // of name_lower; "": any
	prefix       string // of a key; "": any
	begins       string // LIKE pattern of keys.prefix, which matches beside like; "": none
	environments []string
	live         []bool
	seen         Seen
	idleBefore   int64
	sort         AccountSort // without its sign
	down         bool
	after        place
	begun        bool // after is set
	in           string
	limit        int
}

func newAccountList(org string, f AccountFilter, now time.Time) (*accountList, error) {
	var c checker
	l := &accountList{org: org, seen: f.Seen, idleBefore: now.Add(-IdleAfter).UnixMilli()}
	if !plainText(f.Q) || len(f.Q) > 4096 {
		c.fail("q", "must be text without control characters, at most 4,096 bytes long")
	} else if prefix, ok := auth.PrefixOf(f.Q); ok {
		l.prefix = prefix
	} else if q := strings.TrimSpace(f.Q); q != "" {
		l.like = contains(q)
		// What was cut for a page or a log ends with dots.
		if cut := strings.TrimRight(q, ".…*•"); cutPrefixPattern.MatchString(cut) {
			l.begins = likeEscaper.Replace(cut) + "%"
		}
	}
	switch f.State {
	case StateDefault:
		l.live = []bool{true}
		if l.prefix != "" || l.begins != "" {
			l.live = []bool{true, false}
		}
	case StateLive:
		l.live = []bool{true}
	case StateDeleted:
		l.live = []bool{false}
	case StateAll:
		l.live = []bool{true, false}
	default:
		c.fail("state", "must be live, deleted or all")
	}
	for _, e := range f.Environments {
		if e = c.environment("environment", e); e != "" && !slices.Contains(l.environments, e) {
			l.environments = append(l.environments, e)
		}
	}
	if len(f.Environments) == 0 {
		l.environments = []string{auth.Development, auth.Production, auth.Staging}
	}
	slices.Sort(l.environments)
	if f.Seen != SeenAny && f.Seen != SeenNever && f.Seen != SeenIdle {
		c.fail("seen", "must be never or idle")
	}
	sorted := f.Sort
	if sorted == SortDefault {
		sorted = SortName
		if f.Seen != SeenAny {
			sorted = SortLastSeen
		}
	}
	name, down := strings.CutPrefix(string(sorted), "-")
	l.sort, l.down = AccountSort(name), down
	if !slices.Contains(AccountSorts(), sorted) {
		c.fail("sort", "must be name, environment, created_at, first_seen_at or last_seen_at, with - before it to turn it round")
	}
	var err error
	if l.limit, err = checkLimit(f.Limit); err != nil {
		c.fail("limit", "must be 1 to %d", MaxLimit)
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	l.in = fingerprint("accounts", org, l.like, l.prefix, l.environments, l.live, l.seen, l.sort, l.down)
	l.after, l.begun, err = decodePlace(f.Cursor, l.in)
	return l, err
}

// placeOf is the cursor after a.
func (l *accountList) placeOf(a Account) place {
	p := place{In: l.in, ID: a.ID}
	switch l.sort {
	case SortCreated:
		p.Num = a.CreatedAt.UnixMilli()
	case SortFirstSeen:
		p.Num = milliOrZero(a.FirstSeenAt)
	case SortLastSeen:
		p.Num = milliOrZero(a.LastSeenAt)
	case SortEnvironment:
		p.Env, p.Text = a.Environment, lower(a.Name)
	default:
		p.Text = lower(a.Name)
	}
	return p
}

func milliOrZero(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// query merges one branch per (live, environment): each is a range of one index, in order, and ends after a page, so that no filter over the two
// makes a page read more than branches × (page + 1) rows. "" means that no branch is left.
func (l *accountList) query() (string, []any) {
	var a args
	var branches []string
	for _, live := range l.live {
		for _, env := range l.environments {
			if b := l.branch(&a, live, env); b != "" {
				branches = append(branches, b)
			}
		}
	}
	if len(branches) == 0 {
		return "", nil
	}
	order := "u.k" + l.direction() + ", u.id" + l.direction()
	if l.sort == SortEnvironment {
		order = "u.environment" + l.direction() + ", " + order
	}
	// The merge ends after a page before anything is joined, so that no planner finds it worth its while to read a whole table.
	merged := "(SELECT u.environment, u.k, u.id FROM (" + strings.Join(branches, " UNION ALL ") + ") AS u ORDER BY " + order + " LIMIT " + a.add(l.limit+1) + ") AS u"
	from := strings.Replace(selectAccount, "FROM service_accounts a", "FROM "+merged+" JOIN service_accounts a ON a.id = u.id", 1)
	return from + " ORDER BY " + order, a
}

func (l *accountList) direction() string {
	if l.down {
		return " DESC"
	}
	return ""
}

// column is what the list is sorted by, and whether that is in account_seen.
func (l *accountList) column() (string, bool) {
	switch l.sort {
	case SortCreated:
		return "a.created_at", false
	case SortFirstSeen:
		return "s.first_at", true
	case SortLastSeen:
		return "s.last_at", true
	default:
		return "a.name_lower", false
	}
}

// branch selects the ids of one page of the accounts in one (live, environment). "" means that all of them are before the cursor.
func (l *accountList) branch(a *args, live bool, env string) string {
	column, bySeen := l.column()
	begun := l.begun
	if l.sort == SortEnvironment && begun && env != l.after.Env {
		if (env < l.after.Env) != l.down {
			return ""
		}
		begun = false // the whole environment comes after the cursor
	}
	from, id, owner := "service_accounts a", "a.id", "a"
	if bySeen {
		from, id, owner = "account_seen s", "s.account_id", "s"
	}
	where := []string{owner + ".org = " + a.add(l.org), owner + ".live = " + a.add(live), owner + ".environment = " + a.add(env)}
	if l.seen != SeenAny && !bySeen {
		from += " JOIN account_seen s ON s.account_id = a.id"
	}
	if (l.like != "" || l.prefix != "") && bySeen {
		from += " JOIN service_accounts a ON a.id = s.account_id"
	}
	switch l.seen {
	case SeenNever:
		where = append(where, "s.last_at = 0")
	case SeenIdle:
		where = append(where, "s.last_at > 0", "s.last_at < "+a.add(l.idleBefore))
	}
	if l.like != "" {
		match := "a.name_lower LIKE " + a.add(l.like) + ` ESCAPE '\'`
		if l.begins != "" {
			match = "(" + match + " OR a.id IN (SELECT k.subject_id FROM keys k WHERE k.org = " + a.add(l.org) + " AND k.kind = 'service_account' AND k.prefix LIKE " +
				a.add(l.begins) + ` ESCAPE '\'))`
		}
		where = append(where, match)
	}
	if l.prefix != "" {
		// Through the keys, not the account's newest prefix: an old key of a living account must be found too.
		where = append(where, "a.id IN (SELECT k.subject_id FROM keys k WHERE k.prefix = "+a.add(l.prefix)+" AND k.kind = 'service_account')")
	}
	if begun {
		sign := ">"
		if l.down {
			sign = "<"
		}
		var value any = l.after.Num
		if column == "a.name_lower" {
			value = l.after.Text
		}
		where = append(where, "("+column+", "+id+") "+sign+" ("+a.add(value)+", "+a.add(l.after.ID)+")")
	}
	return "SELECT environment, k, id FROM (SELECT " + owner + ".environment AS environment, " + column + " AS k, " + id + " AS id FROM " + from + " WHERE " + strings.Join(where, " AND ") +
		" ORDER BY " + column + l.direction() + ", " + id + l.direction() + " LIMIT " + a.add(l.limit+1) + ") AS branch"
}
