package discovery

import (
	"testing"

	"podseal.io/podseal/internal/policy"
)

// Contract 1.27, 5.29: nobody ends TLS on a port that is not captured.
func TestCapturedModes(t *testing.T) {
	strict := policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{81: policy.Permissive}}
	const include, exclude = "traffic.sidecar.istio.io/includeInboundPorts", "traffic.sidecar.istio.io/excludeInboundPorts"
	tests := []struct {
		name        string
		annotations map[string]string
		everywhere  []uint16
		want        policy.Modes
	}{
		{"nothing said", nil, nil, strict},
		{"all included", map[string]string{include: "*"}, nil, strict},
		{"some excluded", map[string]string{exclude: "9000, 81"}, nil, policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{81: policy.Disable, 9000: policy.Disable}}},
		{"excluded for all pods", nil, []uint16{9000}, policy.Modes{Default: policy.Strict, Ports: map[uint16]policy.Mode{81: policy.Permissive, 9000: policy.Disable}}},
		{"only some included", map[string]string{include: "80,81", exclude: "80"}, nil, policy.Modes{Default: policy.Disable, Ports: map[uint16]policy.Mode{80: policy.Strict, 81: policy.Permissive}}},
		{"none included", map[string]string{include: ""}, nil, policy.Modes{Default: policy.Disable}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := capturedModes(strict, tt.annotations, tt.everywhere); !got.Equal(tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	if strict.Ports[81] != policy.Permissive || len(strict.Ports) != 1 {
		t.Error("what was given has been changed")
	}
}
