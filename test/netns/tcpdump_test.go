package netns

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"podseal.io/podseal/internal/proof"
)

// whole says whether a flow is plaintext that was seen from its first packet on.
func whole(f proof.Flow) bool { return f.Kind == proof.Plaintext && f.Complete() && f.Opened }

// TestTcpdump: what tcpdump writes, on one interface and on all, says the same.
func TestTcpdump(t *testing.T) {
	a, b := newPods(t)
	serveAll(t, a, "a")
	apply(t, a)
	for _, device := range []string{"eth0", "any"} {
		file := filepath.Join(t.TempDir(), device)
		dump := exec.Command("tcpdump", "-i", device, "-U", "--immediate-mode", "-Z", "root", "-w", file, "tcp")
		log, err := dump.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		a.root(t, dump.Start)
		// it speaks when it begins to listen; what comes too early is tried again
		if _, err := log.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		logged := make(chan struct{})
		go func() { defer close(logged); io.Copy(t.Output(), log) }()
		eventually(t, "tcpdump has written a connection", func() error {
			for dst, want := range map[string]string{"10.77.0.1:8080": "in 10.77.0.1:8080", "[fd77::1]:8080": "in [fd77::1]:8080"} {
				if got := dial(t, b, app, "", dst); got != want {
					return fmt.Errorf("%s: %s", dst, got)
				}
			}
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			sum, err := proof.Read(bytes.NewReader(content), proof.Options{Needles: []string{"in 10.77", "in [fd77"}})
			if err != nil {
				return err
			}
			for _, to := range []netip.Addr{a.v4, a.v6} {
				from := b.v4
				if to.Is6() {
					from = b.v6
				}
				// the first may have begun before tcpdump did
				if !slices.ContainsFunc(sum.Between(from, netip.AddrPortFrom(to, 8080)).Flows, whole) {
					return errors.New(sum.String())
				}
			}
			return nil
		})
		if err := dump.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		<-logged
		if err := dump.Wait(); err != nil {
			t.Error(err)
		}
	}
}
