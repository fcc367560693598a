package proxy

import (
	"strings"
	"testing"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

// A control plane that knows less than this proxy tells nothing of some kinds: the
// proxy doesn't become ready, whichever it is, and says of what it wasn't told. What it
// is told of a kind that it doesn't know itself it refuses, and that changes nothing.
func TestOlderControlPlane(t *testing.T) {
	own, err := wire.AppendWorkload(nil, &workload.Workload{UID: "shop/api", Namespace: "shop", Name: "api", Modes: policy.Modes{Default: policy.Strict}})
	if err != nil {
		t.Fatal(err)
	}
	mesh, err := wire.AppendMesh(nil, &workload.Mesh{TrustDomains: []string{"cluster.local"}, ClusterDomain: "cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	content := map[string][]xds.Resource{wire.TypeWorkload: {{Name: "shop/api", Body: own}}, wire.TypeMesh: {{Name: "mesh", Body: mesh}}}
	ready := func(s *worldStore) bool {
		select {
		case <-s.known:
			return true
		default:
			return false
		}
	}
	tell := func(s *worldStore, typeURL string) {
		t.Helper()
		if bad := s.handle(typeURL, content[typeURL], nil); len(bad) > 0 && (typeURL == wire.TypeWorkload || typeURL == wire.TypeMesh) {
			t.Logf("%s: %v", typeURL, bad)
		}
	}
	for _, missing := range wire.Types() {
		s := newWorldStore("shop/api", func(*workload.World) {})
		for _, typeURL := range wire.Types() {
			if typeURL != missing {
				tell(s, typeURL)
			}
		}
		basic := missing == wire.TypeWorkload || missing == wire.TypeService || missing == wire.TypeMesh
		if said := strings.Join(s.untold(), ","); ready(s) || (basic && said != "") || (!basic && said != wire.KindOf(missing)) {
			t.Errorf("without %s: ready %v, says %q", missing, ready(s), said)
		}
		tell(s, missing)
		if !ready(s) || len(s.untold()) > 0 {
			t.Errorf("not ready with all: %v", s.untold())
		}
		if bad := s.handle("type.googleapis.com/podseal.mesh.v1.Newer", []xds.Resource{{Name: "x"}}, nil); len(bad) != 1 {
			t.Errorf("a kind that isn't known is taken: %v", bad)
		}
	}
}
