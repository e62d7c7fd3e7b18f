// Package chart draws bars and lines as SVG, in light and dark, with nothing to load.
package chart

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// A Value is a median and the range it is from.
type Value struct{ Mid, Low, High float64 }

// Missing is a value that was not measured.
func Missing() Value { return Value{math.NaN(), math.NaN(), math.NaN()} }

// A Series is what belongs to one name: a value for each group of bars, or for each X of a line.
type Series struct {
	Name   string
	X      []float64 // lines only
	Values []Value
}

// Colours that are told apart by those who see no red or no green, and on white as on black.
var colours = []string{"#0072b2", "#999999", "#d55e00", "#e69f00", "#009e73", "#cc79a7"}

const style = `<style>text{font:12px system-ui,sans-serif;fill:#222}.t{font-size:14px;font-weight:600}.g{stroke:#8884}.a{stroke:#888}.w{stroke:#222}` +
	`@media(prefers-color-scheme:dark){text{fill:#ddd}.w{stroke:#ddd}}</style>`

const (
	width  = 860.0
	height = 340.0
	left   = 70.0
	right  = 16.0
	top    = 56.0
	bottom = 48.0
)

type canvas struct{ strings.Builder }

func begin(title string) *canvas {
	c := &canvas{}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" role="img" aria-label="%s">%s`+"\n", width, height, html.EscapeString(title), style)
	c.text(left, 20, "start", "t", title)
	return c
}

func (c *canvas) end() string {
	c.WriteString("</svg>\n")
	return c.String()
}

func (c *canvas) text(x, y float64, anchor, class, s string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s" class="%s">%s</text>`+"\n", x, y, anchor, class, html.EscapeString(s))
}

func (c *canvas) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" class="%s"/>`+"\n", x1, y1, x2, y2, class)
}

func (c *canvas) legend(series []Series) {
	x := left
	for i, s := range series {
		fmt.Fprintf(c, `<rect x="%.1f" y="30" width="12" height="12" fill="%s"/>`+"\n", x, colour(i))
		c.text(x+17, 40, "start", "", s.Name)
		x += 34 + 7.2*float64(len(s.Name))
	}
}

func colour(i int) string { return colours[i%len(colours)] }

// upTo is a round number not below the largest value.
func upTo(series []Series) float64 {
	most := 0.0
	for _, s := range series {
		for _, v := range s.Values {
			if !math.IsNaN(v.High) {
				most = math.Max(most, v.High)
			}
		}
	}
	if most == 0 {
		return 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most)))
	for _, f := range []float64{1, 1.5, 2, 3, 4, 5, 6, 8, 10} {
		if step*f >= most {
			return step * f
		}
	}
	return step * 10
}

// y axis from 0, in five steps.
func (c *canvas) axis(most float64, unit string) func(float64) float64 {
	at := func(v float64) float64 { return height - bottom - v/most*(height-bottom-top) }
	for i := range 6 {
		v := most * float64(i) / 5
		c.line(left, at(v), width-right, at(v), "g")
		c.text(left-6, at(v)+4, "end", "", number(v))
	}
	c.text(width-right, 20, "end", "", unit)
	return at
}

func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

// Bars are groups of bars beside each other; a whisker is the range.
type Bars struct {
	Title, Unit string
	Groups      []string
	Series      []Series
}

// SVG draws them.
func (b Bars) SVG() string {
	c := begin(b.Title)
	c.legend(b.Series)
	at := c.axis(upTo(b.Series), b.Unit)
	group := (width - left - right) / float64(len(b.Groups))
	bar := math.Min(54, group*0.84/float64(max(len(b.Series), 1)))
	for g, name := range b.Groups {
		middle := left + group*(float64(g)+0.5)
		c.text(middle, height-bottom+18, "middle", "", name)
		n := 0
		for _, s := range b.Series {
			if !math.IsNaN(s.Values[g].Mid) {
				n++
			}
		}
		x := middle - bar*float64(n)/2
		for i, s := range b.Series {
			v := s.Values[g]
			if math.IsNaN(v.Mid) {
				continue
			}
			fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x+1, at(v.Mid), bar-2, at(0)-at(v.Mid), colour(i))
			c.line(x+bar/2, at(v.Low), x+bar/2, at(v.High), "w")
			c.text(x+bar/2, at(v.High)-4, "middle", "", number(v.Mid))
			x += bar
		}
	}
	c.line(left, at(0), width-right, at(0), "a")
	return c.end()
}

// Lines are values over a quantity, whose axis is logarithmic when it spans more than a factor of thirty.
type Lines struct {
	Title, Unit, XLabel string
	Series              []Series
}

// SVG draws them.
func (l Lines) SVG() string {
	c := begin(l.Title)
	c.legend(l.Series)
	at := c.axis(upTo(l.Series), l.Unit)
	low, high := math.Inf(1), math.Inf(-1)
	for _, s := range l.Series {
		for _, x := range s.X {
			low, high = math.Min(low, x), math.Max(high, x)
		}
	}
	scale := func(x float64) float64 { return x }
	if low >= 0 && high > 30*math.Max(low, 1) {
		scale = func(x float64) float64 { return math.Log10(math.Max(x, 0.5)) }
	}
	across := func(x float64) float64 {
		if high == low {
			return (left + width - right) / 2
		}
		return left + 24 + (scale(x)-scale(low))/(scale(high)-scale(low))*(width-left-right-48)
	}
	marked := map[float64]bool{}
	for i, s := range l.Series {
		var path strings.Builder
		for j, x := range s.X {
			v := s.Values[j]
			fmt.Fprintf(&path, "%.1f,%.1f ", across(x), at(v.Mid))
			c.line(across(x), at(v.Low), across(x), at(v.High), "w")
			fmt.Fprintf(c, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", across(x), at(v.Mid), colour(i))
			c.text(across(x), at(v.High)-7, "middle", "", number(v.Mid))
			if !marked[x] {
				marked[x] = true
				c.text(across(x), height-bottom+18, "middle", "", number(x))
			}
		}
		fmt.Fprintf(c, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.TrimSpace(path.String()), colour(i))
	}
	c.line(left, at(0), width-right, at(0), "a")
	c.text((left+width-right)/2, height-10, "middle", "", l.XLabel)
	return c.end()
}
