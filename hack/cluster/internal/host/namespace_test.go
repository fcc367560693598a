package host

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// inOwnMounts runs f on a thread with mounts of its own and an empty /run, so that
// the names of the machine's network namespaces are out of reach.
func inOwnMounts(t *testing.T, f func(context.Context)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its mounts
		for _, step := range []func() error{
			func() error { return syscall.Unshare(syscall.CLONE_NEWNS) },
			func() error { return syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, "") },
			func() error { // the copy of the machine's own mount, if there is one
				_ = syscall.Unmount(NamespaceDir, syscall.MNT_DETACH)
				return syscall.Mount("tmpfs", "/run", "tmpfs", 0, "")
			},
		} {
			if err := step(); err != nil {
				done <- err
				return
			}
		}
		f(t.Context())
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// mountsOver returns how many mounts lie on NamespaceDir itself, and how many of
// them are shared.
func mountsOver(t *testing.T) (all, shared int) {
	t.Helper()
	content, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range bytes.Lines(content) {
		if fields := strings.Fields(string(line)); fields[4] == NamespaceDir {
			all++
			if strings.Contains(string(line), " shared:") {
				shared++
			}
		}
	}
	return all, shared
}

func TestNamesOfOthersHideNothing(t *testing.T) {
	ip := func(ctx context.Context, args ...string) {
		if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
			t.Errorf("ip %q: %v: %s", args, err, out)
		}
	}
	inOwnMounts(t, func(ctx context.Context) {
		for range 2 { // the second round finds what the first one left
			if err := MakeNamespace(ctx, "podseal-a-1"); err != nil {
				t.Error(err)
			}
			ip(ctx, "netns", "add", "other")
			if err := MakeNamespace(ctx, "podseal-a-2"); err != nil {
				t.Error(err)
			}
			if all, shared := mountsOver(t); all != 1 || shared != 1 {
				t.Errorf("%d mounts over %s, %d of them shared; want one, shared", all, NamespaceDir, shared)
			}
			if err := RemoveNamespaces(ctx, []string{"podseal-a-1", "podseal-a-2", "podseal-a-3"}); err != nil {
				t.Errorf("remove: %v", err)
			}
			if names, err := Namespaces(""); err != nil || len(names) != 1 || !HasNamespace("other") {
				t.Errorf("left: %q, %v; want the other one only", names, err)
			}
			if all, _ := mountsOver(t); all != 1 {
				t.Errorf("%d mounts over %s while it has a name of others", all, NamespaceDir)
			}
			ip(ctx, "netns", "del", "other")
			if err := RemoveNamespaces(ctx, []string{"podseal-a-1"}); err != nil {
				t.Errorf("remove what is gone: %v", err)
			}
			if all, _ := mountsOver(t); all != 0 {
				t.Errorf("%d mounts over %s when it is empty", all, NamespaceDir)
			}
		}
	})
}
