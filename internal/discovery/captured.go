package discovery

import (
	"maps"
	"strconv"
	"strings"

	"istio.io/api/annotation"

	"podseal.io/podseal/internal/policy"
)

// capturedModes gives DISABLE to the ports of a pod whose inbound traffic is not
// captured (contract 1.27): nobody ends TLS there, so a client that sent it would
// speak to the application. The annotations are valid, or the pod would not have
// been admitted; what can't be read is passed over.
func capturedModes(m policy.Modes, annotations map[string]string, uncaptured []uint16) policy.Modes {
	include, restricted := annotations[annotation.SidecarTrafficIncludeInboundPorts.Name]
	exclude := annotations[annotation.SidecarTrafficExcludeInboundPorts.Name]
	if (!restricted || include == "*") && exclude == "" && len(uncaptured) == 0 {
		return m
	}
	ports := maps.Clone(m.Ports)
	if ports == nil {
		ports = map[uint16]policy.Mode{}
	}
	if restricted && include != "*" { // contract 5.29: the list alone counts
		only := map[uint16]policy.Mode{}
		for _, p := range portList(include) {
			only[p] = m.Port(p)
		}
		return policy.Modes{Default: policy.Disable, Ports: only}
	}
	for _, p := range append(portList(exclude), uncaptured...) {
		ports[p] = policy.Disable
	}
	return policy.Modes{Default: m.Default, Ports: ports}
}

func portList(s string) []uint16 {
	var ports []uint16
	for text := range strings.SplitSeq(s, ",") {
		if p, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16); err == nil && p > 0 {
			ports = append(ports, uint16(p))
		}
	}
	return ports
}
