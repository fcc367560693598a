package settings

import (
	"cmp"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// row is what the code and the page must agree on.
type row struct {
	Path, Before3, Default string
	Honoured               bool
}

func TestDocsTable(t *testing.T) {
	page, err := os.ReadFile("../../docs/settings.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented, coded []row
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 5 || !strings.HasPrefix(strings.TrimSpace(cells[0]), "`") {
			continue
		}
		cell := func(i int) string { return strings.Trim(cells[i], " `") }
		documented = append(documented, row{cell(0), cell(1), cell(2), cell(3) == "yes"})
	}
	for _, f := range fields() {
		coded = append(coded, row{f.path, f.before3, f.def, f.honoured})
	}
	byPath := func(a, b row) int { return cmp.Compare(a.Path, b.Path) }
	slices.SortFunc(documented, byPath)
	slices.SortFunc(coded, byPath)
	if diff := gocmp.Diff(coded, documented); diff != "" {
		t.Error("docs/settings.md (+) and the code (-) differ:", diff)
	}
	for _, name := range []string{AnnotationTrustDomain, AnnotationTrustDomainAliases, AnnotationAutoUpgrade} {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Error("docs/settings.md lacks", name)
		}
	}
}

// TestDocumentedDefaults writes every default of the table out: that must
// change nothing.
func TestDocumentedDefaults(t *testing.T) {
	settings := map[string]any{}
	for _, f := range fields() {
		if f.def == "" {
			continue
		}
		var value any
		if err := yaml.Unmarshal([]byte(f.def), &value); err != nil {
			t.Fatal(err)
		}
		at, keys := settings, strings.Split(f.path, ".")
		for _, key := range keys[:len(keys)-1] {
			if at[key] == nil {
				at[key] = map[string]any{}
			}
			at = at[key].(map[string]any)
		}
		at[keys[len(keys)-1]] = value
	}
	raw, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	m := config(t, "{version: 3, settings: {}}")
	m.Spec.Settings.Raw = raw
	got, _, err := Parse(m, Cluster{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(Default(""), got, netipCmp()); diff != "" {
		t.Error(diff)
	}
}
