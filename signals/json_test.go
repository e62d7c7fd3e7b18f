package signals

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestCheckValue(t *testing.T) {
	f := func(v string, depth int, want error) {
		t.Helper()
		if !validJSON([]byte(v)) {
			t.Fatalf("%s is no JSON", v)
		}
		if err := checkValue([]byte(v), depth); !errors.Is(err, want) {
			t.Errorf("%s at %d: %v, want %v", v, depth, err, want)
		}
	}
	f(` {"a":1,"b":[{"a":2},{"a":3}],"c":{"a":"}]\"a\":"}} `, 3, nil)
	f(`{"a":1,"b":[{"a":2}]}`, 2, errDepth)
	f(`[[],[[]]]`, 3, nil)
	f(`[[],[[]]]`, 2, errDepth)
	f(`5`, 0, nil)
	f(`{}`, 0, errDepth)
	f(`[ { "a" : 1 , "\u0061" : 2 } ]`, 2, errDuplicate)
	f(`{"a":{"b":[{"c":1,"d":2,"c":3}]}}`, 9, errDuplicate)
	f(`{"é":1,"\u00e9":2}`, 9, errDuplicate)
	f(`{"":1,"":2}`, 9, errDuplicate)
	f(`{"A":1,"a":2}`, 9, nil)
	many := `{"a0":0`
	for i := range 40 {
		many += `,"b` + strings.Repeat("x", i) + `":0`
	}
	f(many+`}`, 1, nil)
	f(many+`,"a0":1}`, 1, errDuplicate)
}

// What is hostile costs no more for each byte than what is not: a megabyte of anything is read in well under a second.
func TestHostileBodiesAreLinear(t *testing.T) {
	const size = 1 << 20
	deep := strings.Repeat(`{"a":`, 30) + `"` + strings.Repeat("x", size) + `"` + strings.Repeat(`}`, 30)
	var names strings.Builder
	names.WriteString(`{"type":"a","details":{"z":0`)
	for i := 0; names.Len() < size; i++ {
		b, err := json.Marshal(strings.Repeat("n", i%50) + string(rune('a'+i%26)) + time.Duration(i).String())
		if err != nil {
			t.Fatal(err)
		}
		names.WriteString(`,` + string(b) + `:0`)
	}
	for name, body := range map[string]string{
		"deep":     `{"type":"a","details":` + deep + `}`,
		"names":    names.String() + `}}`,
		"items":    `[` + strings.Repeat(`{},`, size/3) + `{}]`,
		"brackets": `[` + strings.Repeat(`[`, 9_000) + strings.Repeat(`]`, 9_000) + `]`,
		"escapes":  `{"type":"` + strings.Repeat(`\u0061`, size/6) + `"}`,
		"spelling": `{"type":"a","details":{"x":"` + strings.Repeat(`fsk_\u005cu005c\\\\\\\\`, 8_000) + `"}}`,
		"spaces":   `{"type":"a"` + strings.Repeat(" ", size) + `}`,
		"lines":    strings.Repeat("{\n", size/2),
		"members":  `{"type":"a"` + strings.Repeat(`,"type":"a"`, size/11) + `}`,
	} {
		began := time.Now()
		if _, err := ParseRequest("application/json", []byte(body), "", Limits{}); err != nil && !errors.Is(err, ErrBody) && !errors.Is(err, ErrTooManyItems) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}
