package ingest

// A Message is one Kafka message. Whoever is given a Message owns its bytes: nothing in it may alias a buffer that is reused.
type Message struct {
	Topic   string
	Key     []byte // ORG/KIND/ID of the subject; partitioned by murmur2 as Java's clients do
	Value   []byte
	Headers []Header

	lease *lease // whose memory all of it is; nil: its own
}

// A Header is one Kafka record header.
type Header struct {
	Key   string
	Value []byte
}
