package signals

import "slices"

// An Outcome is what became of one record. Every record decoded from an authenticated request has exactly one.
type Outcome string

// The outcomes of the ledger (sluice_ingest_records_total).
const (
	Accepted    Outcome = "accepted"
	Filtered    Outcome = "filtered"
	Invalid     Outcome = "invalid"
	Unavailable Outcome = "unavailable"
)

// A Reason says why a record had its outcome. The list is closed: it is a metric label, and the answers name it.
type Reason string

// Every reason there is, by outcome. Add here, nowhere else.
const (
	// accepted
	InKafka Reason = "kafka" // acknowledged by all in-sync replicas
	InSpool Reason = "spool" // fsynced in the local spool

	// filtered
	PersonsOnly       Reason = "applies_to_persons_only"
	ServicesOnly      Reason = "applies_to_services_only"
	AbuseDetectionOff Reason = "abuse_detection_off"

	// invalid
	Malformed      Reason = "malformed"        // not of the shape documented
	BadType        Reason = "bad_type"         // missing, or not of the form ^[a-z][a-z0-9_]{0,63}$ after normalisation
	BadSeverity    Reason = "bad_severity"     // not INFO, WARN or BLOCK
	BadSubject     Reason = "bad_subject"      // a subject that this key may not name, or that does not exist
	DuplicateField Reason = "duplicate_field"  // an attribute or member given twice
	TooLarge       Reason = "too_large"        // over the limits on one record
	TooDeep        Reason = "too_deep"         // details nested deeper than allowed
	Refused        Reason = "refused_by_kafka" // the broker calls it invalid, and would again

	// unavailable
	KafkaAway   Reason = "kafka_unavailable"
	SpoolFull   Reason = "spool_full"
	Overloaded  Reason = "overloaded"
	SubjectAway Reason = "subject_lookup_unavailable" // nobody can say who the named subject is
	Stopping    Reason = "stopping"
)

// OutcomeOf is the one outcome that has the reason; "" of no reason of ours.
func OutcomeOf(r Reason) Outcome {
	for o, reasons := range Reasons {
		if slices.Contains(reasons, r) {
			return o
		}
	}
	return ""
}

// Reasons lists the closed list by outcome, so that every series of the ledger exists from the start.
var Reasons = map[Outcome][]Reason{
	Accepted:    {InKafka, InSpool},
	Filtered:    {PersonsOnly, ServicesOnly, AbuseDetectionOff},
	Invalid:     {Malformed, BadType, BadSeverity, BadSubject, DuplicateField, TooLarge, TooDeep, Refused},
	Unavailable: {KafkaAway, SpoolFull, Overloaded, SubjectAway, Stopping},
}
