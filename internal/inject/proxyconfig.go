package inject

import (
	"bytes"
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"istio.io/api/annotation"
	mesh "istio.io/api/mesh/v1alpha1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

// proxyConfig is what the annotation proxy.istio.io/config says (contract
// 5.24), as far as it has an effect.
type proxyConfig struct {
	concurrency      int32             // 0: as many as there are CPUs
	drain            *time.Duration    // nil: as the proxy has it
	metadata         map[string]string // environment of the proxy
	discoveryAddress string
}

// loopbackEnv is the one environment variable that the capture program reads.
const loopbackEnv = "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR"

// proxyConfigJSON is PROXY_CONFIG: what the proxy needs to know of all this.
func (c proxyConfig) proxyConfigJSON() string {
	config := struct {
		DiscoveryAddress         string `json:"discoveryAddress,omitempty"`
		TerminationDrainDuration string `json:"terminationDrainDuration,omitempty"`
	}{DiscoveryAddress: c.discoveryAddress}
	if c.drain != nil {
		config.TerminationDrainDuration = c.drain.String()
	}
	b, err := json.Marshal(config)
	if err != nil {
		return "{}" // can't be: two strings
	}
	return string(b)
}

// proxyConfig reads the annotation field by field, so that each fault names
// its field.
func (r reader) proxyConfig(text string) {
	name := annotation.ProxyConfig.Name
	var fields map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &fields); err != nil {
		r.fault("annotation %s: not an object in YAML", name)
		return
	}
	known := (*mesh.ProxyConfig)(nil).ProtoReflect().Descriptor().Fields()
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if known.ByJSONName(key) == nil && known.ByName(protoreflect.Name(key)) == nil {
			r.fault("annotation %s: %q is no field of ProxyConfig%s", name, key, meant(key, known))
			continue
		}
		value, err := json.Marshal(map[string]any{key: fields[key]})
		if err != nil {
			r.fault("annotation %s: %s: not a value", name, key)
			continue
		}
		config := new(mesh.ProxyConfig)
		if err := protojson.Unmarshal(value, config); err != nil {
			_, shown, _ := bytes.Cut(value, []byte(":"))
			r.fault("annotation %s: %s: %s is not what this field holds", name, key, bytes.TrimSuffix(shown, []byte("}")))
			continue
		}
		r.proxyConfigField(name, key, config)
	}
}

// proxyConfigField takes over the one field that config has.
func (r reader) proxyConfigField(name, key string, config *mesh.ProxyConfig) {
	switch {
	case config.HoldApplicationUntilProxyStarts != nil:
		r.hold = config.HoldApplicationUntilProxyStarts.GetValue()
	case config.TerminationDrainDuration != nil:
		d := config.TerminationDrainDuration.AsDuration()
		r.drain = &d
		if err := config.TerminationDrainDuration.CheckValid(); err != nil || d < 0 {
			r.fault("annotation %s: %s: write a duration that is not negative, such as 5s", name, key)
		}
	case config.Concurrency != nil:
		r.concurrency = config.Concurrency.GetValue()
		if r.concurrency < 0 {
			r.fault("annotation %s: %s: %d: write a number of threads; 0 means all CPUs", name, key, r.concurrency)
		}
	case len(config.ProxyMetadata) > 0:
		r.proxyMetadata(name+": "+key, config.ProxyMetadata)
	case protoreflectEmpty(config): // what is said is the default
	default:
		r.warn("annotation %s: %s is known, but has no effect in this version", name, key)
	}
}

func protoreflectEmpty(config *mesh.ProxyConfig) bool {
	empty := true
	config.ProtoReflect().Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool {
		empty = false
		return false
	})
	return empty
}

// proxyMetadata takes over the environment that the user wants for the proxy.
// What would change the capture or the identity of the pod is refused.
func (r reader) proxyMetadata(where string, metadata map[string]string) {
	r.metadata = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(metadata)) {
		value := metadata[name]
		switch {
		case isFixedEnv(name):
			r.fault("annotation %s: %s is set by injection and can't be replaced; remove it", where, name)
			continue
		case isCaptureEnv(name):
			r.fault("annotation %s: %s changes what is captured and is not available in this version; remove it", where, name)
			continue
		}
		switch name {
		case "ISTIO_META_DNS_CAPTURE", "ISTIO_META_DNS_AUTO_ALLOCATE":
			if value != "false" {
				r.warn("annotation %s: %s is known, but has no effect in this version: DNS is not captured", where, name)
			}
		case loopbackEnv:
			if p, err := netip.ParsePrefix(value); err != nil || !p.Addr().Is4() || !p.Addr().IsLoopback() {
				r.fault("annotation %s: %s: %q: write a range in 127.0.0.0/8, such as 127.0.0.1/32", where, name, value)
			}
		case "SECRET_TTL", "TERMINATION_DRAIN_DURATION":
			if d, err := time.ParseDuration(value); err != nil || d < 0 {
				r.fault("annotation %s: %s: %q: write a duration that is not negative, such as 5s", where, name, value)
			}
		}
		switch {
		case len(validation.IsEnvVarName(name)) > 0:
			r.fault("annotation %s: %q is not a name for an environment variable", where, name)
		case !slices.Contains(readMetadata(), name) && !strings.HasPrefix(name, "ISTIO_META_DNS_"):
			r.warn("annotation %s: %s has no effect: the proxy doesn't read it", where, name)
		}
		r.metadata[name] = value
	}
}

// readMetadata are the environment variables which proxyMetadata may set to some
// effect: those that the programs read, and those of Go's runtime.
func readMetadata() []string {
	return []string{
		"CA_ADDR", "CA_SERVER_NAME", "SECRET_TTL", "TERMINATION_DRAIN_DURATION", "PODSEAL_MAX_CONNECTIONS", "PODSEAL_LOG_LEVEL", loopbackEnv,
		"ISTIO_META_CLUSTER_ID", "ISTIO_META_WORKLOAD_NAME", "ISTIO_META_OWNER", "ISTIO_META_MESH_ID", "TRUST_DOMAIN", "ISTIO_PROMETHEUS_ANNOTATIONS",
		"GOMEMLIMIT", "GOMAXPROCS", "GOGC", "GODEBUG", "GOTRACEBACK",
	}
}

// meant is the field that was perhaps meant.
func meant(key string, known protoreflect.FieldDescriptors) string {
	for i := range known.Len() {
		if n := known.Get(i).JSONName(); strings.EqualFold(n, key) {
			return "; write " + n
		}
	}
	return ""
}

// isFixedEnv reports whether a variable says which pod the proxy is in, or what
// of it goes through the proxy.
func isFixedEnv(name string) bool {
	return slices.Contains([]string{
		"POD_NAME", "POD_NAMESPACE", "INSTANCE_IP", "INSTANCE_IPS", "SERVICE_ACCOUNT", "HOST_IP", "ISTIO_META_NODE_NAME", "ISTIO_KUBE_APP_PROBERS",
		"PROXY_CONFIG", "ISTIO_META_INTERCEPTION_MODE",
	}, name)
}

// isCaptureEnv reports whether a variable would change what is captured (contract
// 5.32).
func isCaptureEnv(name string) bool {
	return slices.Contains([]string{"ISTIO_OUTBOUND_OWNER_GROUPS", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "INVALID_DROP"}, name)
}
