package proxy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"podseal.io/podseal/internal/meshtest"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/workload"
)

// Design D11: a pod that turns out to be in the mesh while it is being dialled
// gets no plaintext, and one that is said to be there and is not known gets nothing.
func TestWorldChangesWhileDialling(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(m *testMesh, web *workload.Workload, app netip.AddrPort)
		reason policy.Reason
	}{
		{"joins the mesh", func(*testMesh, *workload.Workload, netip.AddrPort) {}, policy.None},
		{"joins a STRICT mesh", func(_ *testMesh, web *workload.Workload, _ netip.AddrPort) {
			web.Modes = policy.Modes{Default: policy.Strict}
		}, policy.None},
		{"outbound is restricted", func(m *testMesh, web *workload.Workload, _ netip.AddrPort) {
			web.Addresses = nil
			m.world.Mesh.Outbound = workload.RegistryOnly
		}, policy.PolicyChanged},
		{"its pod is awaited", func(m *testMesh, web *workload.Workload, app netip.AddrPort) {
			m.world.Service("web", vip(80), policy.TCP, app.Port(), web).Endpoints[0].Workload = web.UID
			web.Addresses = nil
		}, policy.NoEndpoint},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newTestMesh(t)
			client, web := m.pod("client"), m.pod("web")
			app := meshtest.Serve(t, web.Addresses[0], meshtest.Echo)
			m.start(web)
			addresses := web.Addresses
			web.Addresses = nil // nobody knows yet whose the address is
			clientSide := m.start(client, func(c *Config) {
				dial := c.Dial
				c.Dial = func(ctx context.Context, from netip.Addr, to netip.AddrPort) (*net.TCPConn, error) {
					web.Addresses = addresses
					tt.change(m, web, app)
					m.tell()
					return dial(ctx, from, to)
				}
			})
			c := m.connect(client.Addresses[0], app)
			if tt.reason != policy.None {
				_, _ = io.WriteString(c, "secret")
				ends(t, c)
				record(t, clientSide, withReason(tt.reason))
				return
			}
			exchange(t, c, "secret")
			c.Close()
			if r := record(t, clientSide, anyRecord); r.Security != securityMutualTLS || r.DestinationIdentity != web.Identity.String() {
				t.Errorf("record %+v", r)
			}
		})
	}
}
