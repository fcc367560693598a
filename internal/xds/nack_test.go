package xds

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestNackNamesSurvive(t *testing.T) {
	rejected := map[string]error{
		"shop/web":           errors.New("port 0"),
		"with \"quotes\": x": errors.New("two\nlines: \"odd\": here"),
		"line\nbreak":        errors.New(strings.Repeat("long ", 1000)),
		"ünï\xff":            errors.New("bad \xff bytes"),
	}
	text := nackText(rejected, 9)
	if !strings.HasPrefix(text, "4 of 9 resources rejected\n") {
		t.Errorf("text begins %q", text[:40])
	}
	if got, want := parseNack(text), slices.Sorted(maps.Keys(rejected)); !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	for i := range text {
		for _, name := range parseNack(text[:i]) {
			if rejected[name] == nil {
				t.Errorf("cut at %d: name %q that was never rejected", i, name)
			}
		}
	}
}

func FuzzNack(f *testing.F) {
	f.Add("a", "no port", "1 of 2 resources rejected\n\"a\": no port")
	f.Fuzz(func(t *testing.T, name, reason, text string) {
		parseNack(text)
		if got := parseNack(nackText(map[string]error{name: errors.New(reason)}, 1)); !slices.Equal(got, []string{name}) {
			t.Errorf("%q rejected, %q read", name, got)
		}
	})
}
