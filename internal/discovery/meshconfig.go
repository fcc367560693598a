package discovery

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"podseal.io/podseal/internal/policy"
)

// MeshConfigMap and MeshConfigKey name, in the root namespace, what Istio's users
// know as the mesh's configuration.
const (
	MeshConfigMap = "istio"
	MeshConfigKey = "mesh"
)

// Bounds of what authorizers get and may take.
const (
	maxCheckBody         = 48 << 10 // what fits beside a head
	defaultCheckTimeout  = 600 * time.Second
	defaultStatusOnError = 403 // contract 6.44
)

// meshReader reads extensionProviders of a mesh configuration.
type meshReader struct {
	reader
	clusterDomain string
}

// Authorizers reads the external authorizers that a mesh configuration in YAML
// names (contract 6.44). One with a fault is there, and says why it can't be asked.
// The other providers and all other settings have no effect; ignored names them.
func Authorizers(config, clusterDomain string) (all []policy.Authorizer, faults []Fault, ignored []string) {
	r := &meshReader{clusterDomain: clusterDomain}
	var mesh map[string]any
	if err := yaml.Unmarshal([]byte(config), &mesh); err != nil {
		return nil, []Fault{{MeshConfigKey, "is not YAML", "write it as Istio's mesh configuration"}}, nil
	}
	for _, name := range slices.Sorted(maps.Keys(mesh)) {
		if name != "extensionProviders" {
			ignored = append(ignored, name)
		}
	}
	for i, p := range r.objects(mesh, "extensionProviders", "extensionProviders") {
		at := fmt.Sprintf("extensionProviders[%d]", i)
		name, _ := r.text(p, "name", at+".name")
		grpc, http := r.object(p, "envoyExtAuthzGrpc", at+".envoyExtAuthzGrpc"), r.object(p, "envoyExtAuthzHttp", at+".envoyExtAuthzHttp")
		switch {
		case grpc == nil && http == nil:
			ignored = append(ignored, at)
			continue
		case name == "":
			r.fault(at+".name", "name it", "is empty")
			continue
		case slices.ContainsFunc(all, func(a policy.Authorizer) bool { return a.Name == name }):
			r.fault(at+".name", "use another name", "%q is the name of an earlier one", name)
			continue
		}
		before := len(r.faults)
		a := policy.Authorizer{Name: name, HTTP: http != nil}
		if http != nil {
			r.authorizer(&a, http, at+".envoyExtAuthzHttp")
		} else {
			r.authorizer(&a, grpc, at+".envoyExtAuthzGrpc")
		}
		if found := r.faults[before:]; len(found) > 0 {
			a = policy.Authorizer{Name: name, Unusable: Describe(found)}
		}
		all = append(all, a)
	}
	return all, r.faults, append(ignored, r.warnings...)
}

func (r *meshReader) authorizer(a *policy.Authorizer, of map[string]any, at string) {
	service, _ := r.text(of, "service", at+".service")
	_, host, both := strings.Cut(service, "/")
	if !both {
		host = service
	}
	if a.Host = host; !strings.HasSuffix(host, ".svc."+r.clusterDomain) {
		r.fault(at+".service", "write the full name of a Service, such as authz.shop.svc."+r.clusterDomain, "%q is not the name of a Service of this cluster", service)
	}
	port, _ := r.number(of, "port", at+".port", 65535)
	if a.Port = uint16(port); port == 0 {
		r.fault(at+".port", "write the port of the Service", "is missing")
	}
	a.Timeout = cmp.Or(r.duration(of, "timeout", at+".timeout"), defaultCheckTimeout)
	a.FailOpen = r.flag(of, "failOpen", at+".failOpen")
	a.StatusOnError = r.status(of, at)
	known := []string{"service", "port", "timeout", "failOpen", "statusOnError", "clearRouteCache", "includeRequestBodyInCheck"}
	if body := r.object(of, "includeRequestBodyInCheck", at+".includeRequestBodyInCheck"); body != nil {
		r.body(a, body, at+".includeRequestBodyInCheck")
	}
	if a.HTTP {
		a.PathPrefix, _ = r.text(of, "pathPrefix", at+".pathPrefix")
		if a.PathPrefix != "" && a.PathPrefix[0] != '/' {
			r.fault(at+".pathPrefix", "begin it with a slash", "%q is no path", a.PathPrefix)
		}
		a.CheckHeaders = append(r.names(of, "includeRequestHeadersInCheck", at), r.names(of, "includeHeadersInCheck", at)...)
		a.UpstreamHeaders = r.names(of, "headersToUpstreamOnAllow", at)
		a.DenyHeaders = r.names(of, "headersToDownstreamOnDeny", at)
		a.AllowHeaders = r.names(of, "headersToDownstreamOnAllow", at)
		a.ExtraHeaders = r.extra(of, at)
		known = append(known, "pathPrefix", "includeRequestHeadersInCheck", "includeHeadersInCheck", "includeAdditionalHeadersInCheck", "headersToUpstreamOnAllow", "headersToDownstreamOnDeny", "headersToDownstreamOnAllow")
	}
	r.onlyFields(of, at, known...)
}

func (r *meshReader) body(a *policy.Authorizer, of map[string]any, at string) {
	r.onlyFields(of, at, "maxRequestBytes", "allowPartialMessage", "packAsBytes")
	a.MaxBody, _ = r.number(of, "maxRequestBytes", at+".maxRequestBytes", 1<<31)
	a.PartialBody, a.BodyAsBytes = r.flag(of, "allowPartialMessage", at+".allowPartialMessage"), r.flag(of, "packAsBytes", at+".packAsBytes")
	if a.MaxBody == 0 {
		r.fault(at+".maxRequestBytes", "write how much of a body the authorizer gets", "is missing")
	}
	if a.MaxBody > maxCheckBody {
		r.warn(at+".maxRequestBytes", "an authorizer gets %d bytes at most", maxCheckBody)
		a.MaxBody = maxCheckBody
	}
}

func (r *meshReader) status(of map[string]any, at string) uint16 {
	text, ok := r.text(of, "statusOnError", at+".statusOnError")
	if !ok {
		return defaultStatusOnError
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n < 200 || n > 599 {
		r.fault(at+".statusOnError", `write a status such as "403"`, "%q is not a status of HTTP", text)
		return defaultStatusOnError
	}
	return uint16(n)
}

// names reads names of headers, exact or with a star at one end.
func (r *meshReader) names(of map[string]any, name, at string) []string {
	var out []string
	for _, s := range r.texts(of, name, at+"."+name) {
		out = append(out, strings.ToLower(s))
	}
	return out
}

func (r *meshReader) extra(of map[string]any, at string) map[string]string {
	at += ".includeAdditionalHeadersInCheck"
	raw := r.object(of, "includeAdditionalHeadersInCheck", at)
	if len(raw) == 0 {
		return nil
	}
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		value, _ := r.text(raw, name, at+"."+name)
		if err := policy.CheckFieldName(name); err != nil || strings.ContainsAny(value, "\r\n\x00") {
			r.fault(at+"."+name, "write the name of a header and its value", "can't be sent")
			continue
		}
		out[strings.ToLower(name)] = value
	}
	return out
}

// custom says what becomes of a policy of effect CUSTOM (contract 6.44): "" if its
// authorizer can be asked.
func custom(p *policy.AuthorizationPolicy, all []policy.Authorizer) string {
	for i := range all {
		if a := &all[i]; a.Name == p.Authorizer {
			if a.Unusable != "" {
				return fmt.Sprintf("the provider %s can't be asked, so what the rules match is denied: %s", a.Name, a.Unusable)
			}
			return ""
		}
	}
	return fmt.Sprintf("the provider %s is not among extensionProviders of the ConfigMap %s, so what the rules match is denied", p.Authorizer, MeshConfigMap)
}
