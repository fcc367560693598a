package settings

import "strings"

// field is one line of the table of settings; docs/settings.md shows the same
// lines, and a test compares the two.
type field struct {
	path     string // in the latest version
	before3  string // in versions 1 and 2, where it differs
	until    int    // the last version that has it; 0: all have it
	def      string // the default as the table shows it; "" for none
	honoured bool   // false: known, has no effect, gives a warning
	read     func(p *parser, path string, value any)
}

// pathIn is the path that the setting has in a version; "" if it has none.
func (f field) pathIn(version int) string {
	switch {
	case f.until != 0 && version > f.until:
		return ""
	case f.before3 != "" && version < 3:
		return f.before3
	}
	return f.path
}

// fields is the table: every setting that Deckhouse's istio module knows.
func fields() []field {
	table := trafficFields()
	table = append(table, resourceFields()...)
	return append(table, ignoredFields()...)
}

// trafficFields are about certificates and traffic.
func trafficFields() []field {
	return []field{
		{path: "outboundTrafficPolicyMode", def: "AllowAny", honoured: true, read: func(p *parser, path string, v any) {
			p.out.RegistryOnly = p.oneOf(path, v, "AllowAny", "RegistryOnly") == "RegistryOnly"
		}},
		{path: "globalVersion", honoured: true, read: (*parser).revision},
		{path: "additionalVersions", honoured: true, read: func(p *parser, path string, v any) { p.list(path, v, p.revision) }},
		{path: "dataPlane.enableHTTP10", before3: "enableHTTP10", def: "false", honoured: true, read: func(p *parser, path string, v any) {
			p.boolean(path, v, &p.out.HTTP10)
		}},
		{path: "dataPlane.proxyConfig.holdApplicationUntilProxyStarts", before3: "proxyConfig.holdApplicationUntilProxyStarts", def: "false", honoured: true, read: func(p *parser, path string, v any) {
			p.boolean(path, v, &p.out.Sidecar.HoldApplication)
		}},
		{path: "dataPlane.proxyConfig.idleTimeout", before3: "proxyConfig.idleTimeout", def: "1h", honoured: true, read: func(p *parser, path string, v any) {
			p.duration(path, v, &p.out.IdleTimeout)
		}},
		{path: "dataPlane.accessLog", honoured: true, read: (*parser).accessLog},
		{path: "dataPlane.trafficRedirectionSetupMode", def: "InitContainer", honoured: true, read: func(p *parser, path string, v any) {
			p.out.CNIPlugin = p.oneOf(path, v, "InitContainer", "CNIPlugin") == "CNIPlugin"
		}},
		{path: "sidecar.includeOutboundIPRanges", def: `["0.0.0.0/0"]`, honoured: true, read: func(p *parser, path string, v any) {
			p.includedRanges(path, v, &p.out.Sidecar.IncludeOutboundIPRanges)
		}},
		{path: "sidecar.excludeOutboundIPRanges", honoured: true, read: func(p *parser, path string, v any) {
			p.prefixes(path, v, &p.out.Sidecar.ExcludeOutboundIPRanges)
		}},
		{path: "sidecar.excludeInboundPorts", honoured: true, read: func(p *parser, path string, v any) {
			p.ports(path, v, &p.out.Sidecar.ExcludeInboundPorts)
		}},
		{path: "sidecar.excludeOutboundPorts", honoured: true, read: func(p *parser, path string, v any) {
			p.ports(path, v, &p.out.Sidecar.ExcludeOutboundPorts)
		}},
		{path: "ca.cert", honoured: true, read: func(p *parser, path string, v any) { p.secret(path, v, &p.out.CA.Cert) }},
		{path: "ca.key", honoured: true, read: func(p *parser, path string, v any) { p.secret(path, v, &p.out.CA.Key) }},
		{path: "ca.chain", honoured: true, read: func(p *parser, path string, v any) { p.secret(path, v, &p.out.CA.Chain) }},
		{path: "ca.root", honoured: true, read: func(p *parser, path string, v any) { p.secret(path, v, &p.out.CA.Root) }},
	}
}

// resourceFields are about where the parts run and what they may use.
func resourceFields() []field {
	return []field{
		{path: "sidecar.resourcesManagement.mode", def: "Static", honoured: true, read: func(p *parser, path string, v any) {
			p.oneOf(path, v, "Static")
		}},
		{path: "sidecar.resourcesManagement.static.requests.cpu", def: "100m", honoured: true, read: func(p *parser, path string, v any) {
			p.quantity(path, v, &p.out.Sidecar.RequestCPU)
		}},
		{path: "sidecar.resourcesManagement.static.requests.memory", def: "128Mi", honoured: true, read: func(p *parser, path string, v any) {
			p.quantity(path, v, &p.out.Sidecar.RequestMemory)
		}},
		{path: "sidecar.resourcesManagement.static.limits.cpu", honoured: true, read: func(p *parser, path string, v any) {
			p.quantity(path, v, &p.out.Sidecar.LimitCPU)
		}},
		{path: "sidecar.resourcesManagement.static.limits.memory", def: "1Gi", honoured: true, read: func(p *parser, path string, v any) {
			p.quantity(path, v, &p.out.Sidecar.LimitMemory)
		}},
		{path: "controlPlane.nodeSelector", honoured: true, read: func(p *parser, path string, v any) {
			p.nodeSelector(path, v, &p.out.ControlPlane.NodeSelector)
		}},
		{path: "controlPlane.tolerations", honoured: true, read: func(p *parser, path string, v any) {
			p.tolerations(path, v, &p.out.ControlPlane.Tolerations)
		}},
		{path: "controlPlane.replicasManagement", def: "mode: Standard", honoured: true, read: (*parser).replicas},
		{path: "controlPlane.resourcesManagement", def: "mode: VPA", honoured: true, read: (*parser).controlPlaneResources},
	}
}

// ignoredFields are known and have no effect.
func ignoredFields() []field {
	table := []field{
		{path: "auth.password", until: 1, read: ignored},
		{path: "highAvailability", read: ignored},
		{path: "nodeSelector", read: ignored},
		{path: "tolerations", read: ignored},
	}
	for path := range strings.FieldsSeq(`ingressClass https auth.externalAuthentication auth.allowedUserGroups auth.allowedUserEmails
		auth.sessionTTL auth.satisfyAny auth.whitelistSourceRanges ambient configAnalysis telemetryAPI tracing federation multicluster alliance`) {
		table = append(table, field{path: path, read: ignored})
	}
	return table
}

// ignored warns by name, unless the setting says "off": that is what it is.
func ignored(p *parser, path string, value any) {
	if value == false {
		return
	}
	if o, ok := value.(map[string]any); ok && (o["enabled"] == false || len(o) == 0) {
		return
	}
	p.warn(path, "known, but has no effect in this version")
}
