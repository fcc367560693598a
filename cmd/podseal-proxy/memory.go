package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// extent is a piece of the address space.
type extent struct{ start, size uintptr }

// forgetProgram takes the pages of the program's own file out of memory, of which
// an idle proxy needs few; those are mapped again from the page cache.
// Half of what a small idle proxy holds is such pages.
func forgetProgram() error {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("read own memory map: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	unchanged, err := parseUnchanged(f)
	if err != nil {
		return err
	}
	for _, e := range unchanged {
		if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, e.start, e.size, syscall.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give back pages of the program: %w", errno)
		}
	}
	return nil
}

// parseUnchanged finds, in the text of /proc/PID/smaps, what is mapped from a
// file, can't be written and was never changed: only that may be dropped, since
// it can be read again. A program that relocated itself has changed such pages.
func parseUnchanged(r io.Reader) ([]extent, error) {
	var all []extent
	var current extent // size 0: not of interest
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) >= 5 && strings.Contains(f[0], "-") {
			from, to, _ := strings.Cut(f[0], "-")
			start, err1 := strconv.ParseUint(from, 16, 64)
			end, err2 := strconv.ParseUint(to, 16, 64)
			current = extent{}
			if err1 == nil && err2 == nil && end > start && len(f) >= 6 && strings.HasPrefix(f[5], "/") && strings.HasSuffix(f[1], "p") && !strings.Contains(f[1], "w") {
				current = extent{uintptr(start), uintptr(end - start)}
			}
		}
		if len(f) >= 2 && f[0] == "Anonymous:" && f[1] == "0" && current.size > 0 {
			all = append(all, current)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read own memory map: %w", err)
	}
	return all, nil
}
