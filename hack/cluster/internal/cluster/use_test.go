package cluster

import (
	"slices"
	"testing"

	"podseal.io/hack/cluster/internal/plan"
)

func TestAllManaged(t *testing.T) {
	const header = "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"
	for list, want := range map[string]bool{
		header: true,
		header + "a:1 x sha256:1 1 MiB linux/amd64 io.cri-containerd.image=managed \n":           true,
		header + "a:1 x sha256:1 1 MiB linux/amd64 io.cri-containerd.image=managed \nb:1 x - \n": false,
	} {
		if got := allManaged(list); got != want {
			t.Errorf("%q: got %v", list, got)
		}
	}
}

func TestEnvironment(t *testing.T) {
	spec := plan.Spec{Name: "x", Dir: "/state/x"}
	got := environment(spec, []string{"HOME=/root", "PATH=/bin", "KUBECONFIG=/mine"})
	want := []string{"HOME=/root", "PATH=/state/x/bin:/bin", "KUBECONFIG=/state/x/kubeconfig.inner", "PODSEAL_CLUSTER=x"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
