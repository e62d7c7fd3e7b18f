package ingest

import (
	"net"
	"time"

	"github.com/segmentio/kafka-go"
)

// Transport is for kafka-go's own clients (readers, administration) of the same cluster. The caller closes its idle connections.
func (c KafkaConfig) Transport() (*kafka.Transport, error) {
	mechanism, err := c.mechanism()
	if err != nil {
		return nil, err
	}
	return &kafka.Transport{
		DialTimeout: kafkaDialTimeout,
		MetadataTTL: time.Second,
		TLS:         c.TLS,
		SASL:        mechanism,
		ClientID:    c.ClientID,
		Dial:        (&net.Dialer{}).DialContext,
	}, nil
}

// Dialer is for kafka-go's consumer groups on the same cluster.
func (c KafkaConfig) Dialer() (*kafka.Dialer, error) {
	mechanism, err := c.mechanism()
	if err != nil {
		return nil, err
	}
	return &kafka.Dialer{ClientID: c.ClientID, Timeout: kafkaDialTimeout, DualStack: true, TLS: c.TLS, SASLMechanism: mechanism}, nil
}
