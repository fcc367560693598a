package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// NamespaceDir is where iproute2 looks for named network namespaces.
const NamespaceDir = "/run/netns"

// nsfs is the magic number of the file system of namespaces.
const nsfs = 0x6e736673

// HasNamespace reports whether a network namespace of that name exists.
func HasNamespace(name string) bool {
	var stat syscall.Statfs_t
	return syscall.Statfs(filepath.Join(NamespaceDir, name), &stat) == nil && stat.Type == nsfs
}

// MakeNamespace makes a named network namespace as "ip netns add" does: on a shared
// mount over NamespaceDir. Without that mount the next "ip netns add" of anybody
// would put one over the directory, and hide the mounts of these names below it.
func MakeNamespace(ctx context.Context, name string) error {
	unlock, err := lockNamespaces(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := shareNamespaceDir(); err != nil {
		return err
	}
	path := filepath.Join(NamespaceDir, name)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	if err := file.Close(); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	return Command(ctx, "unshare", "--net="+path, "true")
}

// lockNamespaces takes the lock on NamespaceDir that iproute2 takes too.
func lockNamespaces(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(NamespaceDir, 0o755); err != nil {
		return nil, fmt.Errorf("make %s: %w", NamespaceDir, err)
	}
	dir, err := os.Open(NamespaceDir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", NamespaceDir, err)
	}
	return flock(ctx, dir)
}

// shareNamespaceDir makes NamespaceDir a shared mount point.
func shareNamespaceDir() error {
	share := func() error { return syscall.Mount("", NamespaceDir, "none", syscall.MS_SHARED|syscall.MS_REC, "") }
	err := share()
	if errors.Is(err, syscall.EINVAL) { // not a mount point yet
		if err := syscall.Mount(NamespaceDir, NamespaceDir, "none", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s on itself: %w", NamespaceDir, err)
		}
		err = share()
	}
	if err != nil {
		return fmt.Errorf("share the mount of %s: %w", NamespaceDir, err)
	}
	return nil
}

// releaseNamespaceDir removes the mount over NamespaceDir when no name is left
// there. "ip netns add" makes it anew when it misses it.
func releaseNamespaceDir(ctx context.Context) error {
	unlock, err := lockNamespaces(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	names, err := Namespaces("")
	if err != nil || len(names) > 0 {
		return err
	}
	// Detached, since the lock itself is an open file of the mount.
	err = syscall.Unmount(NamespaceDir, syscall.MNT_DETACH)
	if err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("unmount %s: %w", NamespaceDir, err)
	}
	return nil
}

// RemoveNamespaces ends every process in the named network namespaces, except this
// one and its ancestors, and removes the names. Names that do not exist are well.
func RemoveNamespaces(ctx context.Context, names []string) error {
	inodes := make(map[uint64]bool)
	for _, name := range names {
		var stat syscall.Stat_t
		if HasNamespace(name) && syscall.Stat(filepath.Join(NamespaceDir, name), &stat) == nil {
			inodes[stat.Ino] = true
		}
	}
	if err := killIn(ctx, inodes); err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(NamespaceDir, name)
		for HasNamespace(name) {
			if err := syscall.Unmount(path, syscall.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
				break
			}
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			if errors.Is(err, syscall.EBUSY) {
				err = fmt.Errorf("%w: something was mounted over %s meanwhile; \"umount -R %s\", then repeat this", err, NamespaceDir, NamespaceDir)
			}
			errs = append(errs, fmt.Errorf("remove network namespace: %w", err))
		}
	}
	errs = append(errs, releaseNamespaceDir(ctx))
	return errors.Join(errs...)
}

func killIn(ctx context.Context, inodes map[uint64]bool) error {
	if len(inodes) == 0 {
		return nil
	}
	for {
		processes, err := inNamespaces(inodes)
		if err != nil {
			return err
		}
		alive := 0
		for _, p := range processes {
			if p.Alive() {
				alive++
				_ = syscall.Kill(p.PID, syscall.SIGKILL)
			}
		}
		if alive == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end %d processes in the cluster's network namespaces: %w", alive, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Namespaces returns the named network namespaces, also half-made ones, whose
// names begin with the prefix.
func Namespaces(prefix string) ([]string, error) {
	entries, err := os.ReadDir(NamespaceDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Inside returns a command line that runs args in the named network namespace.
func Inside(namespace string, args ...string) []string {
	return append([]string{"nsenter", "--net=" + filepath.Join(NamespaceDir, namespace), "--"}, args...)
}

// Command runs a command and returns its error output as part of the error.
func Command(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// Commands runs commands in order in the named network namespace.
func Commands(ctx context.Context, namespace string, commands [][]string) error {
	for _, args := range commands {
		if err := Command(ctx, Inside(namespace, args...)...); err != nil {
			return err
		}
	}
	return nil
}
