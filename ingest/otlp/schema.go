package otlp

import "strings"

// The types of fields that OTLP has, as far as the wire, JSON and the rules of this package tell them apart.
type fieldType uint8

const (
	typeUnknown fieldType = iota
	typeString
	typeEntityKey // names an attribute of the Resource
	typeEventName
	typeTraceID
	typeSpanID
	typeMessage
	typeAttribute // a KeyValue in an attribute's place
	typeAny
	typeBool
	typeInt32
	typeSint32
	typeUint32
	typeEnum
	typeFixed32
	typeFixed64
	typeSfixed64
	typeDouble
	typePackedFixed64
	typePackedDouble
	typePackedUint64
)

// wire is the wire type of one value; packed lists may also come length-delimited.
func (t fieldType) wire() uint64 {
	switch t {
	case typeBool, typeInt32, typeSint32, typeUint32, typeEnum, typePackedUint64:
		return wireVarint
	case typeFixed64, typeSfixed64, typeDouble, typePackedFixed64, typePackedDouble:
		return wireFixed64
	case typeFixed32:
		return wireFixed32
	}
	return wireBytes
}

type field struct {
	typ      fieldType
	repeated bool
	data     bool // one of the kinds of data that a Metric may hold
	num      uint16
	msg      *message
	name     string // in JSON
	snake    string // as in the .proto file; protojson and the Collector take both
	enum     []string
	prefix   string // of the enum's names
}

// message describes one message of OTLP. fields is indexed by number: OTLP stays below 17.
type message struct {
	name      string
	kind      Kind // of a request; 0 for what stands inside
	record    bool // counts in the ledger
	container bool // ResourceLogs and its like: field 1000 held the scopes before OTLP 0.19
	carries   bool // holds attributes at any depth
	room      int  // bytes that its encoded length usually takes
	fields    [17]field
	list      []field // the same in order, for JSON names
}

func (m *message) has(typ fieldType, num uint16, name string) *field {
	return m.add(field{typ: typ, num: num, name: name})
}

func (m *message) many(typ fieldType, num uint16, name string) *field {
	return m.add(field{typ: typ, num: num, name: name, repeated: true})
}

func (m *message) holds(child *message, num uint16, name string) *field {
	m.carries = m.carries || child.carries
	return m.add(field{typ: typeMessage, num: num, name: name, msg: child})
}

func (m *message) holdsMany(child *message, num uint16, name string) {
	m.holds(child, num, name)
	m.fields[num].repeated = true
	m.list[len(m.list)-1].repeated = true
}

func (m *message) attributes(num uint16, name string) {
	m.carries = true
	m.many(typeAttribute, num, name)
}

func (m *message) enumeration(num uint16, name, prefix string, values ...string) {
	m.add(field{typ: typeEnum, num: num, name: name, prefix: prefix, enum: values})
}

func (m *message) add(f field) *field {
	f.snake = snakeCase(f.name)
	m.fields[f.num] = f
	m.list = append(m.list, f)
	return &m.fields[f.num]
}

func (m *message) byName(name []byte) *field {
	for i := range m.list {
		if f := &m.list[i]; string(name) == f.name || string(name) == f.snake {
			return f
		}
	}
	return nil
}

// misplaced says of what kind the records are that a request would have under a name it does not know; 0: none.
func (m *message) misplaced(name []byte) Kind {
	if m.kind == 0 {
		return 0
	}
	for _, k := range [...]Kind{Logs, Spans, Metrics} {
		if k.request().byName(name) != nil {
			return k
		}
	}
	return 0
}

func snakeCase(camel string) string {
	var s strings.Builder
	for _, r := range camel {
		if r >= 'A' && r <= 'Z' {
			s.WriteByte('_')
			r += 'a' - 'A'
		}
		s.WriteRune(r)
	}
	return s.String()
}

func (k Kind) request() *message {
	switch k {
	case Logs:
		return &schema.logs
	case Spans:
		return &schema.spans
	case Metrics:
		return &schema.metrics
	}
	panic("BUG: otlp: no such kind: " + k.String())
}

// schemas is what this package knows of go.opentelemetry.io/proto/otlp v1.11.1. A test compares it with the descriptors of
// that module, so that a new version cannot be taken without reading what it added.
type schemas struct{ logs, spans, metrics, resource message }

// schema is built once and only read afterwards.
var schema = newSchemas()

func newSchemas() *schemas {
	s := &schemas{}
	entity := &message{name: "EntityRef", room: 1, carries: true}
	entity.has(typeString, 1, "schemaUrl")
	entity.has(typeString, 2, "type")
	entity.many(typeEntityKey, 3, "idKeys")
	entity.many(typeEntityKey, 4, "descriptionKeys")

	resource := &s.resource
	resource.name, resource.room = "Resource", 2
	resource.attributes(1, "attributes")
	resource.has(typeUint32, 2, "droppedAttributesCount")
	resource.holdsMany(entity, 3, "entityRefs")

	scope := &message{name: "InstrumentationScope", room: 1}
	scope.has(typeString, 1, "name")
	scope.has(typeString, 2, "version")
	scope.attributes(3, "attributes")
	scope.has(typeUint32, 4, "droppedAttributesCount")

	s.logs = request(Logs, "ExportLogsServiceRequest", "Logs", resource, scope, logRecord(), "logRecords")
	s.spans = request(Spans, "ExportTraceServiceRequest", "Spans", resource, scope, span(), "spans")
	s.metrics = request(Metrics, "ExportMetricsServiceRequest", "Metrics", resource, scope, metric(), "metrics")
	return s
}

func request(kind Kind, name, what string, resource, scope, record *message, records string) message {
	scopes := &message{name: "Scope" + what, room: 3}
	scopes.holds(scope, 1, "scope")
	scopes.holdsMany(record, 2, records)
	scopes.has(typeString, 3, "schemaUrl")

	resources := &message{name: "Resource" + what, room: 3, container: true}
	resources.holds(resource, 1, "resource")
	resources.holdsMany(scopes, 2, "scope"+what)
	resources.has(typeString, 3, "schemaUrl")

	m := message{name: name, kind: kind}
	m.holdsMany(resources, 1, "resource"+what)
	return m
}

func logRecord() *message {
	m := &message{name: "LogRecord", room: 2, record: true}
	m.has(typeFixed64, 1, "timeUnixNano")
	m.enumeration(2, "severityNumber", "SEVERITY_NUMBER_", "UNSPECIFIED",
		"TRACE", "TRACE2", "TRACE3", "TRACE4", "DEBUG", "DEBUG2", "DEBUG3", "DEBUG4", "INFO", "INFO2", "INFO3", "INFO4",
		"WARN", "WARN2", "WARN3", "WARN4", "ERROR", "ERROR2", "ERROR3", "ERROR4", "FATAL", "FATAL2", "FATAL3", "FATAL4")
	m.has(typeString, 3, "severityText")
	m.has(typeAny, 5, "body")
	m.attributes(6, "attributes")
	m.has(typeUint32, 7, "droppedAttributesCount")
	m.has(typeFixed32, 8, "flags")
	m.has(typeTraceID, 9, "traceId")
	m.has(typeSpanID, 10, "spanId")
	m.has(typeFixed64, 11, "observedTimeUnixNano")
	m.has(typeEventName, 12, "eventName")
	return m
}

func span() *message {
	event := &message{name: "Event", room: 1}
	event.has(typeFixed64, 1, "timeUnixNano")
	event.has(typeString, 2, "name")
	event.attributes(3, "attributes")
	event.has(typeUint32, 4, "droppedAttributesCount")

	link := &message{name: "Link", room: 1}
	link.has(typeTraceID, 1, "traceId")
	link.has(typeSpanID, 2, "spanId")
	link.has(typeString, 3, "traceState")
	link.attributes(4, "attributes")
	link.has(typeUint32, 5, "droppedAttributesCount")
	link.has(typeFixed32, 6, "flags")

	status := &message{name: "Status", room: 1}
	status.has(typeString, 2, "message")
	status.enumeration(3, "code", "STATUS_CODE_", "UNSET", "OK", "ERROR")

	m := &message{name: "Span", room: 2, record: true}
	m.has(typeTraceID, 1, "traceId")
	m.has(typeSpanID, 2, "spanId")
	m.has(typeString, 3, "traceState")
	m.has(typeSpanID, 4, "parentSpanId")
	m.has(typeString, 5, "name")
	m.enumeration(6, "kind", "SPAN_KIND_", "UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
	m.has(typeFixed64, 7, "startTimeUnixNano")
	m.has(typeFixed64, 8, "endTimeUnixNano")
	m.attributes(9, "attributes")
	m.has(typeUint32, 10, "droppedAttributesCount")
	m.holdsMany(event, 11, "events")
	m.has(typeUint32, 12, "droppedEventsCount")
	m.holdsMany(link, 13, "links")
	m.has(typeUint32, 14, "droppedLinksCount")
	m.holds(status, 15, "status")
	m.has(typeFixed32, 16, "flags")
	return m
}

func metric() *message {
	m := &message{name: "Metric", room: 2}
	m.has(typeString, 1, "name")
	m.has(typeString, 2, "description")
	m.has(typeString, 3, "unit")
	number, histogram := numberPoint(), histogramPoint()
	m.data(5, "gauge", number, false)
	sum := m.data(7, "sum", number, true)
	sum.has(typeBool, 3, "isMonotonic")
	m.data(9, "histogram", histogram, true)
	m.data(10, "exponentialHistogram", exponentialPoint(), true)
	m.data(11, "summary", summaryPoint(), false)
	m.attributes(12, "metadata")
	return m
}

func (m *message) data(num uint16, name string, point *message, temporality bool) *message {
	d := &message{name: strings.ToUpper(name[:1]) + name[1:], room: 2}
	d.holdsMany(point, 1, "dataPoints")
	if temporality {
		d.enumeration(2, "aggregationTemporality", "AGGREGATION_TEMPORALITY_", "UNSPECIFIED", "DELTA", "CUMULATIVE")
	}
	m.holds(d, num, name)
	m.fields[num].data = true
	m.list[len(m.list)-1].data = true
	return d
}

func exemplar() *message {
	m := &message{name: "Exemplar", room: 1}
	m.has(typeFixed64, 2, "timeUnixNano")
	m.has(typeDouble, 3, "asDouble")
	m.has(typeSpanID, 4, "spanId")
	m.has(typeTraceID, 5, "traceId")
	m.has(typeSfixed64, 6, "asInt")
	m.attributes(7, "filteredAttributes")
	return m
}

func numberPoint() *message {
	m := &message{name: "NumberDataPoint", room: 2, record: true}
	m.has(typeFixed64, 2, "startTimeUnixNano")
	m.has(typeFixed64, 3, "timeUnixNano")
	m.has(typeDouble, 4, "asDouble")
	m.holdsMany(exemplar(), 5, "exemplars")
	m.has(typeSfixed64, 6, "asInt")
	m.attributes(7, "attributes")
	m.has(typeUint32, 8, "flags")
	return m
}

func histogramPoint() *message {
	m := &message{name: "HistogramDataPoint", room: 2, record: true}
	m.has(typeFixed64, 2, "startTimeUnixNano")
	m.has(typeFixed64, 3, "timeUnixNano")
	m.has(typeFixed64, 4, "count")
	m.has(typeDouble, 5, "sum")
	m.many(typePackedFixed64, 6, "bucketCounts")
	m.many(typePackedDouble, 7, "explicitBounds")
	m.holdsMany(exemplar(), 8, "exemplars")
	m.attributes(9, "attributes")
	m.has(typeUint32, 10, "flags")
	m.has(typeDouble, 11, "min")
	m.has(typeDouble, 12, "max")
	return m
}

func exponentialPoint() *message {
	buckets := &message{name: "Buckets", room: 1}
	buckets.has(typeSint32, 1, "offset")
	buckets.many(typePackedUint64, 2, "bucketCounts")

	m := &message{name: "ExponentialHistogramDataPoint", room: 2, record: true}
	m.attributes(1, "attributes")
	m.has(typeFixed64, 2, "startTimeUnixNano")
	m.has(typeFixed64, 3, "timeUnixNano")
	m.has(typeFixed64, 4, "count")
	m.has(typeDouble, 5, "sum")
	m.has(typeSint32, 6, "scale")
	m.has(typeFixed64, 7, "zeroCount")
	m.holds(buckets, 8, "positive")
	m.holds(buckets, 9, "negative")
	m.has(typeUint32, 10, "flags")
	m.holdsMany(exemplar(), 11, "exemplars")
	m.has(typeDouble, 12, "min")
	m.has(typeDouble, 13, "max")
	m.has(typeDouble, 14, "zeroThreshold")
	return m
}

func summaryPoint() *message {
	quantile := &message{name: "ValueAtQuantile", room: 1}
	quantile.has(typeDouble, 1, "quantile")
	quantile.has(typeDouble, 2, "value")

	m := &message{name: "SummaryDataPoint", room: 2, record: true}
	m.has(typeFixed64, 2, "startTimeUnixNano")
	m.has(typeFixed64, 3, "timeUnixNano")
	m.has(typeFixed64, 4, "count")
	m.has(typeDouble, 5, "sum")
	m.holdsMany(quantile, 6, "quantileValues")
	m.attributes(7, "attributes")
	m.has(typeUint32, 8, "flags")
	return m
}
