package scope

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// An Asked is one thing that a workload was asked, as its telemetry has it.
type Asked struct {
	Text      string    // "" where the telemetry says that something was asked, and not what
	Found     string    // the event or attribute it stood in: a name of ours, never of the sender's
	SessionID string    // "" where there is none
	TraceID   string    // hex; "" where there is none
	SpanID    string    // hex; "" where there is none
	At        time.Time // zero where the telemetry has no time
}

// userPrompt ends the name of the event that coding agents send for each prompt: claude_code.user_prompt and user_prompt, gemini_cli.user_prompt,
// codex.user_prompt, …
const userPrompt = "user_prompt"

// FromLogs lists what was asked in one message of otlp_logs, in its order.
func FromLogs(value []byte) ([]Asked, error) {
	var data logspb.LogsData
	if err := proto.Unmarshal(value, &data); err != nil {
		return nil, fmt.Errorf("logs: not OTLP protobuf")
	}
	var out []Asked
	for _, r := range data.ResourceLogs {
		resource := attributes(r.GetResource().GetAttributes())
		for _, s := range r.ScopeLogs {
			for _, rec := range s.LogRecords {
				text, found := fromRecord(rec)
				if found == "" {
					continue
				}
				at := rec.TimeUnixNano
				if at == 0 {
					at = rec.ObservedTimeUnixNano
				}
				attrs := attributes(rec.Attributes)
				out = append(out, Asked{Text: present(text), Found: found, SessionID: session(attrs, resource), TraceID: hexID(rec.TraceId), SpanID: hexID(rec.SpanId), At: nanos(at)})
			}
		}
	}
	return out, nil
}

// FromSpans lists what was asked in one message of otlp_spans, in its order: at most one a span.
func FromSpans(value []byte) ([]Asked, error) {
	var data tracepb.TracesData
	if err := proto.Unmarshal(value, &data); err != nil {
		return nil, fmt.Errorf("spans: not OTLP protobuf")
	}
	var out []Asked
	for _, r := range data.ResourceSpans {
		resource := attributes(r.GetResource().GetAttributes())
		for _, s := range r.ScopeSpans {
			for _, span := range s.Spans {
				attrs := attributes(span.Attributes)
				text, found := fromSpan(span, attrs)
				if found == "" {
					continue
				}
				out = append(out, Asked{Text: present(text), Found: found, SessionID: session(attrs, resource), TraceID: hexID(span.TraceId), SpanID: hexID(span.SpanId),
					At: nanos(span.StartTimeUnixNano)})
			}
		}
	}
	return out, nil
}

// fromRecord is what a log record says was asked, and where; found is "" for a record that speaks of something else.
func fromRecord(rec *logspb.LogRecord) (string, string) {
	attrs := attributes(rec.Attributes)
	body := rec.GetBody()
	name := rec.EventName
	if name == "" {
		name = attrs.text("event.name")
	}
	if name == "" {
		name = body.GetStringValue()
	}
	switch {
	case name == userPrompt || strings.HasSuffix(name, "."+userPrompt):
		text := attrs.text("prompt")
		if text == "" && body.GetStringValue() != name {
			text = userText(plain(body), 0)
		}
		return text, userPrompt
	case name == "gen_ai.user.message", name == "gen_ai.content.prompt":
		return fromEvent(attrs, body), name
	}
	return fromAttributes(attrs)
}

// fromSpan is the same for a span: its attributes, else the last of its events. A span of a model call without any of them says that something was asked:
// with the capture of message content off, which is the default of the conventions, that is all there is.
func fromSpan(span *tracepb.Span, attrs attributeMap) (string, string) {
	if text, found := fromAttributes(attrs); found != "" {
		return text, found
	}
	for i := len(span.Events) - 1; i >= 0; i-- {
		ev := span.Events[i]
		eventAttrs := attributes(ev.Attributes)
		switch ev.Name {
		case "gen_ai.user.message", "gen_ai.content.prompt":
			return fromEvent(eventAttrs, nil), ev.Name
		}
		if text, found := fromAttributes(eventAttrs); found != "" {
			return text, found
		}
	}
	return "", modelCall(attrs)
}

// modelCall is the attribute that says that a span is a call of a model or an agent; "" where none does.
func modelCall(attrs attributeMap) string {
	switch attrs.text("gen_ai.operation.name") {
	case "chat", "text_completion", "generate_content", "invoke_agent":
		return "gen_ai.operation.name"
	}
	switch attrs.text("llm.request.type") {
	case "chat", "completion":
		return "llm.request.type"
	}
	if strings.EqualFold(attrs.text("openinference.span.kind"), "LLM") {
		return "openinference.span.kind"
	}
	return ""
}

// fromEvent reads the events of the GenAI conventions before 1.37: gen_ai.user.message has {content} as its body, or as attributes;
// gen_ai.content.prompt the attribute gen_ai.prompt, plain or a JSON list of messages.
func fromEvent(attrs attributeMap, body *commonpb.AnyValue) string {
	for _, name := range []string{"gen_ai.prompt", "content", "gen_ai.event.content", "body"} {
		if v, ok := attrs[name]; ok {
			if text := userText(parsed(v), 0); text != "" {
				return text
			}
		}
	}
	return userText(parsed(body), 0)
}

// messageLists are attributes that hold a whole conversation, as JSON or as an OTLP array, newest convention first.
var messageLists = []string{"gen_ai.input.messages", "gen_ai.prompt", "gen_ai.request.messages", "llm.prompts", "ai.prompt.messages"}

// fromAttributes tries the conventions one after another. The user's last message counts; system, assistant and tool messages are the workload's own.
func fromAttributes(attrs attributeMap) (string, string) {
	for _, name := range messageLists {
		if v, ok := attrs[name]; ok {
			return userText(parsed(v), 0), name
		}
	}
	for _, indexed := range []struct{ prefix, role, found string }{
		{"gen_ai.prompt.", "role", "gen_ai.prompt.N.content"},
		{"llm.prompts.", "role", "llm.prompts.N.content"},
		{"llm.input_messages.", "message.role", "llm.input_messages.N.message.content"},
	} {
		if text, any := attrs.lastIndexed(indexed.prefix, indexed.role); any {
			return text, indexed.found
		}
	}
	// What an operation was given: a question only where the operation is the whole of the workload's turn, or the model call.
	if v, ok := attrs["input.value"]; ok {
		switch strings.ToUpper(attrs.text("openinference.span.kind")) {
		case "LLM", "CHAIN", "AGENT":
			return userText(parsed(v), 0), "input.value"
		}
	}
	if v, ok := attrs["traceloop.entity.input"]; ok {
		switch attrs.text("traceloop.span.kind") {
		case "workflow", "agent":
			return userText(parsed(v), 0), "traceloop.entity.input"
		}
	}
	return "", ""
}

// present is "" for texts that stand for a text which was left out.
func present(s string) string {
	s = strings.TrimSpace(strings.ReplaceAll(strings.ToValidUTF8(s, "\ufffd"), "\x00", ""))
	switch strings.ToLower(strings.Trim(s, "<>[]()*_ ")) {
	case "", "redacted", "omitted", "filtered", "masked", "removed":
		return ""
	}
	return s
}

// session is the id of the session that the badge links to, where it is one that a signal may carry.
func session(maps ...attributeMap) string {
	for _, m := range maps {
		for _, name := range []string{"session.id", "gen_ai.conversation.id"} {
			if s := m.text(name); s != "" && len(s) <= 256 && utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return unicode.In(r, unicode.Cc, unicode.Cf) }) < 0 {
				return s
			}
		}
	}
	return ""
}

func hexID(b []byte) string { return hex.EncodeToString(b) }

func nanos(n uint64) time.Time {
	if n == 0 || n > 1<<62 {
		return time.Time{}
	}
	return time.Unix(0, int64(n)).UTC()
}
