// Package scope says whether what a workload is asked lies within what its account is for: the intended scope as the prompt of an honest judge.
//
// A [Consumer] reads the telemetry topics in a group of its own. Of service accounts with an intended scope it takes samples of what they were asked
// ([FromLogs], [FromSpans]); an [Assessor] asks a language model about each, through a [Judge] that speaks the OpenAI-compatible chat API; what
// is out of scope is raised as off_topic_production by Sluice itself. A [Store] keeps verdicts, what was spent and what was seen.
//
// What it promises:
//   - Off by default. Without a judge's address nothing is read, and nothing leaves.
//   - Scope and prompt are data. Each stands as one JSON string between fences that are random for every request, so no text can close its own
//     fence. What the judge answers counts only as exactly one object of the schema: anything more, less, or repeating a fence or a piece of JSON that stands in
//     the prompt is unsure. The machinery itself never turns a verdict because of what a prompt says.
//   - Secrets are cut out of scope and prompt before they leave, and before anything is kept. Neither prompts nor keys are in logs, labels or errors.
//     A verdict keeps a hash of its input, not the input, unless [AssessorConfig].KeepPrompts says so; a reason that repeats the prompt is dropped.
//   - No request without budget: requests, tokens and money of the day are booked in the database before it is sent, for the account and in all, so
//     neither a restart nor a second process has a budget of its own. What may have been charged for stays booked.
//   - Who judges says so first, and goes on saying so ([Presence]), so that pages of other processes can tell what leaves.
//   - A judge alone never raises above WARN, says nothing below its threshold of confidence, and the same input raises at most one signal a day, by its id.
//
// How it fails: abstaining. An empty or vague scope, telemetry without bodies, a budget that is used up: counted, and said on the account's page. While the judge, the
// database or Kafka is away the consumer waits and reads nothing further, which delays nobody else; what is older than [ConsumerConfig].MaxLag by then is
// abstained from, and counted, so that it comes back to the present rather than to a backlog. What is to be raised waits without end.
package scope
