package ingest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/segmentio/kafka-go"
)

// Errors of Producer.Produce, to be looked for with errors.Is.
var (
	// ErrKafkaUnavailable: not all messages were acknowledged in time; trying again later may help.
	ErrKafkaUnavailable = errors.New("kafka is unavailable")
	// ErrOverloaded: MaxInFlightBytes are waiting for Kafka already; nothing of the call was sent.
	ErrOverloaded = errors.New("too many bytes are waiting for kafka")
	// ErrProducerClosed: the producer is closing; it is an ErrKafkaUnavailable too.
	ErrProducerClosed = errors.New("the producer is closed")
)

var (
	errTimedOut   = errors.New("no acknowledgement in time")
	errNoMetadata = errors.New("no broker has told us the leaders yet")
	errNoAnswer   = errors.New("the broker's answer does not name the partition")
	errPanicked   = errors.New("a fault of ours; the log has its stack")
	errNoLeader   = errors.New("the partition has no leader")

	// of one message that came alone; its call makes them a RefusedError
	errTooLargeAlone = errors.New("the message is too large")
	errInvalidAlone  = errors.New("the message is invalid to the broker")
)

// stillAway is why a call was not even tried.
type stillAway struct{ err error }

func (e *stillAway) Error() string {
	return "not tried, because it has been failing for a while: " + e.err.Error()
}
func (e *stillAway) Unwrap() error { return e.err }

// notSent is an error from before anything of a request was sent.
type notSent struct{ err error }

func (e *notSent) Error() string { return e.err.Error() }
func (e *notSent) Unwrap() error { return e.err }

// closedUnderWay is an attempt that Close cut off, or one that failed while closing.
type closedUnderWay struct{ err error }

func (e *closedUnderWay) Error() string   { return ErrProducerClosed.Error() + ": " + e.err.Error() }
func (e *closedUnderWay) Unwrap() []error { return []error{ErrProducerClosed, e.err} }

// ErrorKind says what kept a message from being acknowledged. The list is closed: it is a metric label.
type ErrorKind string

// The kinds of errors.
const (
	KindTimeout           ErrorKind = "timeout"             // nobody said no, but no acknowledgement came in time
	KindConnection        ErrorKind = "connection"          // a broker could not be reached or hung up
	KindLeader            ErrorKind = "leader"              // the partition has no leader, or it moved
	KindNotEnoughReplicas ErrorKind = "not_enough_replicas" // fewer in-sync replicas than min.insync.replicas
	KindUnknownTopic      ErrorKind = "unknown_topic"       // the topic does not exist: run sluice migrate
	KindAuthorization     ErrorKind = "authorization"       // Kafka refuses our credentials, or us on this topic
	KindTooLarge          ErrorKind = "too_large"           // the message alone, or all of one request, is over the limit
	KindRejected          ErrorKind = "rejected"            // the broker will not have this very message
	KindOverloaded        ErrorKind = "overloaded"          // MaxInFlightBytes
	KindClosed            ErrorKind = "closed"              // the producer is closing
	KindCancelled         ErrorKind = "cancelled"           // the caller left
	KindOther             ErrorKind = "other"               // any other code of Kafka
)

// errorKinds lists them all, so that every series exists from the start.
var errorKinds = []ErrorKind{KindTimeout, KindConnection, KindLeader, KindNotEnoughReplicas, KindUnknownTopic,
	KindAuthorization, KindTooLarge, KindRejected, KindOverloaded, KindClosed, KindCancelled, KindOther}

// An UnavailableError says why messages were not acknowledged. errors.Is(err, ErrKafkaUnavailable) holds for all of them.
type UnavailableError struct {
	Topic        string // "" when it is not about one topic
	Kind         ErrorKind
	MaybeWritten bool // an attempt was made: the message may be in Kafka all the same
	Err          error

	// Acked are the messages of the call, by place and ascending, that are acknowledged all the same; TooLarge and Rejected those that never will be.
	Acked, TooLarge, Rejected []int
}

// Error says what happened and, where somebody can do something about it, what.
func (e *UnavailableError) Error() string {
	msg := "kafka"
	if e.Topic != "" {
		msg += ": topic " + e.Topic
	}
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	switch e.Kind {
	case KindUnknownTopic:
		msg += " (create it with sluice migrate)"
	case KindAuthorization:
		msg += " (the Kafka user needs WRITE and DESCRIBE on the topic)"
	}
	return msg
}

// Unwrap gives both what every UnavailableError is and what lay behind it.
func (e *UnavailableError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrKafkaUnavailable}
	}
	return []error{ErrKafkaUnavailable, e.Err}
}

// A RefusedError names the messages of a call that Kafka will never take, whoever found out; by place in the call's msgs and ascending.
type RefusedError struct {
	TooLarge []int // over the limit on one message
	Rejected []int // invalid to the broker for what they are

	// Acked says what became of the others: true means they are acknowledged, false that nothing of the call was sent.
	Acked bool
}

func (e *RefusedError) Error() string {
	var said []string
	for _, r := range []struct {
		places []int
		why    string
	}{{e.TooLarge, "too large"}, {e.Rejected, "invalid to the broker"}} {
		switch len(r.places) {
		case 0:
		case 1:
			said = append(said, fmt.Sprintf("message %d is %s", r.places[0], r.why))
		default:
			said = append(said, fmt.Sprintf("message %d and %d others are %s", r.places[0], len(r.places)-1, r.why))
		}
	}
	return "kafka: " + strings.Join(said, "; ")
}

// kindOf sorts an error of a dial, a request or a broker's answer into the closed list.
func kindOf(err error) ErrorKind {
	var (
		code kafka.Error
		ua   *UnavailableError
		ne   net.Error
	)
	switch {
	case errors.Is(err, ErrProducerClosed):
		return KindClosed
	case errors.As(err, &ua):
		return ua.Kind
	case errors.As(err, &code):
		return kindOfCode(code)
	case errors.Is(err, errTimedOut), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return KindTimeout
	case errors.Is(err, errNoLeader):
		return KindLeader
	default:
		return KindConnection
	}
}

func kindOfCode(code kafka.Error) ErrorKind {
	switch code {
	case kafka.UnknownTopicOrPartition, kafka.InvalidTopic, kafka.UnknownTopicID:
		return KindUnknownTopic
	case kafka.LeaderNotAvailable, kafka.NotLeaderForPartition, kafka.BrokerNotAvailable, kafka.ReplicaNotAvailable,
		kafka.KafkaStorageError, kafka.ListenerNotFound, kafka.FencedLeaderEpoch, kafka.UnknownLeaderEpoch:
		return KindLeader
	case kafka.NotEnoughReplicas, kafka.NotEnoughReplicasAfterAppend:
		return KindNotEnoughReplicas
	case kafka.TopicAuthorizationFailed, kafka.ClusterAuthorizationFailed, kafka.SASLAuthenticationFailed,
		kafka.UnsupportedSASLMechanism, kafka.IllegalSASLState, kafka.TransactionalIDAuthorizationFailed:
		return KindAuthorization
	case kafka.MessageSizeTooLarge, kafka.RecordListTooLarge:
		return KindTooLarge
	case kafka.InvalidRecord:
		return KindRejected
	case kafka.RequestTimedOut:
		return KindTimeout
	case kafka.NetworkException:
		return KindConnection
	default:
		return KindOther
	}
}

// retriable says whether the same batch may go through a little later.
func retriable(code kafka.Error) bool {
	switch kindOfCode(code) {
	case KindAuthorization, KindTooLarge, KindRejected, KindOther:
		return code == kafka.InvalidMessage || // the checksum did not hold: damaged under way
			code == kafka.GroupLoadInProgress || code == kafka.GroupCoordinatorNotAvailable || code == kafka.ThrottlingQuotaExceeded
	default:
		return code != kafka.InvalidTopic
	}
}

// ambiguous says whether the batch may have been written although the attempt failed.
func ambiguous(err error) bool {
	var (
		code  kafka.Error
		local *notSent
	)
	if errors.As(err, &local) {
		return false
	}
	if errors.As(err, &code) {
		return code == kafka.RequestTimedOut || code == kafka.NotEnoughReplicasAfterAppend || code == kafka.NetworkException || code == kafka.Unknown
	}
	return true
}

// divisible says whether a part of the batch may go through although the whole did not.
func divisible(code kafka.Error) bool {
	k := kindOfCode(code)
	return k == KindTooLarge || k == KindRejected
}
