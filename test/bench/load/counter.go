package load

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counterSize is what a counter has in its file, in the byte order of the machine.
const counterSize = 8

// counter is a number in a file, which others can read while it changes. The
// file is there already.
func counter(file string) (*atomic.Uint64, error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, counterSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", file, err)
	}
	return (*atomic.Uint64)(unsafe.Pointer(&b[0])), nil
}

// NewCounter makes the file of a counter.
func NewCounter(file string) error {
	if err := os.WriteFile(file, make([]byte, counterSize), 0o600); err != nil {
		return err
	}
	return os.Chmod(file, 0o666) // the application is another user
}

// readCounter is the number in a file, or 0 if there is no file.
func readCounter(file string) (uint64, error) {
	if file == "" {
		return 0, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	if len(b) != counterSize {
		return 0, fmt.Errorf("%s is not a counter", file)
	}
	return binary.NativeEndian.Uint64(b), nil
}
