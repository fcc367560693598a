package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
)

// HasIPv6 reports whether the pod has IPv6: the kernel knows it and at least one
// interface has it switched on. proc is the file system of /proc. What can't be
// read is an error, for a family that is on and not captured would be a hole.
func HasIPv6(proc fs.FS) (bool, error) {
	if _, err := fs.Stat(proc, "thread-self/net/if_inet6"); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look for IPv6: %w", err)
	}
	const dir = "sys/net/ipv6/conf"
	interfaces, err := fs.ReadDir(proc, dir)
	if err != nil {
		return false, fmt.Errorf("look for IPv6: %w", err)
	}
	for _, i := range interfaces {
		if i.Name() == "all" || i.Name() == "default" {
			continue
		}
		off, err := fs.ReadFile(proc, dir+"/"+i.Name()+"/disable_ipv6")
		if errors.Is(err, fs.ErrNotExist) {
			continue // the interface has gone in the meantime
		}
		if err != nil {
			return false, fmt.Errorf("look for IPv6: %w", err)
		}
		if !bytes.Equal(bytes.TrimSpace(off), []byte("1")) {
			return true, nil
		}
	}
	return false, nil
}
