package cni

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const single = `{"cniVersion": "0.3.1", "name": "net", "type": "bridge", "mtu": 12345678901234567890}`

// used is the configuration that a runtime would use.
func used(t *testing.T, a *Agent) (name, text string) {
	t.Helper()
	name, conf, err := a.primary()
	if err != nil {
		t.Fatal(err)
	}
	return name, string(conf)
}

func inDir(t *testing.T, dir string) (names []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// TestSingle: a configuration with one plugin becomes a list in its place, is what it
// was when the plugin goes, and at no step is another used (contract 5.52).
func TestSingle(t *testing.T) {
	for _, file := range []string{"10-net.conf", "10-net.json"} {
		a := node(t, Install, map[string]string{file: single, "10-net.conflist.d": "x", "20-other.conflist": conflist})
		if err := a.Check(); err == nil {
			t.Error("ready before anything is installed")
		}
		if err := a.once(t.Context()); err != nil {
			t.Fatal(err)
		}
		name, conf := used(t, a)
		if name != file+".conflist" || !slices.Equal(plugins(t, []byte(conf)), []string{"bridge", Name}) || !strings.Contains(conf, "12345678901234567890") || !strings.Contains(conf, `"cniVersion": "0.3.1"`) {
			t.Errorf("%s: %s", name, conf)
		}
		if err := a.Check(); err != nil {
			t.Error(err)
		}
		if err := a.once(t.Context()); err != nil {
			t.Error("again:", err)
		}
		// the network's own daemon writes its file again
		newer := strings.Replace(single, "bridge", "ptp", 1)
		write(t, filepath.Join(a.ConfDir, file), newer)
		if err := a.Check(); err == nil {
			t.Error("ready while a configuration without the plugin is used")
		}
		if err := a.once(t.Context()); err != nil {
			t.Fatal(err)
		}
		if name, conf := used(t, a); name != file+".conflist" || !slices.Equal(plugins(t, []byte(conf)), []string{"ptp", Name}) {
			t.Errorf("%s: %s", name, conf)
		}
		a.Mode = Remove
		if err := a.Check(); err == nil {
			t.Error("removed before anything was")
		}
		for range 2 {
			if err := a.once(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Check(); err != nil {
			t.Error(err)
		}
		if got := inDir(t, a.ConfDir); !slices.Equal(got, []string{file, "10-net.conflist.d", "20-other.conflist"}) && !slices.Equal(got, []string{"10-net.conflist.d", file, "20-other.conflist"}) {
			t.Errorf("left: %v", got)
		}
		if got := read1(t, filepath.Join(a.ConfDir, file)); got != newer {
			t.Errorf("put back: %s", got)
		}
	}
}

// TestSingleOfOthers: what somebody has written meanwhile is not lost.
func TestSingleOfOthers(t *testing.T) {
	const file, list, aside = "10-net.conf", "10-net.conf.conflist", "10-net.conf.podseal"
	for name, tc := range map[string]struct {
		files map[string]string
		left  []string
		is    string // the content of what is used
	}{
		"the list is another's now": {map[string]string{aside: single, list: conflist}, []string{list}, "portmap"},
		"the list is gone":          {map[string]string{aside: single}, []string{file}, "bridge"},
		"its place is taken":        {map[string]string{aside: single, list: conflist, file: strings.Replace(single, "bridge", "ptp", 1)}, []string{file}, "ptp"},
		"an older list and a newer": {map[string]string{"05-new.conflist": conflist, aside: single, list: `{"name":"net","cniVersion":"0.3.1","plugins":[` + single + `]}`}, []string{"05-new.conflist", file}, "portmap"},
	} {
		a := node(t, Remove, tc.files)
		if err := a.once(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := inDir(t, a.ConfDir); !slices.Equal(got, tc.left) || a.Check() != nil {
			t.Errorf("%s: left %v, %v", name, got, a.Check())
		}
		if _, conf := used(t, a); !strings.Contains(conf, tc.is) {
			t.Errorf("%s: used %s", name, conf)
		}
	}
}

// TestTooOldForAChain: a version of the specification in which plugins aren't chained
// would keep every pod of the node from starting.
func TestTooOldForAChain(t *testing.T) {
	for file, text := range map[string]string{
		"10-a.conf":     strings.Replace(single, "0.3.1", "0.2.0", 1),
		"10-b.conf":     `{"name": "a", "type": "bridge"}`,
		"10-c.conf":     `{"cniVersion": "1.0.0"}`,
		"10-d.conflist": strings.Replace(conflist, `"cniVersion": "1.0.0"`, `"cniVersion": "0.2.0"`, 1),
	} {
		a := node(t, Install, map[string]string{file: text})
		if err := a.once(t.Context()); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
		if got := inDir(t, a.ConfDir); len(got) != 1 || read1(t, filepath.Join(a.ConfDir, file)) != text {
			t.Errorf("%s was changed, or has company: %v", file, got)
		}
	}
}
