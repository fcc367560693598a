package datapath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podseal.io/podseal/internal/capture"
)

// Users: of the application and, which capture leaves alone, of the proxy.
const (
	appUser   = 1000
	proxyUser = 1337
)

// hurry gives the session of this process a priority (nice), where the kernel
// schedules sessions instead of processes (autogroup). It returns what undoes it.
func hurry(nice int) func() {
	const file = "/proc/self/autogroup"
	before, err := os.ReadFile(file)
	if err != nil {
		return func() {} // it doesn't
	}
	_, was, ok := strings.Cut(strings.TrimSpace(string(before)), " nice ")
	if !ok || os.WriteFile(file, []byte(strconv.Itoa(nice)), 0) != nil {
		return func() {} // nice alone must do
	}
	return func() { _ = os.WriteFile(file, []byte(was), 0) } // the session ends soon, or runs other things faster
}

// pod is a network namespace with lo and eth0.
type pod struct {
	ns      *os.File
	address netip.Addr
	tcp     string // congestion control, or ""
	nice    int    // priority of what is measured
}

// do runs f on a thread of its own in the pod's namespace and waits for it.
// Sockets that f opens stay in the namespace. The thread ends with f.
func (p *pod) do(cpus []int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked
		done <- func() error {
			if err := unix.Setns(int(p.ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter namespace: %w", err)
			}
			if len(cpus) > 0 { // programs that f starts are there as well, and as urgent
				if err := unix.Setpriority(unix.PRIO_PROCESS, 0, p.nice); err != nil {
					return fmt.Errorf("raise the priority: %w", err)
				}
				var set unix.CPUSet
				for _, n := range cpus {
					set.Set(n)
				}
				if err := unix.SchedSetaffinity(0, &set); err != nil {
					return fmt.Errorf("pin to cores %v: %w", cpus, err)
				}
			}
			return f()
		}()
	}()
	return <-done
}

// newPods makes two pods with a veth pair between them.
func newPods(tcp string) (client, server *pod, err error) {
	if client, err = newPod("10.77.0.1", tcp); err != nil {
		return nil, nil, err
	}
	if server, err = newPod("10.77.0.2", tcp); err != nil {
		client.ns.Close()
		return nil, nil, err
	}
	err = client.do(nil, func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(server.ns.Fd())),
		})
	})
	if err == nil {
		err = errors.Join(client.do(nil, client.configure), server.do(nil, server.configure))
	}
	if err != nil {
		client.ns.Close()
		server.ns.Close()
		return nil, nil, fmt.Errorf("connect two network namespaces: %w", err)
	}
	return client, server, nil
}

func newPod(address, tcp string) (*pod, error) {
	p := &pod{address: netip.MustParseAddr(address), tcp: tcp}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace (which needs root): %w", err)
			}
			p.ns, err = os.Open("/proc/thread-self/ns/net")
			return err
		}()
	}()
	return p, <-done
}

// configure switches eth0 and lo on.
func (p *pod) configure() error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.address.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(eth0, addr); err != nil {
		return fmt.Errorf("add %s: %w", p.address, err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(eth0)); err != nil {
		return err
	}
	return p.tune()
}

// tune lets many connections be opened and closed: there are ports for them, and
// what is over is forgotten soon. Connection tracking comes with the first rule. What
// TCP is else doesn't depend on how somebody has set the machine up.
func (p *pod) tune() error {
	for name, value := range map[string]string{
		"net/ipv4/tcp_congestion_control":                    p.tcp,
		"net/ipv4/ip_local_port_range":                       "18000 65000",
		"net/ipv4/tcp_tw_reuse":                              "1",
		"net/ipv4/tcp_max_syn_backlog":                       "8192",
		"net/core/somaxconn":                                 "8192",
		"net/netfilter/nf_conntrack_tcp_timeout_time_wait":   "1",
		"net/netfilter/nf_conntrack_tcp_timeout_close":       "1",
		"net/netfilter/nf_conntrack_tcp_timeout_last_ack":    "1",
		"net/netfilter/nf_conntrack_tcp_timeout_fin_wait":    "2",
		"net/netfilter/nf_conntrack_tcp_timeout_established": "3600",
	} {
		if value == "" {
			continue
		}
		err := os.WriteFile("/proc/sys/"+name, []byte(value), 0)
		if errors.Is(err, os.ErrNotExist) && strings.Contains(name, "conntrack") {
			continue
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// kernelSegment, in bytes, is how large TCP's segments on lo are in a new network
// namespace.
const kernelSegment = 65536

// narrow makes lo what it is in a pod that nobody has told otherwise.
func narrow() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := errors.Join(netlink.LinkSetGSOMaxSize(lo, kernelSegment), netlink.LinkSetGSOIPv4MaxSize(lo, kernelSegment)); err != nil {
		return fmt.Errorf("make lo what it was: %w", err)
	}
	got, err := capture.LoopbackSegment()
	if err == nil && got != kernelSegment {
		err = fmt.Errorf("lo has segments of %d bytes, want %d", got, kernelSegment)
	}
	return err
}

// program is something to run in a pod.
type program struct {
	name string
	args []string
	env  []string
	user int
}

// running is a program that runs. What it prints is kept, to be shown if it ends.
type running struct {
	cmd  *exec.Cmd
	name string
	said *tail
	done chan struct{}
}

// start starts a program on some cores.
func (p *pod) start(cpus []int, g program) (*running, error) {
	r := &running{cmd: exec.Command(g.name, g.args...), name: filepath.Base(g.name), said: new(tail), done: make(chan struct{})}
	r.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, g.env...)
	r.cmd.Stderr = r.said // of stdout, which has a line for each connection, nothing is kept
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if g.user != 0 {
		r.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(g.user), Gid: uint32(g.user)}
	}
	if err := p.do(cpus, r.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", r.name, err)
	}
	go func() {
		defer close(r.done)
		_ = r.cmd.Wait() // how it ended shows in what it said
	}()
	return r, nil
}

// run runs a program to its end and returns what it printed.
func (p *pod) run(ctx context.Context, cpus []int, g program) ([]byte, error) {
	cmd := exec.CommandContext(ctx, g.name, g.args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.WaitDelay = time.Second
	if g.user != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(g.user), Gid: uint32(g.user)}}
	}
	if err := p.do(cpus, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", g.name, err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(g.name), g.args[0], err, strings.TrimSpace(said.String()))
	}
	return out.Bytes(), nil
}

// ended reports whether the program is over, with what it said last.
func (r *running) ended() error {
	select {
	case <-r.done:
		return fmt.Errorf("%s has ended: %s", r.name, r.said)
	default:
		return nil
	}
}

// stop ends the program and all that it started, and waits.
func (r *running) stop() {
	group := -r.cmd.Process.Pid // the group that Setpgid made
	_ = unix.Kill(group, unix.SIGTERM)
	select {
	case <-r.done:
	case <-time.After(3 * time.Second):
	}
	_ = unix.Kill(group, unix.SIGKILL) // none of it is left, or it had its chance
	<-r.done
}

// pids are those of the program and of all that it started.
func (r *running) pids() []int {
	all := []int{r.cmd.Process.Pid}
	for i := 0; i < len(all); i++ {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", all[i]))
		if err != nil {
			break
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // the thread has ended
			}
			for text := range strings.FieldsSeq(string(b)) {
				if pid, err := strconv.Atoi(text); err == nil {
					all = append(all, pid)
				}
			}
		}
	}
	return all
}

// tail keeps the last of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if n := len(t.b) - 4096; n > 0 {
		t.b = t.b[n:]
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// held is what processes have in memory, in bytes: their own pages and their share
// of those that others have as well (PSS), and of that what is no page of a file.
type held struct{ all, anonymous float64 }

func memory(pids []int) (h held, err error) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return h, fmt.Errorf("read the memory of process %d: %w", pid, err)
		}
		for name, sum := range map[string]*float64{"Pss": &h.all, "Pss_Anon": &h.anonymous} {
			_, rest, ok := strings.Cut(string(b), "\n"+name+":")
			f := strings.Fields(rest)
			if !ok || len(f) < 2 {
				return h, fmt.Errorf("memory of process %d: no %s", pid, name)
			}
			kb, err := strconv.ParseFloat(f[0], 64)
			if err != nil {
				return h, fmt.Errorf("memory of process %d: %w", pid, err)
			}
			*sum += kb * 1024
		}
	}
	return h, nil
}
