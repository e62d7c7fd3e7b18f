package scope

import (
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	logspb "go.opentelemetry.io/proto/otlp/logs/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

const asked = "Digest the tickets"

func TestFromLogs(t *testing.T) {
	text := func(name, value string) string { return `{"key":"` + name + `","value":{"stringValue":` + value + `}}` }
	for _, c := range []struct{ name, record, want, found string }{
		{"Claude Code, by body", `{"body":{"stringValue":"claude_code.user_prompt"},"attributes":[` + text("event.name", `"user_prompt"`) + `,` + text("prompt", `"Digest the tickets"`) + `]}`, asked, "user_prompt"},
		{"by body alone", `{"body":{"stringValue":"claude_code.user_prompt"},"attributes":[` + text("prompt", `"Digest the tickets"`) + `]}`, asked, "user_prompt"},
		{"by event name", `{"eventName":"claude_code.user_prompt","attributes":[` + text("prompt", `"Digest the tickets"`) + `]}`, asked, "user_prompt"},
		{"without its prefix", `{"eventName":"user_prompt","attributes":[` + text("prompt", `"Digest the tickets"`) + `]}`, asked, "user_prompt"},
		{"another agent", `{"attributes":[` + text("event.name", `"gemini_cli.user_prompt"`) + `,` + text("prompt", `"Digest the tickets"`) + `]}`, asked, "user_prompt"},
		{"redacted", `{"eventName":"claude_code.user_prompt","attributes":[` + text("prompt", `"<REDACTED>"`) + `]}`, "", "user_prompt"},
		{"without a body", `{"eventName":"claude_code.user_prompt","attributes":[` + text("prompt_length", `"9"`) + `]}`, "", "user_prompt"},
		{"GenAI message event", `{"eventName":"gen_ai.user.message","body":{"kvlistValue":{"values":[` + text("content", `"Digest the tickets"`) + `]}}}`, asked, "gen_ai.user.message"},
		{"GenAI message event, parts", `{"eventName":"gen_ai.user.message","body":{"kvlistValue":{"values":[{"key":"content","value":{"arrayValue":{"values":[{"kvlistValue":{"values":[` +
			text("type", `"text"`) + `,` + text("text", `"Digest the tickets"`) + `]}}]}}}]}}}`, asked, "gen_ai.user.message"},
		{"GenAI details event", `{"eventName":"gen_ai.client.inference.operation.details","attributes":[{"key":"gen_ai.input.messages","value":{"arrayValue":{"values":[{"kvlistValue":{"values":[` +
			text("role", `"user"`) + `,{"key":"parts","value":{"arrayValue":{"values":[{"kvlistValue":{"values":[` + text("type", `"text"`) + `,` + text("content", `"Digest the tickets"`) + `]}}]}}}]}}]}}}]}`,
			asked, "gen_ai.input.messages"},
		{"system message", `{"eventName":"gen_ai.system.message","body":{"kvlistValue":{"values":[` + text("content", `"You are"`) + `]}}}`, "", "none"},
		{"tool result", `{"eventName":"claude_code.tool_result","attributes":[` + text("prompt", `"x"`) + `]}`, "", "none"},
		{"a line of log", `{"body":{"stringValue":"Digest the tickets"}}`, "", "none"},
	} {
		var data logspb.LogsData
		if err := protojson.Unmarshal([]byte(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[`+c.record+`]}]}]}`), &data); err != nil {
			t.Fatal(c.name, err)
		}
		check(t, c.name, &data, FromLogs, c.want, c.found)
	}
	if _, err := FromLogs([]byte("junk")); err == nil {
		t.Error("junk is logs")
	}
}

func TestFromSpans(t *testing.T) {
	text := func(name, value string) string { return `{"key":"` + name + `","value":{"stringValue":` + value + `}}` }
	for _, c := range []struct{ name, attributes, events, want, found string }{
		{"current", text("gen_ai.input.messages", `"[{\"role\":\"system\",\"parts\":[{\"type\":\"text\",\"content\":\"You are\"}]},{\"role\":\"user\",\"parts\":[{\"type\":\"text\",\"content\":\"first\"}]},{\"role\":\"assistant\",\"parts\":[]},{\"role\":\"user\",\"parts\":[{\"type\":\"text\",\"content\":\"Digest the tickets\"},{\"type\":\"blob\",\"content\":\"AA\"}]},{\"role\":\"tool\",\"parts\":[{\"type\":\"tool_call_response\",\"result\":\"x\"}]}]"`), "", asked, "gen_ai.input.messages"},
		{"messages with content", text("gen_ai.prompt", `"[{\"role\":\"user\",\"content\":\"Digest the tickets\"}]"`), "", asked, "gen_ai.prompt"},
		{"a plain prompt", text("gen_ai.prompt", `"Digest the tickets"`), "", asked, "gen_ai.prompt"},
		{"a tool's result in the user's name", text("gen_ai.input.messages", `"[{\"role\":\"user\",\"content\":\"Digest the tickets\"},{\"role\":\"user\",\"content\":[{\"type\":\"tool_result\",\"content\":\"x\"}]}]"`), "", asked, "gen_ai.input.messages"},
		{"flattened", text("gen_ai.prompt.0.role", `"system"`) + "," + text("gen_ai.prompt.0.content", `"You are"`) + "," + text("gen_ai.prompt.10.role", `"user"`) + "," + text("gen_ai.prompt.10.content", `"Digest the tickets"`) + "," + text("gen_ai.prompt.9.role", `"user"`) + "," + text("gen_ai.prompt.9.content", `"earlier"`), "", asked, "gen_ai.prompt.N.content"},
		{"Traceloop of old", text("llm.prompts.0.role", `"user"`) + "," + text("llm.prompts.0.content", `"Digest the tickets"`), "", asked, "llm.prompts.N.content"},
		{"Traceloop's workflow", text("traceloop.span.kind", `"workflow"`) + "," + text("traceloop.entity.input", `"{\"inputs\":{\"question\":\"Digest the tickets\"}}"`), "", asked, "traceloop.entity.input"},
		{"Traceloop's tool", text("traceloop.span.kind", `"tool"`) + "," + text("traceloop.entity.input", `"{\"inputs\":{\"question\":\"x\"}}"`), "", "", "none"},
		{"OpenInference messages", text("llm.input_messages.0.message.role", `"user"`) + "," + text("llm.input_messages.0.message.content", `"Digest the tickets"`), "", asked, "llm.input_messages.N.message.content"},
		{"OpenInference parts", text("llm.input_messages.1.message.role", `"user"`) + "," + text("llm.input_messages.1.message.contents.0.message_content.type", `"text"`) + "," + text("llm.input_messages.1.message.contents.0.message_content.text", `"Digest the tickets"`), "", asked, "llm.input_messages.N.message.content"},
		{"OpenInference input", text("openinference.span.kind", `"AGENT"`) + "," + text("input.value", `"Digest the tickets"`), "", asked, "input.value"},
		{"OpenInference tool", text("openinference.span.kind", `"TOOL"`) + "," + text("input.value", `"x"`), "", "", "none"},
		{"LangChain's messages", text("openinference.span.kind", `"CHAIN"`) + "," + text("input.value", `"{\"messages\":[[{\"type\":\"human\",\"content\":\"Digest the tickets\"},{\"type\":\"ai\",\"content\":\"x\"}]]}"`), "", asked, "input.value"},
		{"event of 2024", text("x", `"y"`), `{"name":"gen_ai.content.prompt","attributes":[` + text("gen_ai.prompt", `"[{\"role\":\"user\",\"content\":\"Digest the tickets\"}]"`) + `]}`, asked, "gen_ai.content.prompt"},
		{"message events", text("x", `"y"`), `{"name":"gen_ai.user.message","attributes":[` + text("content", `"first"`) + `]},{"name":"gen_ai.user.message","attributes":[` + text("content", `"Digest the tickets"`) + `]},{"name":"gen_ai.choice"}`, asked, "gen_ai.user.message"},
		{"no body", text("gen_ai.input.messages", `"[{\"role\":\"user\",\"parts\":[]}]"`), "", "", "gen_ai.input.messages"},
		{"flattened, the user's by name", text("gen_ai.prompt.0.user", `"Digest the tickets"`), "", asked, "gen_ai.prompt.N.content"},
		{"Traceloop of old, the user's by name", text("llm.prompts.0.user", `"Digest the tickets"`), "", asked, "llm.prompts.N.content"},
		{"flattened, without a role", text("gen_ai.prompt.0.content", `"Digest the tickets"`), "", asked, "gen_ai.prompt.N.content"},
		{"flattened, a role that is not the user's", text("gen_ai.prompt.0.role", `"system"`) + "," + text("gen_ai.prompt.0.content", `"You are"`), "", "", "gen_ai.prompt.N.content"},
		{"chat without content", text("gen_ai.operation.name", `"chat"`) + "," + text("gen_ai.request.model", `"m"`), "", "", "gen_ai.operation.name"},
		{"completion without content", text("gen_ai.operation.name", `"text_completion"`), "", "", "gen_ai.operation.name"},
		{"Gemini without content", text("gen_ai.operation.name", `"generate_content"`), "", "", "gen_ai.operation.name"},
		{"agent without content", text("gen_ai.operation.name", `"invoke_agent"`), "", "", "gen_ai.operation.name"},
		{"chat with content in an event", text("gen_ai.operation.name", `"chat"`), `{"name":"gen_ai.user.message","attributes":[` + text("content", `"Digest the tickets"`) + `]}`, asked, "gen_ai.user.message"},
		{"Traceloop without content", text("llm.request.type", `"chat"`), "", "", "llm.request.type"},
		{"OpenInference without content", text("openinference.span.kind", `"LLM"`) + "," + text("llm.model_name", `"m"`), "", "", "openinference.span.kind"},
		{"embeddings", text("gen_ai.operation.name", `"embeddings"`), "", "", "none"},
		{"a tool's execution", text("gen_ai.operation.name", `"execute_tool"`), "", "", "none"},
		{"nothing", text("http.route", `"/x"`), "", "", "none"},
	} {
		var data tracepb.TracesData
		if err := protojson.Unmarshal([]byte(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[`+c.attributes+`],"events":[`+c.events+`]}]}]}]}`), &data); err != nil {
			t.Fatal(c.name, err)
		}
		check(t, c.name, &data, FromSpans, c.want, c.found)
	}
}

func check(t *testing.T, name string, data proto.Message, read func([]byte) ([]Asked, error), want, found string) {
	t.Helper()
	b, err := proto.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := read(b)
	if err != nil {
		t.Fatal(name, err)
	}
	if found == "none" {
		if len(got) != 0 {
			t.Errorf("%s: found %+v", name, got)
		}
		return
	}
	if len(got) != 1 || got[0].Text != want || got[0].Found != found {
		t.Errorf("%s: %+v, want %q in %s", name, got, want, found)
	}
}

// FuzzUserText: no value of any shape ends a consumer.
func FuzzUserText(f *testing.F) {
	for _, s := range []string{`[{"role":"user","content":"x"}]`, `{"messages":[[{"type":"human"}]]}`, `"x"`, `{`, `[[[[[[[[[[[[[[[["x"]]]]]]]]]]]]]]]]`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if text := userText(unpack(s), 0); len(text) > 6*len(s)+6 {
			t.Errorf("%d bytes out of %d", len(text), len(s))
		}
	})
}
