package discovery

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/policy"
)

// protocolTokens are the words that a port name's prefix or an appProtocol may
// be (contract 3.9), and what each means for a proxy (contract 2.14).
var protocolTokens = map[string]policy.Protocol{
	"http":       policy.HTTP,
	"http2":      policy.HTTP,
	"http_proxy": policy.HTTP,
	"grpc":       policy.HTTP,
	"grpc-web":   policy.HTTP,
	"tcp":        policy.TCP,
	"https":      policy.TCP,
	"tls":        policy.TCP,
	"mongo":      policy.TCP,
	"redis":      policy.TCP,
	"mysql":      policy.TCP,

	"kubernetes.io/h2c": policy.HTTP,
	"kubernetes.io/ws":  policy.HTTP,
	"kubernetes.io/wss": policy.TCP,
}

// serverFirst are service ports whose protocols are known to wait for the
// server's first word: SMTP, DNS, MySQL, MongoDB (contract 3.8).
var serverFirst = map[int32]bool{25: true, 53: true, 3306: true, 27017: true}

// protocolOf is what a service port says of its protocol: its appProtocol if
// set, else the prefix of its name, else a few well-known port numbers
// (contract 3.8).
func protocolOf(p *corev1.ServicePort) policy.Protocol {
	said := p.Name
	if p.AppProtocol != nil {
		said = *p.AppProtocol
	}
	said = strings.ToLower(said)
	if strings.HasPrefix(said, "grpc-web") {
		return policy.HTTP
	}
	if proto, ok := protocolTokens[said]; ok {
		return proto
	}
	prefix, _, _ := strings.Cut(said, "-")
	if proto, ok := protocolTokens[prefix]; ok {
		return proto
	}
	if serverFirst[p.Port] {
		return policy.TCP
	}
	return policy.Auto
}

// isTCP reports whether a port carries what sidecars capture (contract 3.2).
func isTCP(p corev1.Protocol) bool { return p == corev1.ProtocolTCP || p == "" }
