package main

import (
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"flowstate.inc/sluice/signals"
)

// A doc is a page of Markdown, cut into what the tests of the docs look at.
type doc struct {
	path   string // from the repository's root
	prose  string // without its fenced blocks
	blocks []docBlock
	// anchors are the ids that a renderer gives its headings.
	anchors map[string]bool
}

// A docBlock is one fenced block. Its info string is a language, for sh maybe with what it needs that a test has not: needs=kubectl.
type docBlock struct {
	line        int
	section     string // the heading of the second level that it stands under
	info, lines string
}

const repositoryRoot = "../.."

// docPages are README.md and every page of deploy/docs.
func docPages(t *testing.T) []*doc {
	t.Helper()
	paths := []string{"README.md"}
	err := filepath.WalkDir(filepath.Join(repositoryRoot, "deploy"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && filepath.Ext(path) == ".md" {
			rel, relErr := filepath.Rel(repositoryRoot, path)
			paths, err = append(paths, rel), relErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var pages []*doc
	for _, p := range paths {
		b, err := os.ReadFile(filepath.Join(repositoryRoot, p))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, parseDoc(t, p, string(b)))
	}
	return pages
}

// An indentedLine after an empty one begins a block of code; what goes on a list is indented by less.
var indentedLine = regexp.MustCompile(`^(?: {4}|\t) *\S`)

var headingLine = regexp.MustCompile(`^(#{1,6}) +(.*?) *$`)

func parseDoc(t *testing.T, path, text string) *doc {
	t.Helper()
	d := &doc{path: path, anchors: map[string]bool{}}
	var prose, body strings.Builder
	var block *docBlock
	section, before := "", ""
	for i, line := range strings.Split(text, "\n") {
		switch {
		case block != nil && strings.TrimSpace(line) == "```":
			block.lines = body.String()
			d.blocks = append(d.blocks, *block)
			block = nil
		case block != nil:
			body.WriteString(line + "\n")
		case strings.HasPrefix(strings.TrimSpace(line), "```"):
			block = &docBlock{line: i + 1, section: section, info: strings.TrimPrefix(strings.TrimSpace(line), "```")}
			body.Reset()
		default:
			if indentedLine.MatchString(line) && before == "" {
				t.Errorf("%s:%d: an indented block, which no test reads: fence it", path, i+1)
			}
			if m := headingLine.FindStringSubmatch(line); m != nil {
				if len(m[1]) == 2 {
					section = m[2]
				}
				d.addAnchor(anchor(m[2]))
			}
			prose.WriteString(line + "\n")
		}
		before = strings.TrimSpace(line)
	}
	if block != nil {
		t.Errorf("%s:%d: this block does not end", path, block.line)
	}
	d.prose = prose.String()
	return d
}

// addAnchor numbers what stands twice, as GitHub does.
func (d *doc) addAnchor(a string) {
	name := a
	for n := 1; d.anchors[name]; n++ {
		name = fmt.Sprintf("%s-%d", a, n)
	}
	d.anchors[name] = true
}

var notInAnchors = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)

// anchor is GitHub's id of a heading.
func anchor(heading string) string {
	return strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(heading), ""), " ", "-")
}

var (
	docLink      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	docCode      = regexp.MustCompile("`[^`]+`")
	docFlag      = regexp.MustCompile("^--[a-z][a-z0-9-]*")
	alertRunbook = regexp.MustCompile(`docs/([a-z-]+\.md)#([A-Za-z0-9_-]+)`)
)

// TestDocsLinks follows every link between the files of the repository, to the heading where it names one. So it does for what the alert rules and the chart name.
func TestDocsLinks(t *testing.T) {
	pages := map[string]*doc{}
	for _, d := range docPages(t) {
		pages[d.path] = d
	}
	follow := func(from, target, fragment string) {
		if _, err := os.Stat(filepath.Join(repositoryRoot, target)); err != nil {
			t.Errorf("%s: there is no %s", from, target)
			return
		}
		if d := pages[target]; fragment != "" && (d == nil || !d.anchors[fragment]) {
			t.Errorf("%s: %s has no heading #%s", from, target, fragment)
		}
	}
	for _, d := range pages {
		for _, m := range docLink.FindAllStringSubmatch(docCode.ReplaceAllString(d.prose, ""), -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %s is no link: %v", d.path, m[1], err)
			} else if u.Scheme == "" {
				target := d.path
				if u.Path != "" {
					target = filepath.Join(filepath.Dir(d.path), u.Path)
				}
				follow(d.path, target, u.Fragment)
			}
		}
	}
	err := filepath.WalkDir(filepath.Join(repositoryRoot, "deploy"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json", ".tpl"}, filepath.Ext(path)) {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range alertRunbook.FindAllStringSubmatch(string(b), -1) {
			follow(path, "deploy/docs/"+m[1], m[2])
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// docNeeds are what a block may need that no test has. TestDocsCommands names the blocks.
var docNeeds = []string{"kubectl", "helm", "kafka-tools", "docker", "prometheus", "systemd", "promtool", "release", "judge"}

// runs says whether a test runs the block.
func (b docBlock) runs() bool { return b.info == "sh" }

// TestDocsBlocks holds every block to a known language, so that none is left out of the tests by a slip of the pen.
func TestDocsBlocks(t *testing.T) {
	known := []string{"sh", "text", "json", "yaml", "sql", "promql", "go", "python", "toml", "ini", "mermaid"}
	for _, d := range docPages(t) {
		for _, b := range d.blocks {
			language, needs, marked := strings.Cut(b.info, " needs=")
			if !slices.Contains(known, language) || marked && (language != "sh" || !slices.Contains(docNeeds, needs)) {
				t.Errorf("%s:%d: %q is none of %q, nor sh needs= one of %q", d.path, b.line, b.info, known, docNeeds)
			}
		}
	}
}

// TestDocsFlags finds each `--flag` of the prose among the program's.
func TestDocsFlags(t *testing.T) {
	flags := map[string]bool{"--help": true}
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) { flags["--"+f.Name] = true })
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand())
	for _, d := range docPages(t) {
		for _, code := range docCode.FindAllString(d.prose, -1) {
			flag := docFlag.FindString(strings.Trim(code, "`"))
			if flag != "" && !flags[flag] && !strings.Contains(code, "*") {
				t.Errorf("%s: no command has %s", d.path, flag)
			}
		}
	}
}

// answers.md tells senders the types, as they are in code.
func TestDocsNameTheTypes(t *testing.T) {
	taxonomy, err := signals.NewTaxonomy(signals.TaxonomyConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	want.WriteString("| type | category | severity unless sent | about |\n|---|---|---|---|\n")
	for _, st := range taxonomy.Types() {
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s |\n", st.Type, st.Category, st.BaseSeverity, st.AppliesTo)
	}
	page, err := os.ReadFile(filepath.Join(repositoryRoot, "deploy/docs/answers.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), want.String()+"\n") {
		t.Errorf("the table of types is not\n%s", want.String())
	}
}

var recordReasons = regexp.MustCompile(`sluice_ingest_records_total[^\n]*?reason(?:=~?)"\(?([a-z_|]+)`)

// A reason that does not exist matches nothing, and nobody notices at three in the morning.
func TestDocsNameReasonsOfRecords(t *testing.T) {
	known := map[string]bool{}
	for _, reasons := range signals.Reasons {
		for _, r := range reasons {
			known[string(r)] = true
		}
	}
	found := 0
	for _, page := range docPages(t) {
		b, err := os.ReadFile(filepath.Join(repositoryRoot, page.path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range recordReasons.FindAllStringSubmatch(string(b), -1) {
			for r := range strings.SplitSeq(m[1], "|") {
				if found++; !known[r] {
					t.Errorf("%s: sluice_ingest_records_total has no reason %q", page.path, r)
				}
			}
		}
	}
	if found == 0 {
		t.Error("no page names a reason: does the pattern still match?")
	}
}
