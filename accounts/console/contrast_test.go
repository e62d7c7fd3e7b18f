package console

import (
	"math"
	"regexp"
	"strconv"
	"testing"
)

// TestContrast computes the WCAG 2 ratios of the pairs that the pages use, in both schemes, from the stylesheet itself.
func TestContrast(t *testing.T) {
	css, err := content.ReadFile("static/console.css")
	if err != nil {
		t.Fatal(err)
	}
	tokens := map[string][2]string{}
	for _, m := range regexp.MustCompile(`--([a-z0-9-]+): light-dark\((#[0-9a-f]{6,8}), (#[0-9a-f]{6,8})\);`).FindAllStringSubmatch(string(css), -1) {
		tokens[m[1]] = [2]string{m[2], m[3]}
	}
	const text, control = 4.5, 3.0
	f := func(fore, back string, least float64) {
		t.Helper()
		a, okA := tokens[fore]
		b, okB := tokens[back]
		if !okA || !okB {
			t.Fatalf("no token %s or %s", fore, back)
		}
		for i, scheme := range []string{"light", "dark"} {
			if got := ratio(t, a[i], b[i]); got < least {
				t.Errorf("%s: %s on %s is %.2f : 1, wants %.1f", scheme, fore, back, got, least)
			}
		}
	}
	for _, back := range []string{"canvas", "surface", "sunken", "raised", "hover"} {
		f("text", back, text)
		f("text-2", back, text)
		f("accent-text", back, text)
		f("danger-text", back, text)
		f("warning-text", back, text)
		f("information-text", back, text)
		f("success-text", back, text)
		f("focus", back, control)
		f("accent-solid", back, control)
	}
	for _, meaning := range []string{"accent", "danger", "warning", "information", "success"} {
		f(meaning+"-text", meaning+"-fill", text)
		f("text", meaning+"-fill", text)
	}
	f("ink-on", "ink-fill", text)
	f("accent-on", "accent-solid", text)
	f("accent-on", "accent-solid-hover", text)
	f("danger-on", "danger-solid", text)
	f("control", "surface", control)
	f("control", "canvas", control)
	f("control", "raised", control)
	for _, meaning := range []string{"danger", "warning", "information"} {
		f(meaning+"-solid", "surface", control)
	}
}

// ratio is the contrast of two opaque colours, #rrggbb, by WCAG 2.
func ratio(t *testing.T, a, b string) float64 {
	t.Helper()
	la, lb := luminance(t, a), luminance(t, b)
	return (math.Max(la, lb) + 0.05) / (math.Min(la, lb) + 0.05)
}

func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	channel := func(s string) float64 {
		n, err := strconv.ParseUint(s, 16, 8)
		if err != nil {
			t.Fatalf("colour %q: %v", hex, err)
		}
		c := float64(n) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*channel(hex[1:3]) + 0.7152*channel(hex[3:5]) + 0.0722*channel(hex[5:7])
}
