package discovery

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation"

	"podseal.io/podseal/internal/workload"
)

// KindDestinationRule is the kind of contract 1.4, of group networking.istio.io.
const KindDestinationRule = "DestinationRule"

// destinationRule is one such object, read.
type destinationRule struct {
	rule     *workload.DestinationRule
	selector map[string]string
	subsets  []string // to which nothing leads
}

// ValidateDestinationRule finds all that is wrong with a DestinationRule (contract
// 3.38), and what its author may not expect of it: each field that has no effect,
// by name, and each way in which less is encrypted than without the object.
func ValidateDestinationRule(obj *unstructured.Unstructured, clusterDomain string) (faults []Fault, warnings []string) {
	_, r := readDestinationRule(obj, clusterDomain)
	return r.faults, r.warnings
}

// readDestinationRule reads an object; what it returns is to be used only if
// there are no faults.
func readDestinationRule(obj *unstructured.Unstructured, clusterDomain string) (destinationRule, *reader) {
	r := &reader{}
	d := destinationRule{rule: &workload.DestinationRule{
		Namespace: obj.GetNamespace(), Name: obj.GetName(), Created: obj.GetCreationTimestamp().UTC(),
	}}
	spec := r.object(obj.Object, "spec", "spec")
	r.onlyFields(spec, "spec", "host", "trafficPolicy", "subsets", "exportTo", "workloadSelector")
	d.rule.Host = r.host(spec, d.rule.Namespace, clusterDomain)
	d.rule.ExportTo = r.exportTo(spec, d.rule.Namespace)
	if s := r.object(spec, "workloadSelector", "spec.workloadSelector"); s != nil {
		r.onlyFields(s, "spec.workloadSelector", "matchLabels")
		d.selector = r.labelsAt(s, "spec.workloadSelector.matchLabels")
		d.rule.Selective = len(d.selector) > 0
	}
	if t := r.object(spec, "trafficPolicy", "spec.trafficPolicy"); t != nil {
		d.rule.Policy, d.rule.Ports = r.trafficPolicy(t, d.rule)
	}
	d.subsets = r.subsets(spec)
	return d, r
}

// host resolves spec.host: a name without a dot is a service of the rule's own
// namespace, any other is a full name (contract 3.46).
func (r *reader) host(spec map[string]any, namespace, clusterDomain string) string {
	const at = "spec.host"
	host, ok := r.text(spec, "host", at)
	if !ok || host == "" {
		r.fault(at, "name the service", "is missing")
		return ""
	}
	name, wild := strings.CutPrefix(host, "*")
	name = strings.TrimPrefix(name, ".")
	_, notAddress := netip.ParseAddr(host)
	isAddress := notAddress == nil
	bad := isAddress || strings.Contains(name, "*") || (name != "" && len(validation.IsDNS1123Subdomain(strings.ToLower(name))) > 0) || (name == "" && host != "*")
	switch inCluster := ".svc." + clusterDomain; {
	case bad:
		r.fault(at, "write the name of a service, or a star and the end of one such as *.shop.svc."+clusterDomain, "%q is not a host", host)
	case wild:
	case !strings.Contains(host, "."):
		return strings.ToLower(host) + "." + namespace + inCluster
	case !strings.HasSuffix(strings.ToLower(host), inCluster):
		r.warn(at, "%s is taken as a full name, and no Service has it: it counts if a ServiceEntry names it among its hosts, and has no effect otherwise (of a Service, write the short name, or the full one that ends in %s)",
			host, inCluster)
	}
	return strings.ToLower(host)
}

// exportTo: absent is everybody, "." the own namespace.
func (r *reader) exportTo(spec map[string]any, namespace string) []string {
	var to []string
	for i, v := range r.texts(spec, "exportTo", "spec.exportTo") {
		switch {
		case v == ".":
			v = namespace
		case v != "*" && len(validation.IsDNS1123Label(v)) > 0:
			r.fault(fmt.Sprintf("spec.exportTo[%d]", i), `write ".", "*" or the name of a namespace`, "%q is not a namespace", v)
		}
		if !slices.Contains(to, v) {
			to = append(to, v)
		}
	}
	if len(to) == 0 {
		return []string{"*"}
	}
	return to
}

// subsets are read so that what is wrong or has no effect is said: nothing leads
// to a subset here (contract 3.43). Their names are returned.
func (r *reader) subsets(spec map[string]any) (names []string) {
	for i, s := range r.objects(spec, "subsets", "spec.subsets") {
		at := fmt.Sprintf("spec.subsets[%d]", i)
		r.onlyFields(s, at, "name", "labels", "trafficPolicy")
		name, _ := r.text(s, "name", at+".name")
		if name == "" {
			r.fault(at+".name", "give the subset a name", "is missing")
		}
		if t := r.object(s, "trafficPolicy", at+".trafficPolicy"); t != nil {
			sub := &reader{}
			sub.at = at + ".trafficPolicy"
			policy, _ := sub.trafficPolicy(t, &workload.DestinationRule{})
			r.faults = append(r.faults, sub.faults...)
			if policy.TLS != nil && len(sub.faults) == 0 {
				r.warn(at+".trafficPolicy.tls", "has no effect: clients do what spec.trafficPolicy.tls says, or what is the mesh's way without it, and not %s", policy.TLS.Mode)
			}
		}
		r.warn(at, "has no effect: nothing leads to subset %s, as VirtualServices are not honoured", name)
		names = append(names, name)
	}
	return names
}

// tls reads ClientTLSSettings.
func (r *reader) tls(of map[string]any, at string, rule *workload.DestinationRule) *workload.ClientTLS {
	m, present := of["tls"]
	if !present || m == nil {
		return nil // auto mTLS stays (contract 3.31)
	}
	at += ".tls"
	s := r.object(of, "tls", at)
	r.onlyFields(s, at, "mode", "clientCertificate", "privateKey", "caCertificates", "credentialName", "subjectAltNames", "sni", "insecureSkipVerify", "caCrl")
	t := &workload.ClientTLS{Mode: r.tlsMode(s, at), SubjectAltNames: r.texts(s, "subjectAltNames", at+".subjectAltNames")}
	t.SNI, _ = r.text(s, "sni", at+".sni")
	t.ClientCertificate = r.file(s, "clientCertificate", at+".clientCertificate")
	t.PrivateKey = r.file(s, "privateKey", at+".privateKey")
	t.CACertificates = r.file(s, "caCertificates", at+".caCertificates")
	t.SkipVerify = r.flag(s, "insecureSkipVerify", at+".insecureSkipVerify")
	r.combination(s, at, t, rule.Selective)
	r.tlsWarnings(s, at, t, rule)
	return t
}

func (r *reader) tlsMode(s map[string]any, at string) workload.TLSMode {
	word, ok := r.text(s, "mode", at+".mode")
	if !ok || word == "" { // contract 3.30
		r.warn(at, "has no mode, which means DISABLE; write ISTIO_MUTUAL if mutual TLS is meant, or leave tls out")
		return workload.TLSDisable
	}
	for m := workload.TLSDisable; m <= workload.TLSIstioMutual; m++ {
		if m.String() == word {
			return m
		}
	}
	r.fault(at+".mode", "write one of DISABLE, SIMPLE, MUTUAL, ISTIO_MUTUAL", "%q is not a mode", word)
	return workload.TLSDisable
}

// combination is contract 3.38: which fields go together.
func (r *reader) combination(s map[string]any, at string, t *workload.ClientTLS, selective bool) {
	credential, _ := r.text(s, "credentialName", at+".credentialName")
	files := t.ClientCertificate != "" || t.PrivateKey != "" || t.CACertificates != ""
	switch {
	case t.Mode == workload.TLSDisable || t.Mode == workload.TLSIstioMutual:
	case credential != "" && files:
		r.fault(at+".credentialName", "name either a Secret or files", "stands beside clientCertificate, privateKey or caCertificates")
	case credential != "":
		r.credential(credential, at+".credentialName", t, selective)
	case t.Mode == workload.TLSMutual:
		for _, f := range [...]struct{ name, value string }{{"clientCertificate", t.ClientCertificate}, {"privateKey", t.PrivateKey}} {
			if f.value == "" {
				r.fault(at+"."+f.name, "name the file in the proxy's container", "is missing, and MUTUAL needs it")
			}
		}
	}
	if t.SkipVerify && (t.CACertificates != "" || len(t.SubjectAltNames) > 0) {
		r.fault(at+".insecureSkipVerify", "leave it out to verify the server", "stands beside caCertificates or subjectAltNames, which it makes void")
	}
}

// credential reads the name of a Secret, which is of the rule's namespace. Only
// a rule with a selector says which pods are to have it; without one Istio would
// send plaintext (contract 3.37).
func (r *reader) credential(name, at string, t *workload.ClientTLS, selective bool) {
	switch {
	case strings.Contains(name, "://"):
		t.Unusable = "credentialName names something other than a Secret"
		r.warn(at, "%q is not honoured: connections are refused, and never sent in plaintext; name a Secret of this namespace", name)
	case len(validation.IsDNS1123Subdomain(name)) > 0:
		t.Unusable = "credentialName is not the name of a Secret"
		r.fault(at, "write the name of a Secret of this namespace", "%q can't be one", name)
	case !selective:
		t.Unusable = "credentialName needs a workloadSelector"
		r.warn(at, "is for the pods that spec.workloadSelector selects, and there is none: connections are refused, and never sent in plaintext")
	default:
		t.Credential = name
		r.warn(at, "each selected pod reads Secret %s with its own service account, which must be allowed to get or list it; otherwise its connections are refused", name)
	}
}

// tlsWarnings says what is less than it looks.
func (r *reader) tlsWarnings(s map[string]any, at string, t *workload.ClientTLS, rule *workload.DestinationRule) {
	ignored := func(why string, names ...string) {
		for _, name := range names {
			if v, ok := s[name]; ok && v != nil {
				r.warn(at+"."+name, "has no effect: %s", why)
			}
		}
	}
	ignored("there are no revocation lists in this version", "caCrl")
	switch t.Mode {
	case workload.TLSDisable:
		r.warn(at, "DISABLE: traffic to %s leaves in plaintext, also to pods of the mesh; where they are STRICT it is refused there", rule.Host)
		ignored("the mode is DISABLE", "clientCertificate", "privateKey", "caCertificates", "credentialName", "subjectAltNames", "sni", "insecureSkipVerify")
	case workload.TLSIstioMutual:
		ignored("ISTIO_MUTUAL uses the certificates of the mesh", "clientCertificate", "privateKey", "caCertificates", "credentialName", "insecureSkipVerify")
		for i, name := range t.SubjectAltNames {
			if !strings.HasPrefix(name, "spiffe://") {
				r.warn(fmt.Sprintf("%s.subjectAltNames[%d]", at, i), "%q can't be the name of a peer: mesh certificates have spiffe:// names only", name)
			}
		}
	default:
		if t.SkipVerify {
			r.warn(at+".insecureSkipVerify", "whoever answers at the address is trusted")
		} else if t.CACertificates == "" && t.Unusable == "" && t.Credential == "" {
			r.warn(at+".caCertificates", "is missing, and the proxy's image has no system roots: connections are refused until a file is named")
		}
		if t.Mode == workload.TLSSimple {
			ignored("the mode is SIMPLE", "clientCertificate", "privateKey")
		}
	}
}

// file reads a path in the proxy's container.
func (r *reader) file(of map[string]any, name, at string) string {
	v, _ := r.text(of, name, at)
	if v != "" && (!path.IsAbs(v) || path.Clean(v) != v) {
		r.fault(at, "write the whole path in the proxy's container, such as /etc/certs/tls.crt", "%q is not an absolute path", v)
	}
	return v
}
