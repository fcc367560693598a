package inject

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"podseal.io/podseal/api/deckhouse/v1alpha1"
	"podseal.io/podseal/internal/settings"
)

var update = flag.Bool("update", false, "rewrite testdata/*.out.yaml")

// goldenCase is one testdata/*.in.yaml.
type goldenCase struct {
	Namespace *corev1.Namespace     `json:"namespace"`
	Pod       *corev1.Pod           `json:"pod"`
	Settings  *runtime.RawExtension `json:"settings"`
	Params    *Params               `json:"params"`
}

func testParams() Params {
	return Params{ProxyImage: "podseal.io/podseal-proxy:v0", CAAddress: "istiod.d8-istio.svc:15012", NativeSidecars: true}
}

// request builds the request of a golden case.
func (c *goldenCase) request(t testing.TB) Request {
	t.Helper()
	m := &v1alpha1.ModuleConfig{Spec: v1alpha1.ModuleConfigSpec{Version: settings.LatestVersion, Settings: c.Settings}}
	s, _, err := settings.Parse(m, settings.Cluster{})
	if err != nil {
		t.Fatal(err)
	}
	p := testParams()
	if c.Params != nil {
		own := *c.Params
		own.ProxyImage, own.CAAddress = p.ProxyImage, p.CAAddress
		p = own
	}
	return Request{Pod: c.Pod, Namespace: c.Namespace, NamespaceName: c.Namespace.Name, Settings: s, Params: p}
}

// transcript is what comes out: warnings, then the pod or the refusal.
func transcript(t testing.TB, req Request) string {
	t.Helper()
	var b strings.Builder
	pod, warnings, err := Pod(req)
	for _, w := range warnings {
		fmt.Fprintf(&b, "# warning: %s\n", w)
	}
	switch {
	case err != nil:
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(&b, "# refused: %s\n", strings.TrimSpace(line))
		}
	case pod == nil:
		fmt.Fprintf(&b, "# not injected\n")
	default:
		text, err := yaml.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(text)
	}
	return b.String()
}

// TestGolden proves contract 5.25.
func TestGolden(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no test data", err)
	}
	for _, in := range inputs {
		name := strings.TrimSuffix(filepath.Base(in), ".in.yaml")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(in)
			if err != nil {
				t.Fatal(err)
			}
			var c goldenCase
			if err := yaml.UnmarshalStrict(text, &c); err != nil {
				t.Fatal(err)
			}
			req := c.request(t)
			before := req.Pod.DeepCopy()
			got := transcript(t, req)
			if diff := cmp.Diff(before, req.Pod); diff != "" {
				t.Error("the request was changed:", diff)
			}
			out := strings.TrimSuffix(in, ".in.yaml") + ".out.yaml"
			if *update {
				if err := os.WriteFile(out, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
