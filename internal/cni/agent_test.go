package cni

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// node is a node's directories and the agent on it.
func node(t *testing.T, mode Mode, files map[string]string) *Agent {
	t.Helper()
	dir := t.TempDir()
	a := &Agent{Mode: mode, ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Program: filepath.Join(dir, "program"), Exclude: []string{"kube-system"}, Log: slog.New(slog.DiscardHandler)}
	for _, d := range []string{a.ConfDir, a.BinDir} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	write(t, a.Program, "version 1")
	for name, text := range files {
		write(t, filepath.Join(a.ConfDir, name), text)
	}
	return a
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read1(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestInstallAndRemove(t *testing.T) {
	a := node(t, Install, map[string]string{"10-net.conflist": conflist, "20-other.conflist": conflist, "README": "x"})
	write(t, filepath.Join(a.BinDir, "."+Name+"-123.tmp"), "left by one that was killed")
	a.sweep()
	if err := a.Check(); err == nil {
		t.Error("ready before anything is installed")
	}
	if err := a.once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Check(); err != nil {
		t.Error(err)
	}
	bin := filepath.Join(a.BinDir, Name)
	if info, err := os.Stat(bin); err != nil || info.Mode().Perm() != 0o755 || read1(t, bin) != "version 1" {
		t.Errorf("program: %v, %v", info, err)
	}
	first, second := filepath.Join(a.ConfDir, "10-net.conflist"), filepath.Join(a.ConfDir, "20-other.conflist")
	if info, err := os.Stat(first); err != nil || info.Mode().Perm() != 0o600 || !slices.Contains(plugins(t, []byte(read1(t, first))), Name) {
		t.Errorf("%v, %v: %s", info, err, read1(t, first))
	}
	if read1(t, second) != conflist {
		t.Error("a configuration that nobody uses was changed")
	}
	// an upgrade replaces the program in one step, and repairs what others did
	write(t, a.Program, "version 2") // of one size with the version before
	next := &Agent{Mode: Install, ConfDir: a.ConfDir, BinDir: a.BinDir, Program: a.Program, Exclude: a.Exclude, Log: a.Log}
	if err := next.Check(); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("ready while another version is installed: %v", err)
	}
	write(t, first, conflist)
	if err := next.once(t.Context()); err != nil || read1(t, bin) != "version 2" || next.Check() != nil {
		t.Errorf("upgrade: %v, %v", err, next.Check())
	}
	next.Mode = Remove
	if err := next.Check(); err == nil {
		t.Error("removed before anything was")
	}
	if err := next.once(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := next.Check(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(bin); err == nil || slices.Contains(plugins(t, []byte(read1(t, first))), Name) {
		t.Error("something is left")
	}
	if err := next.once(t.Context()); err != nil {
		t.Error("removed twice:", err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(a.BinDir), "*", "."+Name+"*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestNoGap: at no moment does the configuration name a program that isn't there.
func TestNoGap(t *testing.T) {
	a := node(t, Install, map[string]string{"10-net.conflist": conflist})
	named := func() bool { return strings.Contains(read1(t, filepath.Join(a.ConfDir, "10-net.conflist")), Name) }
	if err := os.Remove(a.Program); err != nil {
		t.Fatal(err)
	}
	if err := a.once(t.Context()); err == nil || named() {
		t.Errorf("without a program: %v", err)
	}
	write(t, a.Program, "x")
	if err := a.once(t.Context()); err != nil || !named() {
		t.Fatal(err)
	}
	a.Mode, a.Pause = Remove, time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it ends in the pause
	if err := a.once(ctx); err != nil || named() {
		t.Errorf("still named: %v", err)
	}
	if _, err := os.Stat(filepath.Join(a.BinDir, Name)); err != nil {
		t.Error("the program goes at once with its entry, while a runtime may still need it:", err)
	}
}

func TestUnusableConfigurations(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no network configuration": nil,
		"10-a.conf":                {"10-a.conf": `{"name": "a", "type": "bridge"}`, "20-b.conflist": conflist},
		"10-b.conflist":            {"10-b.conflist": "{", "20-b.conflist": conflist},
	} {
		a := node(t, Install, files)
		if err := a.once(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if err := a.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		for file, text := range files {
			if read1(t, filepath.Join(a.ConfDir, file)) != text {
				t.Errorf("%s was changed", file)
			}
		}
		a.Mode = Remove
		if err := a.once(t.Context()); err != nil || a.Check() != nil {
			t.Errorf("%s: remove: %v, %v", name, err, a.Check())
		}
	}
	a := node(t, Install, nil)
	write(t, filepath.Join(filepath.Dir(a.BinDir), "real"), conflist)
	if err := os.Symlink("../real", filepath.Join(a.ConfDir, "10-net.conflist")); err != nil {
		t.Fatal(err)
	}
	if err := a.once(t.Context()); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a link: %v", err)
	}
}

// TestRewrittenMeanwhile: what somebody else has just written is not overwritten.
func TestRewrittenMeanwhile(t *testing.T) {
	a := node(t, Install, map[string]string{"10-net.conflist": conflist})
	newer := strings.Replace(conflist, "bridge", "ptp", 1)
	_, err := a.rewrite("10-net.conflist", []byte(conflist), func(conf []byte) ([]byte, bool, error) {
		write(t, filepath.Join(a.ConfDir, "10-net.conflist"), newer)
		return insert(conf, nil)
	})
	if err == nil || read1(t, filepath.Join(a.ConfDir, "10-net.conflist")) != newer {
		t.Errorf("overwritten: %v", err)
	}
}

// TestRun: a configuration that somebody rewrites gets the plugin back at once, a
// program that is deleted too, and an agent that ends changes nothing.
func TestRun(t *testing.T) {
	defer goleak.VerifyNone(t)
	a := node(t, Install, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	conf, bin := filepath.Join(a.ConfDir, "10-net.conflist"), filepath.Join(a.BinDir, Name)
	check := &Agent{Mode: Install, ConfDir: a.ConfDir, BinDir: a.BinDir, Program: a.Program, Exclude: a.Exclude}
	eventually := func(what string) {
		t.Helper()
		for start := time.Now(); check.Check() != nil; {
			if time.Since(start) > lookEvery/2 { // a look from time to time would take longer
				t.Fatalf("%s: %v", what, check.Check())
			}
			<-time.After(5 * time.Millisecond)
		}
	}
	<-time.After(50 * time.Millisecond) // the directories are watched by then, or looked at
	write(t, conf, conflist)
	eventually("a network configuration appears")
	write(t, conf, strings.Replace(conflist, "bridge", "ptp", 1))
	eventually("it is rewritten")
	if !strings.Contains(read1(t, conf), "ptp") {
		t.Error("the other's change is lost")
	}
	if err := os.Remove(bin); err != nil {
		t.Fatal(err)
	}
	eventually("the program is deleted")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if check.Check() != nil {
		t.Error("it ended, and took the plugin along")
	}
	if err := (&Agent{Mode: "x"}).Run(t.Context()); err == nil {
		t.Error("no mode")
	}
}

func TestWatchNowhere(t *testing.T) {
	if err := watch(t.Context(), make(chan struct{}, 1), "/nowhere"); err == nil {
		t.Error("it watches what is not there")
	}
}
