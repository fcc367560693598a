package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// process finds the process of a pod's container. Pods of a local cluster are
// processes of this machine, in the control group that has their container's name.
func process(pod *corev1.Pod, container string) (int, error) {
	id := containerID(pod, container)
	if id == "" {
		return 0, fmt.Errorf("pod %s has no container %s", pod.Name, container)
	}
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	for _, file := range files {
		groups, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(groups, []byte(id)) { // or the process has ended meanwhile
			continue
		}
		return strconv.Atoi(filepath.Base(filepath.Dir(file)))
	}
	return 0, fmt.Errorf("no process of container %s in pod %s", container, pod.Name)
}

// inNetwork runs f on a thread that is in the pod's network. The thread ends with f.
func inNetwork(pod *corev1.Pod, f func() error) error {
	pid, err := process(pod, "app")
	if err != nil {
		return err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return fmt.Errorf("find the network of pod %s: %w", pod.Name, err)
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network of pod %s: %w", pod.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// self starts this program in a pod's network.
func self(ctx context.Context, pod *corev1.Pod, args ...string) (*exec.Cmd, *bytes.Buffer, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, exe, args...)
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd, out, inNetwork(pod, cmd.Start)
}

// cpu is the time that a process has had so far, in seconds.
func cpu(pid int) (float64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the times of process %d: %w", pid, err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // after the name, fields 3 and on
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0, errors.New("/proc/PID/stat is not understood")
	}
	var ticks float64
	for _, text := range f[11:13] { // utime, stime, in hundredths
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/PID/stat: %w", err)
		}
		ticks += n
	}
	return ticks / 100, nil
}

// memory reads what a process has in memory, in MB (10⁶ bytes), by the names of
// /proc/PID/smaps_rollup.
func memory(pid int) (map[string]float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return nil, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	sizes := map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		kb, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return nil, fmt.Errorf("memory of process %d: %w", pid, err)
		}
		sizes[strings.TrimSuffix(f[0], ":")] = kb * 1024 / 1e6
	}
	return sizes, lines.Err()
}
