// Package signals decides what becomes of a behavioural signal, and keeps what was decided.
//
// A signal reaches it as bytes ([ParseRequest]), as an OTLP log record ([FromLogRecord]) or from Sluice itself
// ([NewRaised]). Each becomes one [Raised]: what its sender stated, nothing decided. [Decider.Decide] then works in one
// fixed order: subject, applies to this kind?, abuse detection, policy, severity, badge. The result is a [Verdict], which
// holds an [Event] ready for Kafka where the signal goes on.
//
// The second half of the room is what comes after. [Policies] follows the active policy of every org and answers the
// Decider; [Policy.Explain] and [Decider.Simulate] say why, and what a draft would change. A [Consumer] moves events from
// Kafka into the [Store], [Retain] removes them when they are old, [Drops] counts what the filter stopped, and [API] answers
// for all of it.
//
// What it promises:
//   - The filter never fails open. A type for persons only passes for a subject that is known to be a person and for
//     nothing else: an unknown kind, a detector, a session without owner, another spelling of the type's name, all stop.
//   - Every [Raised] gets exactly one outcome with a reason of the closed list in outcome.go.
//   - A client's retry of the same bytes has the same ids, so whoever stores events by id stores them once.
//   - Nothing returned aliases the bytes that were parsed, and no whole key of ours leaves the parser.
//   - An event is in Alerts exactly once, however often it is delivered, and offsets are committed after it is there.
//   - A policy that is in force stays in force until another one has been read: no outage changes what is decided.
//
// How it fails: a body that is no JSON is one error for the whole request; an item that is wrong is one invalid verdict
// with a reason and a sentence that says what to do; a subject that nobody can look up is Unavailable, never a guess; a store that is away pauses
// the consumer; a message that can never be read goes to the dead letters first.
package signals
