package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hierarchies returns the mount points of all cgroup hierarchies, and that of the
// second version among them, which may also be the only one.
func hierarchies() (all []string, unified string, err error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, "", fmt.Errorf("list mounts: %w", err)
	}
	all, unified = parseHierarchies(string(mounts))
	if unified == "" {
		return nil, "", errors.New("no cgroup2 hierarchy is mounted: it is needed to keep track of the cluster's processes")
	}
	return all, unified, nil
}

func parseHierarchies(mountinfo string) (all []string, unified string) {
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 {
			continue
		}
		switch kind[0] {
		case "cgroup":
			all = append(all, fields[4])
		case "cgroup2":
			all = append(all, fields[4])
			unified = fields[4]
		}
	}
	return all, unified
}

// MakeCgroup makes the group in every hierarchy and returns a directory that a
// process can be started in; the group's own processes live in its child "system".
func MakeCgroup(group string) (*os.File, error) {
	all, unified, err := hierarchies()
	if err != nil {
		return nil, err
	}
	for _, root := range all {
		if err := os.MkdirAll(filepath.Join(root, group), 0o755); err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
	}
	system := filepath.Join(unified, group, "system")
	if err := os.MkdirAll(system, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	dir, err := os.Open(system)
	if err != nil {
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	return dir, nil
}

// RemoveCgroup ends every process in the group, in whichever hierarchy it is, and
// removes the group. It is well when there is no such group.
func RemoveCgroup(ctx context.Context, group string) error {
	all, unified, err := hierarchies()
	if err != nil {
		return err
	}
	for {
		// Kills the whole tree at once, also what is being forked.
		_ = os.WriteFile(filepath.Join(unified, group, "cgroup.kill"), []byte("1"), 0)
		left := 0
		var last error
		for _, root := range all {
			n, err := removeTree(filepath.Join(root, group))
			left += n
			if err != nil {
				last = err
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", group, errors.Join(context.Cause(ctx), last))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// removeTree kills the processes of a group and of those below, removes what is
// empty and returns how many directories are left.
func removeTree(dir string) (left int, err error) {
	var dirs []string
	walk := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, d := range slices.Backward(dirs) {
		killAll(filepath.Join(d, "cgroup.procs"))
		if e := syscall.Rmdir(d); e != nil && !errors.Is(e, fs.ErrNotExist) {
			left++
			err = fmt.Errorf("remove %s: %w", d, e)
		}
	}
	return left, errors.Join(walk, err)
}

// killAll kills the processes that the file lists. A pid of 0 is a process that
// this pid namespace does not see.
func killAll(procs string) {
	content, err := os.ReadFile(procs)
	if err != nil {
		return
	}
	for field := range strings.FieldsSeq(string(content)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// HasCgroup reports whether the group exists in any hierarchy.
func HasCgroup(group string) (bool, error) {
	all, _, err := hierarchies()
	if err != nil {
		return false, err
	}
	for _, root := range all {
		if _, err := os.Stat(filepath.Join(root, group)); err == nil {
			return true, nil
		}
	}
	return false, nil
}
