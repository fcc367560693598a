// Package settings turns a ModuleConfig into settings that are safe to use.
package settings

import (
	"net/netip"
	"slices"
	"time"
)

// Settings is a ModuleConfig after defaults, conversion and validation. It is
// a value: whoever holds one may rely on every field being valid. It goes
// through JSON unchanged (the manager keeps the last good one in a Secret for
// the control plane).
type Settings struct {
	// ClusterDomain is e.g. cluster.local; TrustDomain is the same unless set.
	ClusterDomain      string   `json:"clusterDomain"`
	TrustDomain        string   `json:"trustDomain"`
	TrustDomainAliases []string `json:"trustDomainAliases,omitempty"`

	// Revisions are names that labels istio.io/rev may call this mesh by, beside
	// "default".
	Revisions []string `json:"revisions,omitempty"`

	RegistryOnly bool          `json:"registryOnly"` // outboundTrafficPolicyMode
	HTTP10       bool          `json:"http10"`
	IdleTimeout  time.Duration `json:"idleTimeout"`
	// CNIPlugin captures pods from their nodes' side and not by an init container
	// (dataPlane.trafficRedirectionSetupMode).
	CNIPlugin bool `json:"cniPlugin,omitempty"`
	// AutoUpgrade rolls the workloads that ask for it when the proxy is upgraded.
	AutoUpgrade bool `json:"autoUpgrade,omitempty"`

	AccessLog    AccessLog    `json:"accessLog,omitzero"`
	Sidecar      Sidecar      `json:"sidecar"`
	CA           CA           `json:"ca"`
	ControlPlane ControlPlane `json:"controlPlane"`
}

// DefaultRevision is the name by which labels istio.io/rev call the mesh whatever
// the settings say.
const DefaultRevision = "default"

// Serves reports whether a label istio.io/rev with this value means this mesh
// (contract 1.37, 5.3).
func (s *Settings) Serves(revision string) bool {
	return revision == DefaultRevision || slices.Contains(s.Revisions, revision)
}

// Sidecar is what injected pods get unless their annotations say otherwise.
type Sidecar struct {
	IncludeOutboundIPRanges []netip.Prefix `json:"includeOutboundIPRanges,omitempty"` // empty: all ("*")
	ExcludeOutboundIPRanges []netip.Prefix `json:"excludeOutboundIPRanges,omitempty"`
	ExcludeInboundPorts     []uint16       `json:"excludeInboundPorts,omitempty"`
	ExcludeOutboundPorts    []uint16       `json:"excludeOutboundPorts,omitempty"`
	// Kubernetes quantities, valid; "" means unset.
	RequestCPU    string `json:"requestCPU,omitempty"`
	RequestMemory string `json:"requestMemory,omitempty"`
	LimitCPU      string `json:"limitCPU,omitempty"`
	LimitMemory   string `json:"limitMemory,omitempty"`
	// HoldApplication is holdApplicationUntilProxyStarts.
	HoldApplication bool `json:"holdApplication"`
}

// AccessLog is what proxies write about each request and connection. An empty
// format is no log. Else [accesslog.Parse] takes it.
type AccessLog struct {
	JSON   bool   `json:"json"`
	Format string `json:"format"`
}

// CA is a plugged-in CA (PEM). All empty: the control plane makes a root of its own.
type CA struct {
	Cert  string `json:"cert,omitempty"`
	Key   string `json:"key,omitempty"`
	Chain string `json:"chain,omitempty"`
	Root  string `json:"root,omitempty"`
}

// ControlPlane is how the control plane itself runs.
type ControlPlane struct {
	Replicas      int32             `json:"replicas"`
	NodeSelector  map[string]string `json:"nodeSelector,omitempty"`
	Tolerations   []Toleration      `json:"tolerations,omitempty"`
	RequestCPU    string            `json:"requestCPU,omitempty"`
	RequestMemory string            `json:"requestMemory,omitempty"`
	LimitCPU      string            `json:"limitCPU,omitempty"`
	LimitMemory   string            `json:"limitMemory,omitempty"`
}

// Toleration is the part of a Kubernetes toleration that settings may carry.
type Toleration struct {
	Key      string `json:"key,omitempty"`
	Operator string `json:"operator,omitempty"`
	Value    string `json:"value,omitempty"`
	Effect   string `json:"effect,omitempty"`
	// TolerationSeconds nil tolerates for ever.
	TolerationSeconds *int64 `json:"tolerationSeconds,omitempty"`
}

// Names that users' tooling relies on.
const (
	Namespace        = "d8-istio" // control plane, and root namespace of policies (contract 1.5)
	ManagerNamespace = "podseal-system"
	ModuleName       = "istio"
	SettingsSecret   = "podseal-settings" // in Namespace, key settings.json
	CASecret         = "istio-ca-secret"
	PluggedCASecret  = "cacerts"
	RootConfigMap    = "istio-ca-root-cert" // key root-cert.pem
	// AnnotationRevocations on RootConfigMap in Namespace names the revocation lists in
	// force: the first 8 bytes of the SHA-256 of ca-crl.pem, as hex.
	AnnotationRevocations = "podseal.io/revocations"
	ServiceName           = "istiod"
	TokenAudience         = "istio-ca"
	ProxyUID              = 1337
)
