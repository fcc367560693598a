package discovery

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"podseal.io/podseal/internal/workload"
)

// trafficPolicy reads spec.trafficPolicy, or that of a subset.
func (r *reader) trafficPolicy(t map[string]any, rule *workload.DestinationRule) (*workload.TrafficPolicy, map[uint16]workload.TrafficPolicy) {
	at := r.at
	if at == "" {
		at = "spec.trafficPolicy"
	}
	r.onlyFields(t, at, "loadBalancer", "connectionPool", "outlierDetection", "tls", "portLevelSettings", "tunnel", "proxyProtocol", "retryBudget")
	r.noEffect(t, at, "tunnel", "proxyProtocol", "retryBudget")
	p := r.conduct(t, at, rule)
	ports := map[uint16]workload.TrafficPolicy{}
	for i, entry := range r.objects(t, "portLevelSettings", at+".portLevelSettings") {
		at := fmt.Sprintf("%s.portLevelSettings[%d]", at, i)
		r.onlyFields(entry, at, "port", "loadBalancer", "connectionPool", "outlierDetection", "tls")
		selector := r.object(entry, "port", at+".port")
		r.onlyFields(selector, at+".port", "number")
		n, ok := r.number(selector, "number", at+".port.number", math.MaxUint16)
		if !ok || n == 0 {
			r.fault(at+".port.number", "write the number of the Service's port, from 1 to 65535", "is missing or no port")
			continue
		}
		if _, twice := ports[uint16(n)]; twice {
			r.warn(at, "has no effect: an entry before it is for port %d too", n)
			continue
		}
		ports[uint16(n)] = *r.conduct(entry, at, rule)
		if p.TLS != nil && ports[uint16(n)].TLS == nil { // contract 3.45
			r.warn(at, "replaces all of %s for port %d, tls too: %s doesn't hold there as written", r.orSpec(), n, p.TLS.Mode)
		}
	}
	if len(ports) == 0 {
		ports = nil
	}
	return p, ports
}

func (r *reader) orSpec() string {
	if r.at != "" {
		return r.at
	}
	return "spec.trafficPolicy"
}

// conduct reads what a policy and an entry for a port have in common.
func (r *reader) conduct(t map[string]any, at string, rule *workload.DestinationRule) *workload.TrafficPolicy {
	p := &workload.TrafficPolicy{TLS: r.tls(t, at, rule), Balance: r.balance(t, at+".loadBalancer")}
	r.noEffect(t, at, "outlierDetection")
	pool := r.object(t, "connectionPool", at+".connectionPool")
	r.onlyFields(pool, at+".connectionPool", "tcp", "http")
	if http := r.object(pool, "http", at+".connectionPool.http"); http != nil {
		r.noEffect(http, at+".connectionPool.http", slices.Sorted(maps.Keys(http))...)
	}
	tcpAt := at + ".connectionPool.tcp"
	tcp := r.object(pool, "tcp", tcpAt)
	r.onlyFields(tcp, tcpAt, "maxConnections", "connectTimeout", "tcpKeepalive", "maxConnectionDuration", "idleTimeout")
	r.noEffect(tcp, tcpAt, "maxConnectionDuration", "idleTimeout")
	p.MaxConnections, _ = r.number(tcp, "maxConnections", tcpAt+".maxConnections", math.MaxInt32)
	p.ConnectTimeout = r.duration(tcp, "connectTimeout", tcpAt+".connectTimeout")
	if k := r.object(tcp, "tcpKeepalive", tcpAt+".tcpKeepalive"); k != nil {
		r.onlyFields(k, tcpAt+".tcpKeepalive", "probes", "time", "interval")
		probes, _ := r.number(k, "probes", tcpAt+".tcpKeepalive.probes", 127) // the kernel's own bound
		p.Keepalive = &workload.Keepalive{
			Probes: probes, Time: r.duration(k, "time", tcpAt+".tcpKeepalive.time"), Interval: r.duration(k, "interval", tcpAt+".tcpKeepalive.interval"),
		}
	}
	return p
}

func (r *reader) balance(t map[string]any, at string) workload.Balance {
	lb := r.object(t, "loadBalancer", at)
	r.onlyFields(lb, at, "simple", "consistentHash", "localityLbSetting", "zoneAwareLbSetting", "warmupDurationSecs", "warmup")
	r.noEffect(lb, at, "consistentHash", "localityLbSetting", "zoneAwareLbSetting", "warmupDurationSecs", "warmup")
	word, _ := r.text(lb, "simple", at+".simple")
	switch word {
	case "", "UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST":
		return workload.LeastRequest
	case "ROUND_ROBIN":
		return workload.RoundRobin
	case "RANDOM":
		return workload.Random
	case "PASSTHROUGH":
		r.warn(at+".simple", "PASSTHROUGH has no effect: an endpoint is chosen by fewest connections")
	default:
		r.fault(at+".simple", "write one of LEAST_REQUEST, ROUND_ROBIN, RANDOM", "%q is not a load balancer", word)
	}
	return workload.LeastRequest
}

// noEffect warns of fields that are known and do nothing.
func (r *reader) noEffect(of map[string]any, at string, names ...string) {
	for _, name := range names {
		if v, ok := of[name]; ok && v != nil {
			r.warn(at+"."+name, "known, but has no effect in this version")
		}
	}
}

func (r *reader) warn(at, text string, args ...any) {
	r.warnings = append(r.warnings, at+": "+fmt.Sprintf(text, args...))
}

// text reads a field that must be text; absent and null are "".
func (r *reader) text(of map[string]any, name, at string) (string, bool) {
	v, ok := of[name]
	if !ok || v == nil {
		return "", false
	}
	s, ok := v.(string)
	if !ok {
		r.fault(at, "put the value in quotes", "must be text, not %T", v)
	}
	return s, ok
}

func (r *reader) flag(of map[string]any, name, at string) bool {
	v, ok := of[name]
	if !ok || v == nil {
		return false
	}
	b, ok := v.(bool)
	if !ok {
		r.fault(at, "write true or false", "must be true or false, not %T", v)
	}
	return b
}

// number reads a whole number from 0 to most.
func (r *reader) number(of map[string]any, name, at string, most uint32) (uint32, bool) {
	v, ok := of[name]
	if !ok || v == nil {
		return 0, false
	}
	var n int64
	switch v := v.(type) {
	case int64:
		n = v
	case float64:
		n = -1
		if v == math.Trunc(v) && v >= 0 && v <= math.MaxUint32 {
			n = int64(v)
		}
	default:
		n = -1
	}
	if n < 0 || n > int64(most) {
		r.fault(at, fmt.Sprintf("write a whole number from 0 to %d", most), "%v is out of range", v)
		return 0, false
	}
	return uint32(n), true
}

// duration reads a time of at least a millisecond; absent is 0.
func (r *reader) duration(of map[string]any, name, at string) time.Duration {
	text, ok := r.text(of, name, at)
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Millisecond {
		r.fault(at, "write a time of at least 1ms, such as 5s", "%q is not such a time", text)
		return 0
	}
	return d
}

func (r *reader) texts(of map[string]any, name, at string) []string {
	var out []string
	for i, v := range r.list(of, name, at) {
		s, ok := v.(string)
		if !ok || s == "" {
			r.fault(fmt.Sprintf("%s[%d]", at, i), "put a value in quotes", "must be text that is not empty")
			continue
		}
		out = append(out, s)
	}
	return out
}

func (r *reader) objects(of map[string]any, name, at string) []map[string]any {
	var out []map[string]any
	for i, v := range r.list(of, name, at) {
		m, ok := v.(map[string]any)
		if !ok {
			r.fault(fmt.Sprintf("%s[%d]", at, i), "write it as a mapping", "must be an object, not %T", v)
			continue
		}
		out = append(out, m)
	}
	return out
}
