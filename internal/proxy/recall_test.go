package proxy

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// Design D16: a proxy that restarts while there is no control plane does what it
// can prove nothing for: what is outside of the mesh goes on by the policies that
// were in force, and what is inside is refused, since keys are not kept.
func TestRestartWithoutControlPlane(t *testing.T) {
	issuer, err := ca.NewSelfSigned(meshtest.TrustDomain, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cp := startControlPlane(t, issuer, "127.0.0.1:0")
	m := newTestMesh(t)
	web, db := m.pod("web"), m.pod("db")
	app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
	reached := make(chan struct{}, 10)
	inMesh := meshtest.Serve(t, db.Addresses[0], func(c *net.TCPConn) {
		reached <- struct{}{}
		meshtest.Echo(c)
	})
	outside := meshtest.Serve(t, m.outsider(), meshtest.Echo)
	web.Modes.Default = policy.Disable
	cp.publish(t, m.world)
	file := filepath.Join(t.TempDir(), "world")
	state := func(c *Config) { c.Control.StateFile, c.Control.Grace = file, 50*time.Millisecond }
	first, stop := startControlledStoppable(t, m, cp, 0, state)
	eventually(t, func() bool { return first.notReady() == "" })
	web.Modes.Ports = map[uint16]policy.Mode{app.Port(): policy.Permissive} // the last word of the control plane
	cp.publish(t, m.world)
	eventually(t, func() bool { own, _ := first.worlds.own(); return own.Modes.Port(app.Port()) == policy.Permissive })
	stop()
	cp.stop()
	noKeys(t, file)

	again, stop := startControlledStoppable(t, m, cp, 0, state)
	exchange(t, m.connect(web.Addresses[0], outside), "out of the mesh")
	exchange(t, m.connect(m.outsider(), app), "as the mode allows")
	if own, _ := again.worlds.own(); own.Modes.Port(app.Port()) != policy.Permissive || own.Modes.Port(1) != policy.Disable {
		t.Errorf("modes %+v are not the last ones", own.Modes)
	}
	waits := m.connect(web.Addresses[0], inMesh)
	if _, err := io.WriteString(waits, "never in plaintext"); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := again.snapshot(gone); !errors.Is(err, errNoCertificate) {
		t.Errorf("a certificate from nowhere: %v", err)
	}
	if again.notReady() == "" {
		t.Error("ready without a certificate")
	}

	if len(reached) > 0 {
		t.Error("a pod of the mesh was called without proof")
	}
	waits.Close()

	// It comes back, with another policy, and what was remembered is corrected.
	web.Modes = policy.Modes{Default: policy.Strict}
	m.world.Workloads = m.world.Workloads[:1]
	back := startControlPlane(t, issuer, cp.addr)
	back.publish(t, m.world)
	eventually(t, func() bool {
		own, _ := again.worlds.own()
		_, db := again.worlds.world().Workload("shop/db")
		return own.Modes.Default == policy.Strict && !db && again.notReady() == ""
	})
	stop()
}

// noKeys fails if the file has something secret in it, or nothing.
func noKeys(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil || !bytes.Contains(b, []byte("shop/web")) {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	for _, word := range []string{"PRIVATE KEY", "Bearer"} {
		if bytes.Contains(b, []byte(word)) {
			t.Errorf("%s in the file", word)
		}
	}
	for i := range b { // a key in DER
		if _, err := x509.ParsePKCS8PrivateKey(b[i:]); err == nil {
			t.Fatalf("a key at byte %d", i)
		}
	}
}

// What is remembered is not believed while the control plane may still say
// otherwise.
func TestRecallWaitsForTheControlPlane(t *testing.T) {
	for name, then := range map[string]func(*worldStore){
		"confirmed": (*worldStore).synced,
		"believed":  func(s *worldStore) { s.believe() },
	} {
		m := newTestMesh(t)
		m.pod("web")
		held := map[string][]xds.Resource{}
		m.world.Tell(t, func(typeURL string, upserts []xds.Resource, _ []string) map[string]error {
			held[typeURL] = append(held[typeURL], upserts...)
			return nil
		})
		held[wire.TypeWorkload] = append(held[wire.TypeWorkload], xds.Resource{Name: "shop/odd", Version: "1", Body: []byte("odd")})
		s := newWorldStore("shop/web", func(*workload.World) {})
		versions := s.recall(wire.Types(), held)
		if len(versions[wire.TypeWorkload]) != 1 || versions[wire.TypeWorkload]["shop/web"] != "1" || versions[wire.TypeMesh]["mesh"] != "1" {
			t.Errorf("%s: the control plane is told of %v", name, versions)
		}
		m.world.Tell(t, s.handle) // an answer that isn't whole yet
		select {
		case <-s.known:
			t.Errorf("%s: known too early", name)
		default:
		}
		then(s)
		select {
		case <-s.known:
		default:
			t.Errorf("%s: not known", name)
		}
	}
	if newWorldStore("shop/web", func(*workload.World) {}).believe() {
		t.Error("a proxy that remembers nothing believes it")
	}
}
