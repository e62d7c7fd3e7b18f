package scope

import (
	"bytes"
	"context"
	"errors"
	"time"

	"github.com/segmentio/kafka-go"

	"flowstate.inc/sluice/auth"
)

// A sample is one prompt that is to be judged.
type sample struct {
	account *auth.Principal
	asked   Asked
	until   time.Time // when it is too old to wait for the judge any longer
}

// marks are what a message that holds a prompt holds somewhere; looking for them is much cheaper than decoding.
var marks = [][]byte{[]byte(userPrompt), []byte("gen_ai."), []byte("llm."), []byte("ai.prompt"), []byte("input.value"), []byte("traceloop.entity.input"), []byte("openinference.span.kind")}

// look finds the samples of one message. It returns false only when ctx ended before the account was known.
func (c *Consumer) look(ctx context.Context, m kafka.Message) ([]sample, bool) {
	var org, kind, id string
	for _, h := range m.Headers {
		switch h.Key {
		case "flowstate-org":
			org = string(h.Value)
		case "flowstate-subject-kind":
			kind = string(h.Value)
		case "flowstate-subject-id":
			id = string(h.Value)
		}
	}
	if kind != string(auth.KindServiceAccount) || org == "" || id == "" {
		return nil, c.passed("not_a_service")
	}
	if !containsAny(m.Value, marks) {
		return nil, c.passed("no_prompt")
	}
	if m.Time.IsZero() {
		m.Time = c.cfg.Now()
	}
	until := m.Time.Add(c.cfg.MaxLag)
	p, known, alive := c.account(ctx, org, id, until)
	switch {
	case !alive:
		return nil, false
	case !known:
		p = &auth.Principal{Org: org, Kind: auth.KindServiceAccount, ID: id} // enough to count by
	case p == nil:
		return nil, c.passed("no_account")
	case Vague(p.IntendedScope) == NoScope:
		return nil, c.passed("no_scope")
	}
	read := FromLogs
	if m.Topic == c.cfg.SpansTopic {
		read = FromSpans
	}
	asked, err := read(m.Value)
	if err != nil {
		c.cfg.Logger.Warn("telemetry cannot be read for its prompts", "topic", m.Topic, "partition", m.Partition, "offset", m.Offset, "error", err)
		return nil, c.passed("unreadable")
	}
	late := c.cfg.Now().After(until)
	var out []sample
	for _, a := range asked {
		if a.At.IsZero() || a.At.After(m.Time.Add(time.Hour)) || a.At.Before(m.Time.Add(-24*time.Hour)) {
			a.At = m.Time
		}
		c.metrics.prompts.Inc()
		c.note(p, Seen)
		switch vague := Vague(p.IntendedScope); {
		case a.Text == "":
			c.abstain(p, NoBody)
		case !known:
			c.abstain(p, AccountUnknown)
		case vague != "":
			c.abstain(p, string(vague))
		case late:
			c.abstain(p, TooOld)
		case c.chosen(p):
			c.metrics.sampled.Inc()
			c.note(p, Sampled)
			out = append(out, sample{p, a, until})
		}
	}
	switch {
	case !known:
		return nil, c.passed("account_unknown")
	case late:
		return nil, c.passed("too_old")
	}
	return out, c.passed("read")
}

// abstain counts a prompt that nobody is asked about.
func (c *Consumer) abstain(p *auth.Principal, why string) {
	c.note(p, why)
	c.cfg.Assessor.count(Assessment{Abstained: why})
}

func (c *Consumer) passed(outcome string) bool {
	c.metrics.messages.WithLabelValues(outcome).Inc()
	return true
}

func containsAny(b []byte, marks [][]byte) bool {
	for _, m := range marks {
		if bytes.Contains(b, m) {
			return true
		}
	}
	return false
}

// account looks an account up, again until it is known, until is past (then it is not) or ctx ends (then the last result is false). The account that is known
// not to be there is nil.
func (c *Consumer) account(ctx context.Context, org, id string, until time.Time) (p *auth.Principal, known, alive bool) {
	k := accountKey{org, id}
	if p, ok := c.accounts.GetIfPresent(k); ok {
		return p, true, true
	}
	known, alive = c.retry(ctx, "account", until, func() error {
		var err error
		p, err = c.cfg.Account(ctx, org, id)
		if errors.Is(err, auth.ErrNoKey) {
			p, err = nil, nil
		}
		return err
	})
	if known {
		c.accounts.Set(k, p)
	}
	return p, known, alive
}

// chosen draws the sample.
func (c *Consumer) chosen(p *auth.Principal) bool {
	share := c.cfg.Shares.Of(p.Name, p.Environment)
	if share >= 1 {
		return true
	}
	if share <= 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if today := day(c.cfg.Now()); today != c.day {
		c.day = today
		clear(c.first)
	}
	k := accountKey{p.Org, p.ID}
	if c.first[k] < alwaysFirst {
		c.first[k]++
		return true
	}
	return c.cfg.Draw() < share
}
