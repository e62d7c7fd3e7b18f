// Package signals decides what becomes of a behavioural signal, and keeps what was decided.
//
// A signal reaches it as bytes ([ParseRequest]), as an OTLP log record ([FromLogRecord]) or from Sluice itself
// ([NewRaised]). Each becomes one [Raised]: what its sender stated, nothing decided. [Decider.Decide] then works in one
// fixed order: subject, applies to this kind?, abuse detection, policy, severity, badge. The result is a [Verdict], which
// holds an [Event] ready for Kafka where the signal goes on.
//
// What it promises:
//   - The filter never fails open. A type for persons only passes for a subject that is known to be a person and for
//     nothing else: an unknown kind, a detector, a session without owner, another spelling of the type's name, all stop.
//   - Every [Raised] gets exactly one outcome with a reason of the closed list in outcome.go.
//   - A client's retry of the same bytes has the same ids, so whoever stores events by id stores them once.
//   - Nothing returned aliases the bytes that were parsed.
//
// How it fails: a body that is no JSON is one error for the whole request; an item that is wrong is one invalid verdict
// with a reason and a sentence that says what to do; a subject that nobody can look up is Unavailable, never a guess.
package signals
