package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"

	"tandem/internal/term"
)

// configFile is the file of --config: long flag names and their values. A value is kept as the text
// in the file, so that it means the same as on the command line.
type configFile struct {
	name     string
	settings []setting
}

// setting is a line of a configuration file.
type setting struct {
	name  string
	line  int
	value *yaml.Node
}

// Decode reads the file; kong calls it.
func (f *configFile) Decode(ctx *kong.DecodeContext) error {
	if err := ctx.Scan.PopValueInto("file", &f.name); err != nil {
		return err
	}
	text, err := os.ReadFile(f.name)
	if err != nil {
		return err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document, next yaml.Node
	if err := decoder.Decode(&document); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", f.name, err)
	}
	switch err := decoder.Decode(&next); {
	case err == nil:
		return badArgument("", "%s:%d: a second document (after ---): want all settings in one", f.name, next.Line)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("%s: %w", f.name, err)
	}
	if len(document.Content) == 0 || document.Content[0].Tag == "!!null" {
		return nil // nothing, or comments
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%s: want settings such as \"listen: 127.0.0.1:8000\", one a line", f.name)
	}
	for i := 0; i < len(root.Content); i += 2 {
		name, value := root.Content[i], root.Content[i+1]
		if first := f.setting(name.Value); first != nil {
			return badArgument("", "%s:%d: %s is set twice, before in line %d",
				f.name, name.Line, name.Value, first.line)
		}
		f.settings = append(f.settings, setting{name.Value, name.Line, value})
	}
	return nil
}

// setting finds one by its name; nil: the file does not have it.
func (f *configFile) setting(name string) *setting {
	i := slices.IndexFunc(f.settings, func(s setting) bool { return s.name == name })
	if i < 0 {
		return nil
	}
	return &f.settings[i]
}

// value returns the setting of a flag, as the text of an argument; found is false when the file has none.
func (f *configFile) value(flag *kong.Flag) (text string, found bool, err error) {
	s := f.setting(flag.Name)
	if s == nil {
		return "", false, nil
	}
	bad := func(format string, args ...any) (string, bool, error) {
		return "", false, badArgument("", "%s:%d: %s: %w", f.name, s.line, s.name, fmt.Errorf(format, args...))
	}
	node := s.value
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch {
	case node.Kind == yaml.SequenceNode && !flag.IsSlice():
		return bad("want one value, found a list")
	case node.Kind == yaml.SequenceNode:
		var elements []string
		for _, element := range node.Content {
			if element.Kind != yaml.ScalarNode {
				return bad("want a list of values")
			}
			elements = append(elements, element.Value)
		}
		text = kong.JoinEscaped(elements, flag.Tag.Sep)
	case node.Kind != yaml.ScalarNode:
		return bad("want a value, found a table")
	default:
		text = node.Value
	}
	if node.Tag == "!!null" || text == "" {
		return "", false, nil // a name without a value is not set, as an empty variable is
	}
	context := &kong.DecodeContext{Value: flag.Value, Scan: kong.Scan().PushTyped(text, kong.FlagValueToken)}
	if err := flag.Mapper.Decode(context, reflect.New(flag.Target.Type()).Elem()); err != nil {
		return bad("%w", err)
	}
	return text, true, nil
}

// check refuses names that are not flags, and invalid values even if a flag or variable overrides them:
// a setting that is silently ignored is a trap.
func (f *configFile) check(flags []*kong.Flag) error {
	var names []string
	for _, flag := range flags {
		if flag.Name == "config" || flag.Name == "help" {
			continue
		}
		names = append(names, flag.Name)
		if _, _, err := f.value(flag); err != nil {
			return err
		}
	}
	for _, s := range f.settings {
		if slices.Contains(names, s.name) {
			continue
		}
		nearest := slices.MinFunc(names, func(a, b string) int {
			return cmp.Compare(typos(s.name, a), typos(s.name, b))
		})
		if typos(s.name, nearest) > max(1, len(s.name)/3) {
			return badArgument("", "%s:%d: unknown setting %q", f.name, s.line, s.name)
		}
		return badArgument("", "%s:%d: unknown setting %q; did you mean %s?", f.name, s.line, s.name, nearest)
	}
	return nil
}

// typos counts the keystrokes between a name and a flag's. Capitals and _ for - are none.
func typos(name, flag string) int {
	return term.Typos(strings.ReplaceAll(strings.ToLower(name), "_", "-"), flag)
}
