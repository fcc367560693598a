// Package host makes and removes what a cluster leaves on the machine: processes,
// cgroups, network namespaces and mounts.
//
// Invariant: a process is ended only when it is known to belong to the cluster:
// by its cgroup, by its network namespace, or by a recorded pid together with the
// time at which that process started.
package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"podseal.io/hack/cluster/internal/pki"
)

// Process names a process for good: a pid may be used again, a pid with a start
// time may not.
type Process struct {
	PID int `json:"pid"`
	// Start is the process's start time in clock ticks since boot.
	Start uint64 `json:"start"`
}

// ProcessOf returns the identity of the running process with the given pid.
func ProcessOf(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, fmt.Errorf("identify process: %w", err)
	}
	_, start, err := parseStat(stat)
	if err != nil {
		return Process{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return Process{PID: pid, Start: start}, nil
}

// parseStat returns the state and the start time in the text of /proc/PID/stat.
// The second field, the program's name, may hold anything, also parentheses and
// spaces.
func parseStat(stat []byte) (state byte, start uint64, err error) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return 0, 0, errors.New("parse stat: no program name")
	}
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 20 {
		return 0, 0, fmt.Errorf("parse stat: %d fields after the name, want 20", len(fields))
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("parse stat: %w", err)
	}
	return fields[0][0], start, nil
}

// Alive reports whether the process still runs.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return false
	}
	state, start, err := parseStat(stat)
	return err == nil && start == p.Start && state != 'Z' && state != 'X'
}

// Record writes the identity to a file.
func (p Process) Record(path string) error {
	content, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode process: %w", err)
	}
	return pki.WriteFile(path, content, 0o600)
}

// Recorded returns the identity in a file, or the zero Process, which is not
// alive, when there is none or only half of one.
func Recorded(path string) (Process, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Process{}, nil
	}
	if err != nil {
		return Process{}, fmt.Errorf("read process: %w", err)
	}
	var p Process
	if json.Unmarshal(content, &p) != nil {
		return Process{}, nil
	}
	return p, nil
}

// inNamespaces returns the processes whose network namespace is one of the given
// inodes, except this one and its ancestors.
func inNamespaces(inodes map[uint64]bool) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	own := ancestors()
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || own[pid] {
			continue
		}
		var stat syscall.Stat_t
		if syscall.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &stat) != nil || !inodes[stat.Ino] {
			continue
		}
		if p, err := ProcessOf(pid); err == nil {
			found = append(found, p)
		}
	}
	return found, nil
}

// ancestors returns this process and those that it descends from.
func ancestors() map[int]bool {
	own := make(map[int]bool)
	for pid := os.Getpid(); pid > 0 && !own[pid]; {
		own[pid] = true
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			break
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			break
		}
	}
	return own
}
