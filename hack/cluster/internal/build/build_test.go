package build

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMissingPackages(t *testing.T) {
	got := missingPackages(func(path string) bool { return path != "runc" && path != "/usr/lib/cni/bridge" })
	if want := []string{"runc", "containernetworking-plugins"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestApplyBuildsOncePerInput(t *testing.T) {
	b := Builder{Source: t.TempDir(), Cache: t.TempDir(), Progress: func(string, ...any) {}}
	input := filepath.Join(b.Source, "go.mod")
	built := 0
	p := part{name: "x", inputs: []string{"go.mod"}, build: func(_ context.Context, dir string) error {
		built++
		return os.WriteFile(filepath.Join(dir, "program"), nil, 0o600)
	}}
	var dirs []string
	for _, content := range []string{"a", "a", "b"} {
		if err := os.WriteFile(input, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		dir, err := b.apply(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(dir, "program")); err != nil {
			t.Error(err)
		}
		dirs = append(dirs, dir)
	}
	if built != 2 || dirs[0] != dirs[1] || dirs[1] == dirs[2] {
		t.Errorf("built %d times, into %q", built, dirs)
	}
}

func TestFlagsCarryTheVersion(t *testing.T) {
	for _, want := range []string{"version.gitVersion=v1.34.4", "version.gitMinor=34"} {
		if !strings.Contains(flags(), want) {
			t.Errorf("flags lack %q: %s", want, flags())
		}
	}
}
