// Package e2e tests the whole on a real Kubernetes of two nodes, made for the test.
package e2e

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"podseal.io/podseal/test/e2e/walkthrough"
)

// TestE2E brings up one cluster and goes through everything on it, in order:
// the walkthrough, what goes wrong, and the removal.
func TestE2E(t *testing.T) {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	s := walkthrough.Setup{
		Bin:     bin,
		Version: cmp.Or(os.Getenv("PODSEAL_VERSION"), "dev"),
		Name:    cmp.Or(os.Getenv("PODSEAL_CLUSTER"), fmt.Sprintf("e2e-%d", os.Getpid())),
		Nodes:   2,
		Log:     testWriter{t},
	}
	t.Cleanup(func() {
		if os.Getenv("PODSEAL_CLUSTER") != "" {
			return // somebody's own, for daily work
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if err := s.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	c, err := s.Up(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := &env{c: c, s: s}
	loaded := e.load(t)
	t.Run("walkthrough", func(t *testing.T) {
		report, err := walkthrough.Run(t.Context(), walkthrough.Config{Cluster: c, Out: testWriter{t}})
		report.Table(testWriter{t})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range report.Rows {
			for _, fault := range row.Faults {
				t.Errorf("%s: %s", row.Call, fault)
			}
		}
	})
	if err := loaded(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *env)
	}{
		{"check finds nothing wrong", testCheck},
		{"a wrong PeerAuthentication is refused", testBadPolicy},
		{"a wrong annotation refuses the pod", testBadAnnotation},
		{"a namespace with Pod Security is told what to do", testPodSecurity},
		{"a wrong ModuleConfig leaves the last good one in force", testBadModuleConfig},
		{"probes are rewritten and work under STRICT", testProbes},
		{"port-level and workload-level modes", testPortModes},
		{"a change of policy is in force within a second", testPolicyLatency},
		{"every kind of address", testAddresses},
		{"both families, mixed and ending endpoints, IPv6 only", testMoreAddresses},
		{"ServiceEntry, a Secret for TLS, RegistryOnly", testServiceEntries},
		{"edges: who talks to whom, and how", testEdges},
		{"a zoo of callers: each with his name and state, wherever traffic is shown", testZoo},
		{"the dashboard, for who may look and who may not", testDashboard},
		{"verify: the wire is as the proxies say, and a leak is found", testVerify},
		{"a broken proxy that leaks is caught, and the report says so", testBrokenProxy},
		{"protocols, by the servers and clients that people use", testProtocols},
		{"proxies grow old, and auto-upgrade is off", testAging},
		{"in namespaces of their own, at once", testAside},
		{"auto-upgrade rolls the workloads that ask for it", testAutoUpgrade},
		{"the CNI plugin captures pods under Pod Security restricted, is upgraded and goes without a gap", testCNIPlugin},
		{"the control plane is down and traffic goes on", testControlPlaneDown},
		{"disabling takes the webhooks and the control plane down", testDisable},
		{"uninstall leaves nothing", testUninstall},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, e) })
	}
}

// load loads the image of the servers while something else is done; what it returns
// waits for it.
func (e *env) load(t *testing.T) func() error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), e.c.Binary, "load", "--name", e.c.Name, filepath.Join(e.s.Bin, "protocols.tar"))
	done := make(chan error, 1)
	go func() {
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("load the servers: %w: %s", err, out)
		}
		done <- err
	}()
	var once sync.Once
	var err error
	wait := func() error {
		once.Do(func() { err = <-done })
		return err
	}
	t.Cleanup(func() { _ = wait() })
	return wait
}

// testAside are cases that touch nothing but namespaces of their own.
func testAside(t *testing.T, e *env) {
	for name, run := range map[string]func(*testing.T, *env){
		"external authorizers, tokens and their keys":   testGate,
		"jobs, hooks, drain, revisions, podseal inject": testLife,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, e)
		})
	}
}

// testWriter gives the transcript to the test's log, whole lines at a time.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	w.t.Logf("%s", p)
	return len(p), nil
}
