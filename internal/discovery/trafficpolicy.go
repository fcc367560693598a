package discovery

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"podseal.io/podseal/internal/workload"
)

// forever is longer than any connection lasts, for a time-out that is switched off.
const forever = 10 * 365 * 24 * time.Hour

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
	p.Outlier = r.outlier(t, at+".outlierDetection")
	pool := r.object(t, "connectionPool", at+".connectionPool")
	r.onlyFields(pool, at+".connectionPool", "tcp", "http")
	if http := r.object(pool, "http", at+".connectionPool.http"); http != nil {
		r.noEffect(http, at+".connectionPool.http", slices.Sorted(maps.Keys(http))...)
	}
	tcpAt := at + ".connectionPool.tcp"
	tcp := r.object(pool, "tcp", tcpAt)
	r.onlyFields(tcp, tcpAt, "maxConnections", "connectTimeout", "tcpKeepalive", "maxConnectionDuration", "idleTimeout")
	p.MaxDuration = r.duration(tcp, "maxConnectionDuration", tcpAt+".maxConnectionDuration")
	if text, _ := r.text(tcp, "idleTimeout", tcpAt+".idleTimeout"); text == "0s" {
		p.IdleTimeout = forever
	} else {
		p.IdleTimeout = r.duration(tcp, "idleTimeout", tcpAt+".idleTimeout")
	}
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
	r.noEffect(lb, at, "localityLbSetting", "zoneAwareLbSetting", "warmupDurationSecs", "warmup")
	word, _ := r.text(lb, "simple", at+".simple")
	if hash := r.object(lb, "consistentHash", at+".consistentHash"); hash != nil {
		if word != "" {
			r.fault(at, "choose one", "simple and consistentHash stand side by side")
		}
		return r.consistentHash(hash, at+".consistentHash")
	}
	switch word {
	case "", "UNSPECIFIED", "LEAST_CONN", "LEAST_REQUEST":
		return workload.LeastRequest
	case "ROUND_ROBIN":
		return workload.RoundRobin
	case "RANDOM":
		return workload.Random
	case "PASSTHROUGH":
		return workload.Passthrough
	default:
		r.fault(at+".simple", "write one of LEAST_REQUEST, ROUND_ROBIN, RANDOM, PASSTHROUGH", "%q is not a load balancer", word)
	}
	return workload.LeastRequest
}

// consistentHash: of what there is to hash only the client's address can be seen
// without reading requests.
func (r *reader) consistentHash(hash map[string]any, at string) workload.Balance {
	r.onlyFields(hash, at, "httpHeaderName", "httpCookie", "httpQueryParameterName", "useSourceIp", "ringHash", "maglev", "minimumRingSize")
	for _, name := range []string{"ringHash", "maglev", "minimumRingSize"} {
		if v, ok := hash[name]; ok && v != nil {
			r.warn(at+"."+name, "has no effect: there is no table whose size could be set")
		}
	}
	for _, name := range []string{"httpHeaderName", "httpCookie", "httpQueryParameterName"} {
		if v, ok := hash[name]; ok && v != nil {
			r.warn(at+"."+name, "has no effect, as requests are not read on the way out: an endpoint is chosen by fewest connections")
		}
	}
	if r.flag(hash, "useSourceIp", at+".useSourceIp") {
		return workload.SourceHash
	}
	return workload.LeastRequest
}

// What Istio's proxies do where outlierDetection says nothing.
const (
	outlierFailures = 5
	outlierInterval = 10 * time.Second
	outlierEjection = 30 * time.Second
	outlierPercent  = 10
)

// outlier reads when an endpoint is left out. Only failures to connect are seen,
// which Istio counts as errors of the gateway, unless they are split from these.
func (r *reader) outlier(t map[string]any, at string) *workload.Outlier {
	if v, ok := t["outlierDetection"]; !ok || v == nil {
		return nil
	}
	d := r.object(t, "outlierDetection", at)
	r.onlyFields(d, at, "consecutiveErrors", "splitExternalLocalOriginErrors", "consecutiveLocalOriginFailures", "consecutiveGatewayErrors", "consecutive5xxErrors",
		"interval", "baseEjectionTime", "maxEjectionPercent", "minHealthPercent", "outlierDetectionHttpErrorCodes")
	r.noEffect(d, at, "consecutiveErrors", "outlierDetectionHttpErrorCodes")
	split := r.flag(d, "splitExternalLocalOriginErrors", at+".splitExternalLocalOriginErrors")
	local, _ := r.number(d, "consecutiveLocalOriginFailures", at+".consecutiveLocalOriginFailures", math.MaxInt32)
	gateway, gatewaySaid := r.number(d, "consecutiveGatewayErrors", at+".consecutiveGatewayErrors", math.MaxInt32)
	server, serverSaid := r.number(d, "consecutive5xxErrors", at+".consecutive5xxErrors", math.MaxInt32)
	for _, f := range [...]struct {
		name string
		said bool
	}{{"consecutiveGatewayErrors", gatewaySaid}, {"consecutive5xxErrors", serverSaid}} {
		switch {
		case f.said && split:
			r.warn(at+"."+f.name, "has no effect: responses are not read on the way out, and failures to connect are split from them")
		case f.said:
			r.warn(at+"."+f.name, "counts failures to connect only: responses are not read on the way out")
		}
	}
	if local > 0 && !split {
		r.warn(at+".consecutiveLocalOriginFailures", "has no effect without splitExternalLocalOriginErrors")
	}
	o := &workload.Outlier{
		Interval: cmp.Or(r.duration(d, "interval", at+".interval"), outlierInterval),
		Ejection: cmp.Or(r.duration(d, "baseEjectionTime", at+".baseEjectionTime"), outlierEjection),
	}
	percent, _ := r.number(d, "maxEjectionPercent", at+".maxEjectionPercent", 100)
	o.MaxPercent = cmp.Or(percent, outlierPercent)
	o.MinHealthy, _ = r.number(d, "minHealthPercent", at+".minHealthPercent", 100)
	switch {
	case split:
		o.Failures = cmp.Or(local, outlierFailures)
	case !serverSaid:
		o.Failures = outlierFailures
	default:
		o.Failures = server // 0 counts nothing
	}
	if !split && gateway > 0 && (o.Failures == 0 || gateway < o.Failures) {
		o.Failures = gateway
	}
	if o.Failures == 0 {
		return nil
	}
	return o
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
