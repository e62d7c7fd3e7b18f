package otlp

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// flatten lists each record with the headers it stands under, so that a payload and its parts can be compared.
func flatten(t *testing.T, kind Kind, payload []byte) []string {
	t.Helper()
	msg := newRequest(kind)
	if err := proto.Unmarshal(payload, msg); err != nil {
		t.Fatal(err)
	}
	var out []string
	var walk func(m protoreflect.Message, levels []level, headers string)
	walk = func(m protoreflect.Message, levels []level, headers string) {
		if len(levels) == 0 {
			out = append(out, headers+fmt.Sprintf("%x", marshal(t, m.Interface())))
			return
		}
		header := proto.Clone(m.Interface()).ProtoReflect()
		for i := range m.Descriptor().Fields().Len() {
			fd := m.Descriptor().Fields().Get(i)
			if levels[0]&(1<<fd.Number()) == 0 {
				continue
			}
			header.Clear(fd)
			if !m.Has(fd) {
				continue
			}
			if fd.IsList() {
				defer func() {
					for i := range m.Get(fd).List().Len() {
						walk(m.Get(fd).List().Get(i).Message(), levels[1:], headers+fmt.Sprintf("%x/", marshal(t, header.Interface())))
					}
				}()
			} else {
				defer func() {
					walk(m.Get(fd).Message(), levels[1:], headers+fmt.Sprintf("%x/", marshal(t, header.Interface())))
				}()
			}
		}
	}
	levels := split.logs
	if kind == Metrics {
		levels = split.metrics
	}
	walk(msg.ProtoReflect(), levels, "")
	return out
}

func manyOf(kind Kind) []byte {
	var all []byte
	for _, n := range []int{1, 7, 0, 30} {
		b, _ := proto.Marshal(agentRequest(kind, n))
		all = append(all, b...) // a request is a list: two put together are one
	}
	all = append(all, varintField(99, 1)...)
	out, _, _ := Rewrite(nil, kind, all, testBadge(), nil)
	return out
}

func TestSplitTo(t *testing.T) {
	for _, kind := range kinds {
		payload := manyOf(kind)
		want := flatten(t, kind, payload)
		for _, limit := range []int{len(payload), len(payload) - 1, len(payload) / 2, 20000, 9000, 5000, 2500, 1700, 900, 100, 1, 0} {
			t.Run(fmt.Sprint(kind, limit), func(t *testing.T) {
				var got []string
				parts := 0
				over, err := SplitTo(payload, kind, limit, func(part []byte, first, records int) error {
					parts++
					if len(part) > limit {
						t.Errorf("a part of %d bytes", len(part))
					}
					flat := flatten(t, kind, part)
					if len(flat) != records || records == 0 {
						t.Errorf("%d records said to be %d", len(flat), records)
					}
					if flat[0] != want[first] {
						t.Errorf("the first of a part is not record %d", first)
					}
					got = append(got, flat...)
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				if len(got)+over.Records != len(want) {
					t.Errorf("%d records and %d too large of %d", len(got), over.Records, len(want))
				}
				if limit > 2500 && over.Records > 0 {
					t.Errorf("%v", over)
				}
				if (over.Records > 0) != (over.Largest > limit || limit < 1500) || (over.Records > 0) != (over.String() != "") {
					t.Errorf("%+v %q", over, over)
				}
				i := 0
				for _, g := range got { // in order, none twice
					for i < len(want) && want[i] != g {
						i++
					}
					if i == len(want) {
						t.Fatal("a record changed, moved or came twice")
					}
					i++
				}
				if limit >= len(payload) && parts != 1 {
					t.Errorf("%d parts", parts)
				}
			})
		}
	}
}

func TestSplitToFillsItsParts(t *testing.T) {
	payload, _, _ := Rewrite(nil, Logs, marshal(t, agentLogs(100)), testBadge(), nil)
	parts := 0
	if _, err := SplitTo(payload, Logs, len(payload)/4, func([]byte, int, int) error { parts++; return nil }); err != nil || parts > 6 {
		t.Errorf("%d parts of a quarter each (%v)", parts, err)
	}
}

func TestSplitToNamesWhatIsTooLarge(t *testing.T) {
	req := agentLogs(5)
	req.ResourceLogs[0].ScopeLogs[0].LogRecords[2].Body = strValue(strings.Repeat("x", 5000))
	payload, _, _ := Rewrite(nil, Logs, marshal(t, req), testBadge(), nil)
	records := 0
	over, err := SplitTo(payload, Logs, 3000, func(part []byte, _, n int) error { records += n; return nil })
	if err != nil || records != 4 || over.Records != 1 || over.Largest < 5000 || over.Largest > 7000 {
		t.Errorf("%d records, %+v, %v", records, over, err)
	}
	if s := over.String(); !strings.HasPrefix(s, "1 too large") || !strings.Contains(s, "3000") {
		t.Error(s)
	}
	exact := over.Largest // what the report says is what is needed, within the bytes of the lengths
	over, err = SplitTo(payload, Logs, exact, func([]byte, int, int) error { return nil })
	if err != nil || over.Records != 0 {
		t.Errorf("with %d bytes allowed: %+v %v", exact, over, err)
	}
}

// The first record that is too large is named by its place and by its event, its span or its metric, and by nothing else of it.
func TestSplitToNamesTheFirst(t *testing.T) {
	const secret = "what was asked"
	huge := strValue(strings.Repeat(secret, 400))
	events := agentLogs(4)
	old := events.ResourceLogs[0].ScopeLogs[0].LogRecords[2]
	old.EventName, old.Body, old.Attributes = "", huge, append([]*common.KeyValue{str("event.name", "user_prompt")}, old.Attributes...)
	long := agentLogs(1)
	long.ResourceLogs[0].ScopeLogs[0].LogRecords[0].EventName, long.ResourceLogs[0].ScopeLogs[0].LogRecords[0].Body = strings.Repeat("é", 40)+"x", huge
	spans := agentSpans(3)
	span := spans.ResourceSpans[0].ScopeSpans[0].Spans[1]
	span.Attributes = append(span.Attributes, &common.KeyValue{Key: "prompt", Value: huge})
	points := agentMetrics(2)
	sum := points.ResourceMetrics[0].ScopeMetrics[0].Metrics[1]
	point := sum.GetSum().DataPoints[1]
	point.Attributes = append(point.Attributes, &common.KeyValue{Key: "prompt", Value: huge})
	headed := agentLogs(2)
	headed.ResourceLogs[0].Resource.Attributes = append(headed.ResourceLogs[0].Resource.Attributes, &common.KeyValue{Key: "huge", Value: huge})
	headed.ResourceLogs[0].ScopeLogs[0].LogRecords[0].EventName = "first"
	before := 0
	for _, m := range points.ResourceMetrics[0].ScopeMetrics[0].Metrics[:1] {
		before += len(m.GetSum().GetDataPoints()) + len(m.GetGauge().GetDataPoints()) + len(m.GetHistogram().GetDataPoints())
	}
	for want, c := range map[string]struct {
		kind Kind
		sent proto.Message
	}{
		`log record 2 "user_prompt"`:                                      {Logs, events},
		`log record 0 "` + strings.Repeat("é", 32) + `"`:                  {Logs, long},
		fmt.Sprintf("span 1 %q", span.Name):                               {Spans, spans},
		fmt.Sprintf("data point %d of the metric %q", before+1, sum.Name): {Metrics, points},
		`log record 0 "first"`:                                            {Logs, headed},
	} {
		payload, _, err := Rewrite(nil, c.kind, marshal(t, c.sent), testBadge(), nil)
		if err != nil {
			t.Fatal(err)
		}
		over, err := SplitTo(payload, c.kind, 4000, func([]byte, int, int) error { return nil })
		if err != nil || over.First.String() != want || !strings.Contains(over.String(), "first "+want+" (") || strings.Contains(over.String(), secret) {
			t.Errorf("%v; want %s (%v)", over, want, err)
		}
		if first := FirstRecord(payload, c.kind, 0); first.Place != 0 || first.Kind != c.kind {
			t.Errorf("%+v", first)
		}
	}
}

// The place of a record is that in the request, whose signals are not in the payload.
func TestPlace(t *testing.T) {
	req := agentLogs(9)
	var want []int
	for i, r := range req.ResourceLogs[0].ScopeLogs[0].LogRecords {
		if r.EventName = "other"; i == 0 || i == 3 || i == 4 || i == 8 {
			r.EventName = signalEvent
		} else {
			want = append(want, i)
		}
	}
	var r Rewriter
	for range 2 { // also with scratch
		if _, res, err := r.Rewrite(nil, Logs, marshal(t, req), testBadge(), Visitor{}); err != nil || res.Records != len(want) {
			t.Fatal(res, err)
		}
		for i, at := range want {
			if got := r.Place(i); got != at {
				t.Errorf("record %d of the payload was %d, not %d", i, at, got)
			}
		}
	}
	if _, _, err := r.Rewrite(nil, Logs, marshal(t, agentLogs(3)), testBadge(), Visitor{}); err != nil || r.Place(2) != 2 {
		t.Errorf("without signals record 2 was %d (%v)", r.Place(2), err)
	}
}

func TestSplitToCutsOneMetric(t *testing.T) {
	req := agentMetrics(40)
	m := req.ResourceMetrics[0].ScopeMetrics[0]
	m.Metrics = m.Metrics[1:2]
	payload, _, _ := Rewrite(nil, Metrics, marshal(t, req), testBadge(), nil)
	points := 0
	_, err := SplitTo(payload, Metrics, 2000, func(part []byte, _, n int) error {
		var got metricspb.ExportMetricsServiceRequest
		if err := proto.Unmarshal(part, &got); err != nil {
			return err
		}
		sum := got.ResourceMetrics[0].ScopeMetrics[0].Metrics[0]
		if sum.Name != "claude_code.token.usage" || sum.Unit != "tokens" || !sum.GetSum().IsMonotonic || sum.GetSum().AggregationTemporality != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA {
			t.Errorf("the metric lost its header: %v", sum)
		}
		points += len(sum.GetSum().DataPoints)
		return nil
	})
	if err != nil || points != 40 {
		t.Errorf("%d points (%v)", points, err)
	}
}

func TestSplitToStopsOnAnError(t *testing.T) {
	payload := manyOf(Logs)
	stop := errors.New("stop")
	calls := 0
	if _, err := SplitTo(payload, Logs, 3000, func([]byte, int, int) error { calls++; return stop }); !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
	if _, err := SplitTo([]byte{0x0a, 9}, Logs, 1, nil); err == nil {
		t.Error("took what is not OTLP")
	}
}

func TestSplitPartsAreTheReceivers(t *testing.T) {
	payload := manyOf(Logs)
	var parts, copies [][]byte
	if _, err := SplitTo(payload, Logs, 3000, func(part []byte, _, _ int) error {
		parts, copies = append(parts, part), append(copies, bytes.Clone(part))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	clear(payload)
	for i := range parts {
		if !bytes.Equal(parts[i], copies[i]) {
			t.Fatal("a part changed after it was given away")
		}
	}
}

// TestSplitToBoundsItsWork: a header that fills a message would be repeated for each record under it.
func TestSplitToBoundsItsWork(t *testing.T) {
	req := agentLogs(500)
	req.ResourceLogs[0].Resource.Attributes = append(req.ResourceLogs[0].Resource.Attributes, str("huge", strings.Repeat("x", 9000)))
	req.ResourceLogs = append(req.ResourceLogs, agentLogs(3).ResourceLogs...)
	payload, _, _ := Rewrite(nil, Logs, marshal(t, req), testBadge(), nil)
	records := 0
	over, err := SplitTo(payload, Logs, 12000, func(_ []byte, _, n int) error { records += n; return nil })
	if err != nil || records != 3 || over.Records != 500 || over.Largest != 0 || !strings.Contains(over.String(), "more than half of the 12000") {
		t.Errorf("%d records, %+v, %v", records, over, err)
	}
	sent, parts := 0, 0
	if over, err = SplitTo(payload, Logs, 20000, func(part []byte, _, n int) error { sent += len(part); parts++; return nil }); err != nil || over.Records != 0 || sent > 3*len(payload) {
		t.Errorf("%d bytes in %d parts of %d: %+v %v", sent, parts, len(payload), over, err)
	}
}

// Two halves by number have the same records under the same headers, in the same order, whatever their sizes are.
func TestHalve(t *testing.T) {
	for _, kind := range kinds {
		for _, n := range []int{2, 3, 7, 20} {
			payload, _ := checkRewrite(t, kind, marshal(t, agentRequest(kind, n)))
			want := flatten(t, kind, payload)
			var got []string
			var counts []int
			if err := Halve(payload, kind, func(part []byte, first, records int) error {
				flat := flatten(t, kind, part)
				if len(flat) != records || flat[0] != want[first] {
					t.Errorf("%d records are called %d, from %d on", len(flat), records, first)
				}
				got, counts = append(got, flat...), append(counts, records)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if len(counts) != 2 || counts[0] != len(want)/2 || strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("%s of %d: halves of %v records, which are not the same", kind, n, counts)
			}
		}
	}
	one, _ := checkRewrite(t, Logs, marshal(t, agentRequest(Logs, 1)))
	stop := errors.New("stop")
	if err := Halve(one, Logs, func([]byte, int, int) error { return nil }); err == nil {
		t.Error("a single record was halved")
	}
	two, _ := checkRewrite(t, Logs, marshal(t, agentRequest(Logs, 2)))
	if err := Halve(two, Logs, func([]byte, int, int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}
