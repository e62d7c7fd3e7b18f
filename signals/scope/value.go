package scope

import (
	"encoding/json"
	"strconv"
	"strings"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
)

// maxDepth bounds how deep a message is looked for within a value.
const maxDepth = 12

// An attributeMap is attributes by name; of those given twice the first counts, as in most back ends.
type attributeMap map[string]*commonpb.AnyValue

func attributes(list []*commonpb.KeyValue) attributeMap {
	m := make(attributeMap, len(list))
	for _, kv := range list {
		if _, twice := m[kv.GetKey()]; !twice {
			m[kv.GetKey()] = kv.GetValue()
		}
	}
	return m
}

func (m attributeMap) text(name string) string { return m[name].GetStringValue() }

// lastIndexed reads flattened messages, PREFIX.N.ROLE and PREFIX.N.[message.]content: the content of the user's last one that has any. Older writers gave no role,
// since all they had was what the user said, or named the text after it, PREFIX.N.user. The second result says whether there are such attributes at all.
func (m attributeMap) lastIndexed(prefix, role string) (string, bool) {
	last := -1
	for name := range m {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, ".")
		if n, err := strconv.Atoi(number); err == nil && n >= 0 && n < 100_000 {
			last = max(last, n)
		}
	}
	stem := strings.TrimSuffix(role, "role") // "" or "message."
	for n := last; n >= 0; n-- {
		at := prefix + strconv.Itoa(n) + "."
		if said := m.text(at + role); said != "" && !isUser(said) {
			continue
		}
		for _, name := range []string{stem + "content", "user"} {
			if v, ok := m[at+name]; ok {
				if text := userText(parsed(v), 0); present(text) != "" {
					return text, true
				}
			}
		}
		var parts []string
		for i := range 1000 {
			part, ok := m[at+stem+"contents."+strconv.Itoa(i)+".message_content.text"]
			if !ok {
				break
			}
			parts = append(parts, part.GetStringValue())
		}
		if len(parts) > 0 {
			return strings.Join(parts, "\n"), true
		}
	}
	return "", last >= 0
}

func isUser(role string) bool {
	switch strings.ToLower(role) {
	case "user", "human":
		return true
	}
	return false
}

// plain is an AnyValue as encoding/json would have it.
func plain(v *commonpb.AnyValue) any {
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_BytesValue:
		return string(v.BytesValue)
	case *commonpb.AnyValue_ArrayValue:
		var out []any
		for _, one := range v.ArrayValue.GetValues() {
			out = append(out, plain(one))
		}
		return out
	case *commonpb.AnyValue_KvlistValue:
		out := map[string]any{}
		for _, kv := range v.KvlistValue.GetValues() {
			if _, twice := out[kv.GetKey()]; !twice {
				out[kv.GetKey()] = plain(kv.GetValue())
			}
		}
		return out
	}
	return nil // numbers ask nothing
}

// parsed is plain, with a string that is JSON taken apart: SDKs without structured attributes send messages so.
func parsed(v *commonpb.AnyValue) any {
	value := plain(v)
	s, ok := value.(string)
	if !ok {
		return value
	}
	return unpack(s)
}

// unpack takes a string that holds a JSON object or array apart; any other is text.
func unpack(s string) any {
	t := strings.TrimSpace(s)
	if t == "" || (t[0] != '{' && t[0] != '[') {
		return s
	}
	var out any
	if json.Unmarshal([]byte(t), &out) != nil {
		return s
	}
	return out
}

// inputs are the members of an object that is no message under which its question may stand.
var inputs = []string{"messages", "inputs", "input", "question", "query", "prompt", "content", "parts", "text", "args", "kwargs"}

// userText is the user's last message within a value of unknown shape; "" where it has none.
//
// Messages are {role, content} or {role, parts}, content a text or parts of {type: text, text | content}. Parts of other types (tool results,
// pictures) are none of the user's words. A text by itself is the user's.
func userText(v any, depth int) string {
	if depth > maxDepth {
		return ""
	}
	switch v := v.(type) {
	case string:
		return v
	case []any:
		if areParts(v) {
			return joinParts(v)
		}
		for i := len(v) - 1; i >= 0; i-- {
			if text := userText(v[i], depth+1); present(text) != "" {
				return text
			}
		}
	case map[string]any:
		if role, ok := v["role"].(string); ok {
			if !isUser(role) {
				return ""
			}
			for _, name := range []string{"content", "parts"} {
				if text := contentText(v[name]); text != "" {
					return text
				}
			}
			return ""
		}
		if kind, ok := v["type"].(string); ok && kind != "text" && kind != "input_text" && kind != "human" && !hasAny(v, "messages", "inputs", "input") {
			return ""
		}
		for _, name := range inputs {
			if text := userText(v[name], depth+1); present(text) != "" {
				return text
			}
		}
	}
	return ""
}

func hasAny(v map[string]any, names ...string) bool {
	for _, name := range names {
		if _, ok := v[name]; ok {
			return true
		}
	}
	return false
}

// contentText is the text of a message's content.
func contentText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any:
		return joinParts(v)
	case map[string]any:
		return joinParts([]any{v})
	}
	return ""
}

// areParts says whether a list is the parts of one message rather than messages.
func areParts(list []any) bool {
	for _, one := range list {
		m, ok := one.(map[string]any)
		if !ok {
			return false
		}
		switch kind, _ := m["type"].(string); {
		case kind == "" || m["role"] != nil, kind == "human", kind == "ai", kind == "system", kind == "tool", kind == "message":
			return false // messages, by other words
		}
	}
	return len(list) > 0
}

func joinParts(list []any) string {
	var texts []string
	for _, one := range list {
		switch one := one.(type) {
		case string:
			texts = append(texts, one)
		case map[string]any:
			if kind, ok := one["type"].(string); ok && kind != "text" && kind != "input_text" {
				continue
			}
			for _, name := range []string{"text", "content"} {
				if s, ok := one[name].(string); ok && s != "" {
					texts = append(texts, s)
					break
				}
			}
		}
	}
	return strings.Join(texts, "\n")
}
