package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// replace writes a file and puts it in the place of the one at path in one step, also
// if the machine goes down meanwhile. allowed, if not nil, is asked last.
func replace(path string, mode fs.FileMode, allowed func() error, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), temporary)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // it may be closed
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if allowed != nil {
		if err := allowed(); err != nil {
			return err
		}
	}
	return os.Rename(f.Name(), path)
}

// sameContent reports whether both files hold the same; a first that isn't there
// doesn't.
func sameContent(path, other string) (bool, error) {
	a, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the plugin: %w", err)
	}
	defer func() { _ = a.Close() }() // it was only read
	b, err := os.Open(other)
	if err != nil {
		return false, fmt.Errorf("look at the program: %w", err)
	}
	defer func() { _ = b.Close() }() // it was only read
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if errA != nil || errB != nil {
			end := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
			if end(errA) && end(errB) {
				return true, nil
			}
			return false, errors.Join(errors.New("compare the plugin with the program"), errA, errB)
		}
	}
}

// watch tells, at most once until that is taken, that something in the directories has
// changed, until the context ends.
func watch(ctx context.Context, changes chan<- struct{}, dirs ...string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch directories: %w", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	stop := context.AfterFunc(ctx, func() { _ = events.Close() }) // wakes the reader
	defer func() {
		if stop() {
			_ = events.Close() // there is nothing in it to lose
		}
	}()
	for _, dir := range dirs {
		if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_MOVED_FROM|unix.IN_DELETE|unix.IN_ONLYDIR); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	buffer := make([]byte, 4096)
	for {
		if _, err := events.Read(buffer); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch directories: %w", err)
		}
		select {
		case changes <- struct{}{}:
		default:
		}
	}
}
