package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"podseal.io/podseal/internal/policy"
)

// talk is a connection to the server that speaks first, which has said its word.
type talk struct{ net.Conn }

func open(t *testing.T, p *pod, address string) talk {
	t.Helper()
	var c net.Conn
	p.do(t, app, func() (err error) {
		c, err = net.DialTimeout("tcp", address, deadline)
		return err
	})
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(greeting))); err != nil {
		t.Fatal(err)
	}
	return talk{c}
}

func (c talk) echo(text string) error {
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len(text)))
	return err
}

// TestAuthorization: ALLOW by principal and DENY by path, put in force while
// connections are open: what is now denied is cut, and nothing else.
// Contract 6.4, 6.9, 6.10, 6.24, 6.38 and 6.39.
func TestAuthorization(t *testing.T) {
	s := newShop(t)
	mesh, plain := open(t, s.client, "10.96.0.11:25"), open(t, s.outside, "10.88.0.12:25")
	for _, c := range []talk{mesh, plain} {
		if err := c.echo("before"); err != nil {
			t.Fatal(err)
		}
	}
	s.world.Access = []*policy.AuthorizationPolicy{
		{
			Namespace: "shop", Name: "client", Scope: policy.Namespace,
			Rules: []policy.Rule{{From: [][]policy.Match{{{On: policy.SourcePrincipal, Values: []string{"cluster.local/ns/shop/sa/client"}}}}}},
		},
		{
			Namespace: "shop", Name: "refused", Scope: policy.Namespace, Effect: policy.Deny,
			Rules: []policy.Rule{{To: [][]policy.Match{{{On: policy.RequestPath, Values: []string{"/refused*"}}, {On: policy.DestinationPort, Values: []string{"80"}}}}}},
		},
	}
	s.tell(t)
	eventually(t, "the policies are in force", func() error {
		res, _, err := fetch(s.outside, "10.88.0.12:80")
		if err != nil || res.StatusCode == http.StatusForbidden {
			return err
		}
		<-s.peers
		return fmt.Errorf("answered with %s", res.Status)
	})
	if err := plain.echo("after"); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the open connection of a client without identity: %v, want a reset", err)
	}
	if err := mesh.echo("after"); err != nil {
		t.Errorf("the open connection of the mesh client: %v", err)
	}
	if said, err := greet(s.outside, "10.88.0.12:25"); err == nil || said != "" && said[0] != 0 {
		t.Errorf("a client without identity was greeted with %q, %v", said, err)
	}
	if said, err := greet(s.client, "10.96.0.11:25"); err != nil || said != greeting+"QUIT" {
		t.Errorf("mesh client: %q, %v", said, err)
	}
	if res, body, err := fetch(s.client, "10.96.0.10:80"); err != nil || res.StatusCode != http.StatusOK || body != page {
		t.Errorf("mesh client: %v, %q, %v", res, body, err)
	}
	for _, path := range []string{"/refused", "/x/../refused", "/%72efused"} {
		if res, body, err := fetchPath(s.client, "10.96.0.10:80", path); err != nil || res.StatusCode != http.StatusForbidden || body != "RBAC: access denied" {
			t.Errorf("%s: %v, %q, %v", path, res, body, err)
		}
	}
	select {
	case peer := <-s.refused:
		t.Errorf("the application was called by %s", peer)
	default:
	}
}
