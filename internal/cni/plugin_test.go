package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
)

// stdin is what a runtime writes: the chain's entry, the annotations and the result of
// the plugins before.
func stdin(t testing.TB, annotations map[string]string, prev bool) []byte {
	t.Helper()
	conf := map[string]any{
		"cniVersion": "1.0.0", "name": "net", "type": Name, "excludeNamespaces": []string{"kube-system"},
		"runtimeConfig": map[string]any{annotationsCapability: annotations},
	}
	if prev {
		conf["prevResult"] = map[string]any{
			"cniVersion": "1.0.0", "interfaces": []any{map[string]any{"name": "eth0", "sandbox": "/run/netns/x"}},
			"ips": []any{map[string]any{"address": "10.0.0.7/24", "interface": 0}},
		}
	}
	b, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// entered is a pod's network namespace that can't be captured.
func entered(n *int) func(string, func() error) error {
	return func(string, func() error) error { *n++; return errors.New("no such module") }
}

// TestAdd: the result of the plugins before is handed on; what can't be captured
// fails the sandbox (contract 5.52); who isn't concerned isn't touched (contract 5.50).
func TestAdd(t *testing.T) {
	for name, tt := range map[string]struct {
		annotations map[string]string
		args        string
		alone       bool
		enters      int
		fault       string
	}{
		"not injected":                       {nil, "", false, 0, ""},
		"injected, and it fails":             {injected(), "K8S_POD_NAMESPACE=shop", false, 1, "does not start: no such module"},
		"injected, in an excluded namespace": {injected(), "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=a", false, 0, ""},
		"annotations that can't be read":     {injected(statusAnnotation, "["), "", false, 0, "can't be read"},
		"alone":                              {nil, "", true, 0, "stands alone"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			n := 0
			p := Plugin{Stdout: &out, Enter: entered(&n)}
			err := p.Add(t.Context(), &skel.CmdArgs{Netns: "/x", Args: tt.args, StdinData: stdin(t, tt.annotations, !tt.alone)})
			if n != tt.enters || (err != nil) != (tt.fault != "") || (err != nil && !strings.Contains(err.Error(), tt.fault)) {
				t.Fatalf("entered %d times, %v", n, err)
			}
			if err != nil {
				if out.Len() > 0 {
					t.Errorf("it fails and prints a result: %s", out.String())
				}
				return
			}
			var result struct {
				CNIVersion string
				IPs        []struct{ Address string }
			}
			if err := json.Unmarshal(out.Bytes(), &result); err != nil || result.CNIVersion != "1.0.0" || len(result.IPs) != 1 || result.IPs[0].Address != "10.0.0.7/24" {
				t.Errorf("result %s, %v", out.String(), err)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	n := 0
	p := Plugin{Enter: entered(&n)}
	if err := p.Check(t.Context(), &skel.CmdArgs{StdinData: stdin(t, nil, true)}); err != nil || n != 0 {
		t.Errorf("not injected: %v", err)
	}
	if err := p.Check(t.Context(), &skel.CmdArgs{StdinData: stdin(t, injected(), true)}); err == nil || n != 1 {
		t.Errorf("injected: %v", err)
	}
}

func TestEnterNowhere(t *testing.T) {
	for _, path := range []string{"/nowhere", "/dev/null"} {
		if err := enter(path, func() error { return nil }); err == nil {
			t.Errorf("%s is a network namespace", path)
		}
	}
}

func FuzzStdin(f *testing.F) {
	f.Add(stdin(f, injected(), true), "K8S_POD_NAMESPACE=shop")
	f.Add([]byte(`{"runtimeConfig":{"io.kubernetes.cri.pod-annotations":null}}`), ";;=")
	f.Add([]byte(`{"cniVersion":"9","prevResult":{}}`), "")
	f.Fuzz(func(t *testing.T, conf []byte, args string) {
		n := 0
		p := Plugin{Stdout: &bytes.Buffer{}, Enter: entered(&n)}
		_ = p.Add(t.Context(), &skel.CmdArgs{StdinData: conf, Args: args})
	})
}
