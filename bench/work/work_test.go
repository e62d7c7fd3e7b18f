package work

import (
	"bytes"
	"compress/gzip"
	"io"
	"testing"

	logspb "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func decoded(t *testing.T, s Shape, b Body) *logspb.ExportLogsServiceRequest {
	t.Helper()
	raw := b.Bytes
	if s.Gzipped() {
		r, err := gzip.NewReader(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var req logspb.ExportLogsServiceRequest
	var err error
	if s.Encoding == GzipJSON {
		err = protojson.Unmarshal(raw, &req) // its ids come out wrong, being hex, which does not matter here
	} else {
		err = proto.Unmarshal(raw, &req)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &req
}

func TestMake(t *testing.T) {
	for _, s := range []Shape{
		{Encoding: Protobuf, Records: 1, Signals: 0.1},
		{Encoding: Protobuf, Records: 20, Signals: 0.1},
		{Encoding: GzipProtobuf, Records: 20, Signals: 0.1},
		{Encoding: GzipProtobuf, Records: 100, Signals: 0.1},
		{Encoding: GzipJSON, Records: 20, Signals: 0.1},
	} {
		bodies, err := Make(s, 50, 1)
		if err != nil {
			t.Fatal(err)
		}
		records, filtered, sent, raw := 0, 0, 0, 0
		for _, b := range bodies {
			sent += len(b.Bytes)
			raw += b.Raw
			seen, signals := 0, 0
			for _, r := range decoded(t, s, b).ResourceLogs[0].ScopeLogs[0].LogRecords {
				seen++
				if n := len(r.Attributes); n < 14 || n > 16 {
					t.Errorf("%s: %d attributes", s.Name(), n)
				}
				for _, a := range r.Attributes {
					if a.Key == "signal.type" && a.Value.GetStringValue() == FilteredType {
						signals++
					}
				}
			}
			if seen != b.Records || signals != b.Filtered {
				t.Errorf("%s: %d records and %d signals in a body of %d and %d", s.Name(), seen, signals, b.Records, b.Filtered)
			}
			records += seen
			filtered += signals
		}
		if filtered*10 != records {
			t.Errorf("%s: %d of %d records are signals", s.Name(), filtered, records)
		}
		t.Logf("%s: %d B a request as sent, %d raw, %d a record", s.Name(), sent/len(bodies), raw/len(bodies), raw/records)
	}
}

func TestSameSeedSameBytes(t *testing.T) {
	s := Shape{Encoding: GzipProtobuf, Records: 20, Signals: 0.1}
	a, err := Make(s, 3, 7)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Make(s, 3, 7)
	if err != nil {
		t.Fatal(err)
	}
	for i := range a {
		if !bytes.Equal(a[i].Bytes, b[i].Bytes) {
			t.Errorf("body %d differs", i)
		}
	}
}
