package otlp

import (
	"testing"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"
)

func named(attributes ...string) *logspb.ResourceLogs {
	r := &resourcepb.Resource{}
	for i := 0; i < len(attributes); i += 2 {
		r.Attributes = append(r.Attributes, &commonpb.KeyValue{Key: attributes[i],
			Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: attributes[i+1]}}})
	}
	return &logspb.ResourceLogs{Resource: r}
}

func TestServiceName(t *testing.T) {
	number := named()
	number.Resource.Attributes = []*commonpb.KeyValue{{Key: "service.name", Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_IntValue{IntValue: 7}}}}
	for name, c := range map[string]struct {
		data *logspb.LogsData
		want string
	}{
		"none":       {&logspb.LogsData{}, ""},
		"no name":    {&logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{named("host.name", "a")}}, ""},
		"first":      {&logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{named("service.name", "digest")}}, "digest"},
		"last":       {&logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{named("a", "b", "service.name", "digest")}}, "digest"},
		"second one": {&logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{named("service.name", "one"), named("service.name", "two")}}, "one"},
		"no string":  {&logspb.LogsData{ResourceLogs: []*logspb.ResourceLogs{number}}, ""},
	} {
		b, err := proto.Marshal(c.data)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(ServiceName(b)); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if n := testing.AllocsPerRun(10, func() { ServiceName(b) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		for cut := range b { // whatever is there of it, nothing breaks
			ServiceName(b[:cut])
		}
	}
	for _, kind := range kinds {
		if got := string(ServiceName(marshal(t, agentRequest(kind, 2)))); got == "" {
			t.Errorf("no service in a request of %s", kind)
		}
	}
}
