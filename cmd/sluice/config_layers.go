package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// The layers of the configuration, each over those before it: default, file, environment, flag.
const (
	fromDefault = iota
	fromFile
	fromEnv
	fromFlag
)

// An origin says which layer gave a flag its value.
type origin struct {
	layer int
	where string // as an operator would look for it: a variable's name, a line of a file
}

func (o origin) String() string {
	switch o.layer {
	case fromFlag:
		return "flag " + o.where
	case fromEnv:
		return "environment " + o.where
	case fromFile:
		return "file " + o.where
	}
	return "default"
}

// originKey is the annotation of a flag that keeps its origin.
const originKey = "sluice_origin"

// originOf is where the value of f came from, once the layers were applied.
func originOf(f *pflag.Flag) string {
	if o := f.Annotations[originKey]; len(o) > 0 {
		return o[0]
	}
	return origin{}.String()
}

// configFlag names the configuration file. It is no setting of a file itself.
const configFlag = "config"

// secretFlags may also come from files.
var secretFlags = []string{"postgres-url", "redis-url", "kafka-password", "oidc-client-secret", "oidc-cookie-secret", "judge-key"}

// envName is the environment variable of a flag.
func envName(flag string) string {
	return "SLUICE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// layered adds --config and the file form of each secret to a command, and fills the flags that were not given from the environment, then
// from the file. A secret and its file form are one setting: the higher layer wins, and both in one layer are a mistake.
func layered(cmd *cobra.Command) {
	cmd.Flags().String(configFlag, "", "YAML file of settings, its keys the names of flags without the dashes; the environment and flags win over it")
	for _, name := range secretFlags {
		if cmd.Flags().Lookup(name) != nil {
			cmd.Flags().String(name+"-file", "", "file that holds --"+name)
		}
	}
	next := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if err := applyLayers(cmd); err != nil {
			return err
		}
		if next != nil {
			return next(cmd, args)
		}
		return nil
	}
}

func applyLayers(cmd *cobra.Command) error {
	l := layers{cmd: cmd, known: knownSettings(cmd.Root()), origins: map[string]origin{}}
	cmd.Flags().Visit(func(f *pflag.Flag) { l.origins[f.Name] = origin{fromFlag, "--" + f.Name} })
	errs := []error{l.environment(), misspelt(cmd.Root())}
	if path := cmd.Flags().Lookup(configFlag).Value.String(); path != "" {
		errs = append(errs, l.file(path))
	}
	errs = append(errs, l.secretFiles())
	if err := errors.Join(errs...); err != nil {
		return &usageError{err}
	}
	for name, o := range l.origins {
		if f := cmd.Flags().Lookup(name); f != nil {
			f.Annotations = map[string][]string{originKey: {o.String()}}
		}
	}
	return nil
}

// layers fills the flags of one command.
type layers struct {
	cmd     *cobra.Command
	known   map[string]bool // names of settings, of whatever command
	origins map[string]origin
}

func (l *layers) environment() error {
	var errs []error
	l.cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value := os.Getenv(envName(f.Name))
		// Compose files and charts write empty variables for what nobody has set.
		if value == "" || f.Name == "help" || l.origins[f.Name].layer > fromEnv {
			return
		}
		if err := l.cmd.Flags().Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", envName(f.Name), inWords(err)))
			return
		}
		l.origins[f.Name] = origin{fromEnv, envName(f.Name)}
	})
	return errors.Join(errs...)
}

// file reads the settings of the file. One file may serve all commands: what is a setting of another one is passed over.
func (l *layers) file(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("--%s: %w", configFlag, err)
	}
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil // an empty file
	case err != nil:
		return fmt.Errorf("--%s %s: %w", configFlag, path, err)
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return fmt.Errorf("--%s %s: it holds more than one document", configFlag, path)
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: use lines of the form NAME: VALUE", path, root.Line)
	}
	var errs []error
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		where := fmt.Sprintf("%s:%d", path, key.Line)
		switch f := l.cmd.Flags().Lookup(key.Value); {
		case !l.known[key.Value]:
			errs = append(errs, fmt.Errorf("%s: there is no setting %q%s", where, key.Value, didYouMean(key.Value, l.known)))
		case seen[key.Value]:
			errs = append(errs, fmt.Errorf("%s: %s is set twice", where, key.Value))
		case f == nil || l.origins[f.Name].layer > fromFile:
		default:
			if err := set(f, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", where, key.Value, err))
				break
			}
			f.Changed = true
			l.origins[f.Name] = origin{fromFile, where}
		}
		seen[key.Value] = true
	}
	return errors.Join(errs...)
}

// set gives f the value of a file: a scalar, and where f takes several, a list or NAME: VALUE lines.
func set(f *pflag.Flag, value *yaml.Node) error {
	scalar := func(n *yaml.Node) (string, error) {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
			return "", errors.New("it needs one value")
		}
		return n.Value, nil
	}
	var items []string
	switch value.Kind {
	case yaml.SequenceNode:
		for _, n := range value.Content {
			s, err := scalar(n)
			if err != nil {
				return err
			}
			items = append(items, s)
		}
		list, ok := f.Value.(pflag.SliceValue)
		if !ok {
			return errors.New("it takes one value, not a list")
		}
		return list.Replace(items)
	case yaml.MappingNode:
		for i := 0; i+1 < len(value.Content); i += 2 {
			s, err := scalar(value.Content[i+1])
			if err != nil {
				return err
			}
			items = append(items, value.Content[i].Value+"="+s)
		}
		if f.Value.Type() != "stringToString" {
			return errors.New("it takes one value, not NAME: VALUE lines")
		}
		return f.Value.Set(strings.Join(items, ","))
	}
	s, err := scalar(value)
	if err != nil {
		return err
	}
	if err := f.Value.Set(s); err != nil {
		if slices.Contains(secretFlags, f.Name) {
			return errors.New("the value cannot be read")
		}
		return fmt.Errorf("invalid value %q: %w", s, inWords(err))
	}
	return nil
}

// inWords says what a number must look like, where the error says how Go failed to read it.
func inWords(err error) error {
	var number *strconv.NumError
	if !errors.As(err, &number) {
		return err
	}
	must := "it must be a whole number, without a unit"
	switch {
	case errors.Is(number.Err, strconv.ErrRange):
		must = "it is too large"
	case number.Func == "ParseBool":
		must = "it must be true or false"
	case number.Func == "ParseFloat":
		must = "it must be a number, without a unit"
	}
	return errors.New(strings.Replace(err.Error(), number.Error(), must, 1))
}

// secretFiles reads the secrets that stand in files of their own.
func (l *layers) secretFiles() error {
	var errs []error
	for _, name := range secretFlags {
		f, file := l.cmd.Flags().Lookup(name), l.cmd.Flags().Lookup(name+"-file")
		if f == nil || file == nil || file.Value.String() == "" {
			continue
		}
		value, path := l.origins[f.Name], l.origins[file.Name]
		switch {
		case value.layer == path.layer:
			errs = append(errs, fmt.Errorf("--%s and --%s are both set (%s, %s): give one", f.Name, file.Name, value, path))
			continue
		case value.layer > path.layer:
			continue
		}
		b, err := os.ReadFile(file.Value.String())
		if err == nil && strings.TrimSpace(string(b)) == "" {
			err = errors.New("the file is empty")
		}
		if err == nil {
			err = l.cmd.Flags().Set(f.Name, strings.TrimSpace(string(b)))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", file.Name, err))
			continue
		}
		l.origins[f.Name] = path
	}
	return errors.Join(errs...)
}

// serving are the commands whose flags are settings, which a file may hold; those of the others say what one call is to do.
var serving = []string{"serve", "dev", "migrate"}

// knownSettings are the names that a file may hold.
func knownSettings(root *cobra.Command) map[string]bool {
	known := map[string]bool{}
	for _, c := range root.Commands() {
		if slices.Contains(serving, c.Name()) {
			c.Flags().VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" && f.Name != "json" && f.Name != configFlag {
					known[f.Name] = true
				}
			})
		}
	}
	return known
}

// Kubernetes sets these for every Service of the namespace, and a Service may well be called sluice.
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// strangers are the SLUICE_ variables of the environment that no command reads.
func strangers(root *cobra.Command) []string {
	known := map[string]bool{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) { known[envName(f.Name)] = true })
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	var out []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, "SLUICE_") && !known[name] && !serviceLink.MatchString(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// misspelt refuses the variables that are a slip of the finger away from a setting's. What is further off belongs to somebody else, and
// commands that start something only warn of it.
func misspelt(root *cobra.Command) error {
	settings := map[string]bool{}
	for name := range knownSettings(root) {
		settings[envName(name)] = true
	}
	settings[envName(configFlag)] = true
	var errs []error
	for _, name := range strangers(root) {
		if near, ok := nearest(name, len("SLUICE_"), settings); ok {
			errs = append(errs, fmt.Errorf("%s: nothing reads this variable; did you mean %s?", name, near))
		}
	}
	return errors.Join(errs...)
}

func didYouMean(name string, known map[string]bool) string {
	if near, ok := nearest(name, 0, known); ok {
		return fmt.Sprintf("; did you mean %s?", near)
	}
	return "; sluice serve --help lists them"
}

// nearest is the known name that is the fewest slips away from name, two at most and one in four letters after the first prefix.
func nearest(name string, prefix int, known map[string]bool) (string, bool) {
	limit := min(2, (len(name)-prefix)/4)
	best, least := "", limit+1
	for k := range known {
		if d := slips(name, k); d < least || d == least && best != "" && k < best {
			best, least = k, d
		}
	}
	return best, best != ""
}

// slips is how many letters were left out, added, changed or swapped with the next to make b of a.
func slips(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// readableByOthers says whether a file that may hold secrets is open to every user of the machine.
func readableByOthers(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Perm()&fs.FileMode(0o004) != 0
}
