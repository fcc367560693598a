package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lab is one cluster of the integration test, driven through the real program.
type lab struct {
	t       *testing.T
	program string
	name    string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	if testing.Short() {
		t.Skip("brings a cluster up")
	}
	l := &lab{t: t, program: filepath.Join(t.TempDir(), "cluster"), name: fmt.Sprintf("test-%d", os.Getpid())}
	l.command("go", "build", "-o", l.program, ".")
	t.Cleanup(func() {
		out, err := exec.Command(l.program, "down", "--name", l.name).CombinedOutput()
		if err != nil {
			t.Errorf("down: %v: %s", err, out)
		}
	})
	return l
}

func (l *lab) command(args ...string) string {
	l.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(l.t.Context(), args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String()
}

func (l *lab) run(verb string, args ...string) string {
	l.t.Helper()
	start := time.Now()
	defer func() { l.t.Logf("%s took %.1fs", verb, time.Since(start).Seconds()) }()
	return l.command(append([]string{l.program, verb, "--name", l.name}, args...)...)
}

func (l *lab) kubectl(args ...string) string {
	l.t.Helper()
	return l.command(append([]string{l.program, "shell", "--name", l.name, "--", "d8", "k"}, args...)...)
}

// pid returns the pid that `status` gives for a daemon of node 1.
func (l *lab) pid(daemon string) int {
	l.t.Helper()
	var status struct {
		Nodes []struct {
			Daemons []struct {
				Name string
				PID  int
			}
		}
	}
	if err := json.Unmarshal([]byte(l.run("status", "-o", "json")), &status); err != nil {
		l.t.Fatal(err)
	}
	for _, d := range status.Nodes[0].Daemons {
		if d.Name == daemon && d.PID > 0 {
			return d.PID
		}
	}
	l.t.Fatalf("status names no running %s", daemon)
	return 0
}

func (l *lab) kill(daemon string) {
	l.t.Helper()
	if err := syscall.Kill(l.pid(daemon), syscall.SIGKILL); err != nil {
		l.t.Fatal(err)
	}
}

// left returns what of the cluster is left on the machine once the init process has
// had the time to collect what was killed.
func (l *lab) left() []string {
	l.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		found := l.traces()
		if len(found) == 0 || time.Now().After(deadline) {
			return found
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// traces returns what of the cluster is on the machine, found without the program's
// own help.
func (l *lab) traces() []string {
	l.t.Helper()
	var found []string
	// Everything of the cluster carries its name: its mounts, its cgroups, its
	// command lines.
	for _, pattern := range []string{"/proc/[0-9]*/mountinfo", "/proc/[0-9]*/cgroup", "/proc/[0-9]*/cmdline"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, file := range files {
			pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
			content, err := os.ReadFile(file)
			if err == nil && pid != os.Getpid() && bytes.Contains(content, []byte(l.name)) {
				found = append(found, file)
			}
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/podseal-*", "/sys/fs/cgroup/*/podseal-*", "/run/netns/*", "/var/lib/podseal-cluster/*"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, file := range files {
			if strings.Contains(file, l.name) {
				found = append(found, file)
			}
		}
	}
	return found
}

// hostNetwork returns the host's rules, links and routes as text.
func (l *lab) hostNetwork() string {
	l.t.Helper()
	return l.command("nft", "list", "ruleset") + l.command("ip", "-br", "link") + l.command("ip", "route", "show", "table", "all")
}

const pods = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: %[1]s}}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "test.example/all-in-one:1", command: ["/bin/sh", "-c", "nginx -g 'daemon off;'"]}
---
apiVersion: v1
kind: Service
metadata: {name: %[1]s}
spec:
  selector: {app: %[1]s}
  ipFamilyPolicy: PreferDualStack
  ports: [{port: 80}]
---
`

func (l *lab) startPods() {
	l.t.Helper()
	image := filepath.Join(l.t.TempDir(), "image.tar")
	l.command("go", "run", "-C", "../images", ".", "all-in-one", "--tag", "test.example/all-in-one:1", "--out", image)
	l.run("load", image)
	manifest := filepath.Join(l.t.TempDir(), "pods.yaml")
	content := fmt.Sprintf(pods, "one", l.name+"-1") + fmt.Sprintf(pods, "two", l.name+"-2")
	if err := os.WriteFile(manifest, []byte(content), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.kubectl("apply", "-f", manifest)
	l.kubectl("wait", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=60s")
}

// checkTraffic asserts that names resolve, that both pods reach each other and
// themselves by Service and by address, and that the server sees the pod's address.
func (l *lab) checkTraffic() {
	l.t.Helper()
	if got := l.kubectl("exec", "one", "--", "getent", "hosts", "kubernetes.default"); !strings.Contains(got, "10.222.0.1 ") {
		l.t.Errorf("kubernetes.default resolves to %q", got)
	}
	for _, from := range []string{"one", "two"} {
		for _, to := range []string{"one", "two"} {
			ips := strings.Fields(l.kubectl("get", "pod", to, "-o", "jsonpath={.status.podIPs[*].ip}"))
			if len(ips) != 2 {
				l.t.Fatalf("pod %s has addresses %q, want two", to, ips)
			}
			for _, url := range []string{"http://" + to, "http://" + ips[0], "http://[" + ips[1] + "]"} {
				got := l.kubectl("exec", from, "--", "curl", "-gsS", "--max-time", "5", "--retry", "5", "--retry-connrefused", url)
				if !strings.Contains(got, "Welcome to nginx!") {
					l.t.Errorf("%s to %s: got %q", from, url, got)
				}
			}
			l.kubectl("exec", from, "--", "wget", "-S", "--spider", "--timeout", "1", to)
		}
	}
	source := l.kubectl("get", "pod", "one", "-o", "jsonpath={.status.podIP}")
	if log := l.kubectl("logs", "two"); !strings.Contains(log, source+" - ") {
		l.t.Errorf("pod two never saw %s: %s", source, log)
	}
}

func TestCluster(t *testing.T) {
	l := newLab(t)
	before := l.hostNetwork()

	l.run("up", "--nodes", "2")
	// A namespace of somebody else must neither hide the cluster's nor go with them.
	other := fmt.Sprintf("other-%d", os.Getpid())
	l.command("ip", "netns", "add", other)
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "del", other).CombinedOutput(); err != nil {
			t.Errorf("the other namespace: %v: %s", err, out)
		}
	})
	l.startPods()
	l.checkTraffic()

	start := time.Now()
	l.run("up")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("up of a running cluster took %s", took)
	}

	l.kill("kube-apiserver")
	l.run("up")
	l.kubectl("get", "pods")

	// Without its parent process the node is started anew, and its pods with it.
	l.kill("node")
	l.run("up")
	l.kubectl("wait", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=60s")
	l.checkTraffic()

	host := exec.CommandContext(t.Context(), filepath.Join("/var/lib/podseal-cluster", l.name, "bin", "kubectl"),
		"--kubeconfig="+strings.TrimSpace(l.run("kubeconfig")), "exec", "two", "--", "cat", "/etc/hostname")
	if out, err := host.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "two" {
		t.Errorf("kubectl from the host: %v: %q", err, out)
	}

	l.run("down")
	if found := l.left(); len(found) > 0 {
		t.Errorf("left after down: %q", found)
	}
	if after := l.hostNetwork(); after != before {
		t.Errorf("the host's network changed from\n%s\nto\n%s", before, after)
	}
	l.run("down")
}

// TestKilledUp kills `up` at several moments; `down` must leave nothing each time.
func TestKilledUp(t *testing.T) {
	l := newLab(t)
	l.name += "k"
	for _, after := range []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 3 * time.Second} {
		cmd := exec.CommandContext(t.Context(), l.program, "up", "--name", l.name, "--nodes", "2")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after) // the moment of the kill is what varies
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		l.run("down")
		if found := l.left(); len(found) > 0 {
			t.Errorf("killed after %s: left after down: %q", after, found)
		}
	}
}
