package host

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseStat(t *testing.T) {
	tail := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20"
	for _, name := range []string{"(etcd)", "(a b)", "(a) S 9 (b)", "())"} {
		state, start, err := parseStat([]byte("42 " + name + tail))
		if err != nil || state != 'S' || start != 4711 {
			t.Errorf("%s: got %c, %d, %v", name, state, start, err)
		}
	}
	for _, bad := range []string{"", "42", "42 (x)", "42 (x) S 1 2", "42 (x)" + strings.Replace(tail, "4711", "x", 1)} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestProcessIdentity(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := ProcessOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "p.json")
	if err := p.Record(file); err != nil {
		t.Fatal(err)
	}
	read, err := Recorded(file)
	if err != nil || read != p {
		t.Fatalf("recorded %v, read %v, %v", p, read, err)
	}
	if !read.Alive() {
		t.Error("a running process is not alive")
	}
	if (Process{PID: p.PID, Start: p.Start + 1}).Alive() {
		t.Error("another process with the same pid is taken for this one")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if read.Alive() {
		t.Error("an ended process is alive")
	}
}

func TestRecordedWithoutFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.json")
	if p, err := Recorded(file); err != nil || p.Alive() {
		t.Errorf("no file: got %v, %v", p, err)
	}
	if err := os.WriteFile(file, []byte(`{"pid":`), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := Recorded(file); err != nil || p.Alive() {
		t.Errorf("half a file: got %v, %v", p, err)
	}
}

const mountinfo = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
31 22 0:27 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup rw
40 22 0:30 / /var/lib/podseal-cluster/a/x rw - tmpfs tmpfs rw
41 22 0:31 / /var/lib/podseal-cluster/a/x/y\040z rw - tmpfs tmpfs rw
42 22 0:32 / /var/lib/podseal-cluster/ab rw - tmpfs tmpfs rw
`

func TestParseHierarchies(t *testing.T) {
	all, unified := parseHierarchies(mountinfo)
	if !slices.Equal(all, []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"}) || unified != "/sys/fs/cgroup/unified" {
		t.Errorf("got %q, %q", all, unified)
	}
}

func TestParseMounts(t *testing.T) {
	got := parseMounts(mountinfo, "/var/lib/podseal-cluster/a")
	want := []string{"/var/lib/podseal-cluster/a/x/y z", "/var/lib/podseal-cluster/a/x"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
