package main

import (
	"bytes"
	"testing"

	"flowstate.inc/sluice/bench/work"
	"github.com/klauspost/compress/gzip"
	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/proto"
)

// The floor does the work that it stands for: signals out, four attributes in, the rest as it was.
func TestRewrite(t *testing.T) {
	for _, shape := range []work.Shape{
		{Encoding: work.GzipProtobuf, Records: 20, Signals: 0.1},
		{Encoding: work.GzipJSON, Records: 20, Signals: 0.1},
	} {
		bodies, err := work.Make(shape, 5, 1)
		if err != nil {
			t.Fatal(err)
		}
		s := &server{subjects: map[[32]byte]*subject{}}
		s.add(0, "a key")
		var badge []byte
		for _, sub := range s.subjects {
			badge = sub.badge
		}
		for _, b := range bodies {
			plain := s.buffer()
			if err := s.gunzip(plain, b.Bytes); err != nil {
				t.Fatal(err)
			}
			body := *plain
			if shape.Encoding == work.GzipJSON {
				if body, err = fromJSON(nil, body); err != nil {
					t.Fatal(err)
				}
			}
			out, left, err := rewrite(nil, body, badge)
			if err != nil {
				t.Fatal(err)
			}
			var before, after logspb.ExportLogsServiceRequest
			if err := proto.Unmarshal(body, &before); err != nil {
				t.Fatal(err)
			}
			if err := proto.Unmarshal(out, &after); err != nil {
				t.Fatal(err)
			}
			if n := len(after.ResourceLogs[0].Resource.Attributes) - len(before.ResourceLogs[0].Resource.Attributes); n != 4 {
				t.Errorf("%d attributes spliced in", n)
			}
			records := after.ResourceLogs[0].ScopeLogs[0].LogRecords
			if left != b.Records-b.Filtered || len(records) != left || len(before.ResourceLogs[0].ScopeLogs[0].LogRecords) != b.Records {
				t.Errorf("%s: %d records left of %d with %d signals", shape.Name(), left, b.Records, b.Filtered)
			}
			for _, r := range records {
				if len(r.TraceId) != 16 || len(r.SpanId) != 8 || r.TimeUnixNano == 0 || len(r.Attributes) < 14 {
					t.Errorf("a record was damaged: %v", r)
				}
			}
		}
	}
}

func TestJunk(t *testing.T) {
	if _, _, err := rewrite(nil, []byte{10, 200, 1, 0}, nil); err == nil {
		t.Error("a length beyond the end was taken")
	}
	s := &server{}
	if err := s.gunzip(s.buffer(), bytes.Repeat([]byte{1}, 40)); err == nil || err == gzip.ErrChecksum {
		t.Errorf("%v", err)
	}
	if _, err := fromJSON(nil, []byte(`{"resourceLogs":[{}]}`)); err == nil {
		t.Error("a resource without attributes was taken")
	}
}
