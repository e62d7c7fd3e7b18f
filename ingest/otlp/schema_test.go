package otlp

import (
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestSchemaIsTheOfficialOne compares every message with its descriptor, so that taking a new version of OTLP is a decision.
func TestSchemaIsTheOfficialOne(t *testing.T) {
	for _, kind := range kinds {
		sameMessage(t, kind.request(), newRequest(kind).ProtoReflect().Descriptor())
	}
}

func sameMessage(t *testing.T, m *message, want protoreflect.MessageDescriptor) {
	t.Helper()
	if m.name != string(want.Name()) {
		t.Errorf("%s is called %s", want.FullName(), m.name)
	}
	if m.carries != carries(want) {
		t.Errorf("%s: carries attributes: %v", m.name, m.carries)
	}
	if len(m.list) != want.Fields().Len() {
		t.Errorf("%s has %d fields, want %d", m.name, len(m.list), want.Fields().Len())
	}
	for i := range want.Fields().Len() {
		fd := want.Fields().Get(i)
		f := m.byName([]byte(fd.JSONName()))
		if f == nil || f != m.byName([]byte(fd.Name())) {
			t.Errorf("%s: no %s by both of its names", m.name, fd.Name())
			continue
		}
		if protoreflect.FieldNumber(f.num) != fd.Number() || f.repeated != fd.IsList() || f.data != (m.name == "Metric" && fd.ContainingOneof() != nil) || m.fields[f.num].typ != f.typ || m.fields[f.num].data != f.data {
			t.Errorf("%s.%s: %+v", m.name, fd.Name(), f)
		}
		sameType(t, m, f, fd)
	}
}

func sameType(t *testing.T, m *message, f *field, fd protoreflect.FieldDescriptor) {
	t.Helper()
	kinds := map[fieldType]protoreflect.Kind{
		typeString: protoreflect.StringKind, typeEntityKey: protoreflect.StringKind, typeEventName: protoreflect.StringKind,
		typeTraceID: protoreflect.BytesKind, typeSpanID: protoreflect.BytesKind,
		typeMessage: protoreflect.MessageKind, typeAttribute: protoreflect.MessageKind, typeAny: protoreflect.MessageKind,
		typeBool: protoreflect.BoolKind, typeInt32: protoreflect.Int32Kind, typeSint32: protoreflect.Sint32Kind,
		typeUint32: protoreflect.Uint32Kind, typeEnum: protoreflect.EnumKind, typeFixed32: protoreflect.Fixed32Kind,
		typeFixed64: protoreflect.Fixed64Kind, typeSfixed64: protoreflect.Sfixed64Kind, typeDouble: protoreflect.DoubleKind,
		typePackedFixed64: protoreflect.Fixed64Kind, typePackedDouble: protoreflect.DoubleKind, typePackedUint64: protoreflect.Uint64Kind,
	}
	if kinds[f.typ] != fd.Kind() || fd.IsPacked() != (f.typ >= typePackedFixed64) {
		t.Errorf("%s.%s: type %d for a %v", m.name, f.name, f.typ, fd.Kind())
		return
	}
	switch f.typ {
	case typeMessage:
		sameMessage(t, f.msg, fd.Message())
	case typeAttribute:
		if fd.Message().Name() != "KeyValue" {
			t.Errorf("%s.%s is no attribute", m.name, f.name)
		}
	case typeAny:
		if fd.Message().Name() != "AnyValue" {
			t.Errorf("%s.%s is no AnyValue", m.name, f.name)
		}
	case typeEnum:
		values := fd.Enum().Values()
		if values.Len() != len(f.enum) {
			t.Errorf("%s.%s: %d names of %d", m.name, f.name, len(f.enum), values.Len())
			return
		}
		for i := range values.Len() {
			v := values.Get(i)
			if got, ok := f.enumValue([]byte(v.Name())); !ok || got != uint64(v.Number()) {
				t.Errorf("%s.%s: %s is %d %v", m.name, f.name, v.Name(), got, ok)
			}
		}
	}
}

func carries(d protoreflect.MessageDescriptor) bool {
	if d.Name() == "EntityRef" {
		return true
	}
	for i := range d.Fields().Len() {
		if fd := d.Fields().Get(i); fd.Message() != nil && fd.Message().Name() != "AnyValue" && (fd.Message().Name() == "KeyValue" || carries(fd.Message())) {
			return true
		}
	}
	return false
}

// TestSmallMessages does for the messages that have code of their own what the schema does for the others.
func TestSmallMessages(t *testing.T) {
	attributes := newRequest(Logs).ProtoReflect().Descriptor().Fields().ByNumber(1).Message().Fields().ByNumber(1).Message().Fields().ByNumber(1)
	kv := attributes.Message()
	anyValue := kv.Fields().ByNumber(2).Message()
	if kv.Fields().Len() != 3 || anyValue.Fields().Len() != 8 {
		t.Fatalf("KeyValue has %d fields, AnyValue %d", kv.Fields().Len(), anyValue.Fields().Len())
	}
	for i := range anyValue.Fields().Len() {
		fd := anyValue.Fields().Get(i)
		if tag := anyTag([]byte(fd.JSONName())); tag == 0 || tag != anyTag([]byte(fd.Name())) || protoreflect.FieldNumber(tag>>3) != fd.Number() {
			t.Errorf("%s has tag %d", fd.Name(), tag)
		}
	}
}
