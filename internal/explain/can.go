package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// Question is what [Mesh.Can] is asked.
type Question struct {
	Source, Destination string // pods, "<namespace>/<name>"
	Port                uint16 // of the destination pod; 0 is every port that a service leads to
	Service             string // "<namespace>/<name>": only by way of it; "" is every way
	// Request says what is asked for over HTTP; nil if it may be anything.
	Request *Request
}

// Request is an HTTP request. Fields that are empty are GET, / and the name of
// the service; header fields that aren't given aren't sent.
type Request struct {
	Method string            `json:"method,omitempty"`
	Path   string            `json:"path,omitempty"`
	Host   string            `json:"host,omitempty"`
	Header map[string]string `json:"header,omitempty"` // names in lower case
}

// The verdicts of an [Answer].
const (
	Yes     = "yes"
	No      = "no"
	Depends = "depends"
)

// What an [Answer] says of the wire.
const (
	OverMutualTLS = "mutual_tls"
	OverPlaintext = "plaintext"
	OverTLS       = "tls" // of a DestinationRule, not the mesh's
	OverNothing   = "none"
)

// Answer says what becomes of connections from one pod to a port of another.
type Answer struct {
	Source      string `json:"source"`      // "<namespace>/<workload>"
	Destination string `json:"destination"` // likewise
	Port        uint16 `json:"port"`        // of the pod; 0 is every port that no service leads to
	Service     string `json:"service,omitempty"`
	Verdict     string `json:"verdict"`
	Allowed     bool   `json:"allowed"` // the verdict is yes
	Over        string `json:"over"`
	Mode        string `json:"mode,omitempty"` // of the port
	Because     string `json:"because"`
	// Rule is the rule of an AuthorizationPolicy that decides (contract 6.11).
	Rule            string `json:"rule,omitempty"`
	DestinationRule string `json:"destination_rule,omitempty"`
	DryRun          string `json:"dry_run,omitempty"` // what would be if dry-run policies were in force
	Audited         string `json:"audited,omitempty"`
}

// Can answers for each port that is asked for, in order. It returns none if a pod
// is not known, or no service leads that way.
func (m *Mesh) Can(q Question) []Answer {
	from, to := m.pods[q.Source], m.pods[q.Destination]
	if from == nil || to == nil {
		return nil
	}
	var out []Answer
	for _, w := range m.ways(to, q) {
		a := m.answer(from, to, w, q.Request)
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// ways are the ports that are asked for, each with the services that lead there.
func (m *Mesh) ways(to *workload.Workload, q Question) []lead {
	var out []lead
	for _, l := range m.leading[to.UID] {
		if (q.Port == 0 || l.target == q.Port) && (q.Service == "" || l.service.Namespace+"/"+l.service.Name == q.Service) {
			out = append(out, l)
		}
	}
	if len(out) == 0 && q.Service == "" {
		out = append(out, lead{target: q.Port})
	}
	slices.SortStableFunc(out, func(a, b lead) int { return int(a.target) - int(b.target) })
	return out
}

func (m *Mesh) answer(from, to *workload.Workload, w lead, r *Request) Answer {
	a := Answer{Source: title(from), Destination: title(to), Port: w.target, Verdict: Yes}
	var conduct workload.Conduct
	if w.service != nil {
		a.Service = fmt.Sprintf("%s:%d", w.service.Hostname, w.port.Port)
		if from.Mesh {
			conduct = m.world.Conduct(from, w.service, w.port.Port)
		}
	}
	var refused policy.Reason
	a.Over, refused, a.Because = speak(from, to, w.target, conduct)
	if conduct.TLS != nil || conduct.Beneath != workload.TLSAuto {
		a.DestinationRule = conduct.Rule
	}
	switch {
	case refused != policy.None:
		a.Verdict, a.Over, a.Because = No, OverNothing, string(refused)+": "+a.Because
	case !to.Mesh:
	case uncaptured(w.target) || !m.captures(to.UID, w.target):
		a.Because = "the port is excluded from capture: no policy holds there"
		if a.Over == OverMutualTLS {
			a.Verdict, a.Because = No, string(policy.HandshakeFailed)+": DestinationRule "+conduct.Rule+" says ISTIO_MUTUAL, and the port is excluded from capture: nobody ends it there"
		}
	default:
		a.Mode = to.Modes.Port(w.target).String()
		m.admit(&a, from, to, w, r)
	}
	a.Allowed = a.Verdict == Yes
	return a
}

func title(p *workload.Workload) string { return p.Namespace + "/" + p.WorkloadName }

// uncaptured are the ports of contract 5.35.
func uncaptured(port uint16) bool { return port == 15020 || port == 15021 || port == 15090 }

// speak says how the client's side talks to a port (contract 3.20, 3.32-3.45).
func speak(from, to *workload.Workload, port uint16, c workload.Conduct) (over string, refused policy.Reason, because string) {
	switch t := c.TLS; {
	case !from.Mesh:
		return OverPlaintext, policy.None, "the source is not in the mesh"
	case t == nil:
	case t.Unusable != "":
		return OverNothing, policy.TLSSettings, "DestinationRule " + c.Rule + ": " + t.Unusable
	case t.Mode == workload.TLSDisable:
		return OverPlaintext, policy.None, "DestinationRule " + c.Rule + " says DISABLE"
	case t.Mode != workload.TLSIstioMutual:
		return OverTLS, policy.None, "DestinationRule " + c.Rule + " says " + t.Mode.String()
	case !to.Mesh:
		return OverNothing, policy.HandshakeFailed, "DestinationRule " + c.Rule + " says ISTIO_MUTUAL, and the destination is not in the mesh"
	case len(t.SubjectAltNames) > 0 && !slices.Contains(t.SubjectAltNames, to.Identity.URI()):
		return OverNothing, policy.PeerIdentity, "DestinationRule " + c.Rule + " wants another identity than " + to.Identity.URI()
	default:
		return OverMutualTLS, policy.None, "DestinationRule " + c.Rule + " says ISTIO_MUTUAL"
	}
	mode := to.Modes.Port(port)
	switch {
	case c.Beneath == workload.TLSDisable:
		return OverPlaintext, policy.None, "DestinationRule " + c.Rule + " says DISABLE"
	case !to.Mesh:
		return OverPlaintext, policy.None, "the destination is not in the mesh: it gets what the source sends"
	case uncaptured(port):
		return OverPlaintext, policy.None, ""
	case mode == policy.Disable && c.Beneath != workload.TLSIstioMutual:
		return OverPlaintext, policy.None, "the port's mode is DISABLE"
	case to.Identity.IsZero():
		return OverNothing, policy.PeerIdentity, "the destination's identity is not known"
	}
	return OverMutualTLS, policy.None, "both are in the mesh, and the port's mode is " + mode.String()
}

// hearing is one way in which the server's side may take a connection.
type hearing struct {
	action policy.Action
	reason policy.Reason
	http   bool
}

// hearings are the ways in which a connection may be taken, of which the bytes
// decide if the protocol isn't declared (contract 2.13).
func hearings(over string, mode policy.Mode, proto policy.Protocol, isHTTP bool) []hearing {
	seen := map[string][]policy.Seen{
		OverMutualTLS: {policy.MeshDetect}, OverPlaintext: {policy.PlainHTTP, policy.PlainOther}, OverTLS: {policy.ForeignTLS},
	}[over]
	switch {
	case over == OverMutualTLS && proto == policy.HTTP:
		seen = []policy.Seen{policy.MeshHTTP}
	case over == OverMutualTLS && proto == policy.TCP:
		seen = []policy.Seen{policy.MeshTCP}
	case over == OverPlaintext && (proto == policy.HTTP || isHTTP):
		seen = []policy.Seen{policy.PlainHTTP}
	}
	var out []hearing
	add := func(h hearing) {
		if !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	for _, s := range seen {
		action, reason := policy.Decide(mode, proto, s)
		h := hearing{action: action, reason: reason, http: action == policy.ServeHTTP || action == policy.TerminateHTTP || action == policy.TerminateAuto}
		add(h)
		if action == policy.TerminateAuto && !isHTTP {
			add(hearing{action: action})
		}
	}
	return out
}

// admit says whether the server's side lets the connection or request in.
func (m *Mesh) admit(a *Answer, from, to *workload.Workload, w lead, r *Request) {
	mode, proto := to.Modes.Port(w.target), to.PortOf(w.target).Protocol
	if a.Over != OverMutualTLS && !strings.Contains(a.Because, "mode is") {
		a.Because += ", and the port's mode is " + mode.String()
	}
	hold, missing := policy.InForce(m.policies, to.Namespace, to.Policies)
	access, err := policy.NewAccess(hold, missing, m.mesh.TrustDomains)
	if err != nil { // each was checked when it was read
		a.Verdict, a.Because = No, err.Error()
		return
	}
	var all []Answer
	for _, h := range hearings(a.Over, mode, proto, r != nil) {
		one := *a
		switch {
		case h.reason != policy.None:
			one.Verdict, one.Because = No, string(h.reason)+": "+one.Because
		case h.action.Terminates() && one.Over == OverTLS:
			one.Verdict, one.Because = No, string(policy.HandshakeFailed)+": "+one.Because+", and the port takes the mesh's certificates only"
		default:
			one.judge(access, m.attempt(&one, from, to, w, r, h), r)
		}
		all = append(all, one)
	}
	*a = all[0]
	if len(all) > 1 && all[1].Verdict != a.Verdict {
		because := fmt.Sprintf("HTTP: %s (%s); else: %s (%s)", a.Verdict, a.Because, all[1].Verdict, all[1].Because)
		a.Verdict, a.Because = Depends, because
	}
	if r != nil && proto == policy.TCP {
		a.Because += "; the port is declared as TCP, so requests are not looked at"
	}
}

// attempt is the connection or request as the server's proxy judges it.
func (m *Mesh) attempt(a *Answer, from, to *workload.Workload, w lead, r *Request, h hearing) *policy.Attempt {
	t := &policy.Attempt{Source: first(from.Addresses), Destination: netip.AddrPortFrom(first(to.Addresses), w.target)}
	host, port := to.Name+"."+to.Namespace, w.target
	if w.service != nil {
		host, port = w.service.Hostname, w.port.Port
	}
	if a.Over == OverMutualTLS && h.action.Terminates() {
		t.Peer, t.SNI = policy.NewPeer(from.Identity), []byte(wire.SNI(port, "", host))
	}
	if !h.http {
		return t
	}
	t.Request = &policy.Request{}
	if r != nil {
		q := *t.Request
		q.Method, q.Path, q.Host = []byte(or(r.Method, "GET")), normal(or(r.Path, "/")), []byte(or(r.Host, host))
		q.Header = fields(r.Header)
		t.Request = &q
	}
	return t
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// normal is the path as policies see it (contract 2.53).
func normal(path string) []byte {
	if p, err := wire.AppendNormalPath(nil, []byte(path)); err == nil {
		return p
	}
	return []byte(path)
}

// fields is a header.
type fields map[string]string

// Field implements policy.Header.
func (f fields) Field(name string) ([]byte, bool) {
	v, ok := f[name]
	return []byte(v), ok
}

func first(all []netip.Addr) netip.Addr {
	if len(all) == 0 {
		return netip.Addr{}
	}
	return all[0]
}

// known says what of an attempt is known.
func known(t *policy.Attempt, over string, r *Request) func(policy.Attribute) bool {
	return func(on policy.Attribute) bool {
		switch {
		case on == policy.DestinationPort:
			return t.Destination.Port() != 0
		case on == policy.SourceIP, on == policy.RemoteIP && (t.Request == nil || r != nil):
			return t.Source.IsValid()
		case on == policy.RemoteIP:
			return false // the client may say another
		case on == policy.DestinationIP:
			return t.Destination.Addr().IsValid()
		case on == policy.ConnectionSNI:
			return over != OverTLS
		case on >= policy.RequestPrincipal:
			return r != nil && r.Header["authorization"] == ""
		case on.HTTPOnly():
			return r != nil
		default:
			return true
		}
	}
}

// judge adds what AuthorizationPolicies say.
func (a *Answer) judge(access *policy.Access, t *policy.Attempt, r *Request) {
	o := access.Foresee(t, known(t, a.Over, r))
	a.Verdict, a.Rule, a.Audited = o.Allowed.String(), o.Rule, o.Audited
	if text := because(o); text != "" {
		a.Because += "; " + text
	}
	if o.Pending {
		a.Rule = ""
	}
	if o.DryRun != nil {
		a.DryRun = o.DryRun.Allowed.String()
		if o.DryRun.Rule != "" {
			a.DryRun += " by " + o.DryRun.Rule
		}
	}
}

// maxMisses is how many rules that don't match are named.
const maxMisses = 3

func because(o policy.Outlook) string {
	switch {
	case o.Pending:
		return "policy_denied: policy " + o.Rule + " holds and isn't known, so nothing is let in"
	case o.Allowed == policy.Always && o.Rule == "":
		return ""
	case o.Allowed == policy.Always:
		return "allowed by " + o.Rule
	case o.Allowed == policy.Sometimes:
		return fmt.Sprintf("%s decides by %s", o.Rule, attributes(o.On))
	case o.Rule != "":
		return "policy_denied: denied by " + o.Rule
	}
	var misses []string
	for _, m := range o.Misses[:min(len(o.Misses), maxMisses)] {
		misses = append(misses, fmt.Sprintf("%s wants another %s", m.Rule, m.On))
	}
	if more := len(o.Misses) - len(misses); more > 0 {
		misses = append(misses, fmt.Sprintf("and %d more", more))
	}
	if len(misses) == 0 {
		misses = []string{"an ALLOW policy holds that has no rule for it"}
	}
	return "policy_denied: no ALLOW rule matches: " + strings.Join(misses, ", ")
}

func attributes(all []policy.Attribute) string {
	var names []string
	for _, on := range all {
		if name := on.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}
