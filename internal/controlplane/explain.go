package controlplane

import (
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/explain"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

// ExplainPath answers questions about what would be, POSTed as an [ExplainRequest].
const ExplainPath = "/v1/explain"

// Bounds of one question.
const (
	maxExplain        = 4 << 20 // bytes
	maxExplainPods    = 64      // of each side
	maxExplainObjects = 500
)

// ExplainRequest is what the control plane is asked.
type ExplainRequest struct {
	// Sources and Destinations are pods, "<namespace>/<name>": every pair is answered.
	Sources      []string         `json:"sources,omitempty"`
	Destinations []string         `json:"destinations,omitempty"`
	Port         uint16           `json:"port,omitempty"`
	Service      string           `json:"service,omitempty"`
	Request      *explain.Request `json:"request,omitempty"`
	// Pods are those of which is asked what holds for them.
	Pods []string `json:"pods,omitempty"`
	// Objects are taken as if they had just been applied.
	Objects []*unstructured.Unstructured `json:"objects,omitempty"`
}

// ExplainAnswer is what it says.
type ExplainAnswer struct {
	Replica string           `json:"replica"`
	Answers []explain.Answer `json:"answers,omitempty"`
	Pods    []PodPolicies    `json:"pods,omitempty"`
	Objects []ObjectVerdict  `json:"objects,omitempty"` // of the request's objects
	Unread  string           `json:"unread,omitempty"`  // what couldn't be read, and isn't looked at
	// Peers are as those of a View.
	Peers []PeerView `json:"peers,omitzero"`
}

// PodPolicies is what holds for a pod.
type PodPolicies struct {
	Pod  string `json:"pod"`
	Mesh bool   `json:"mesh"`
	// Authorization is in the order in which they are looked at.
	Authorization []PolicyView         `json:"authorization"`
	Peer          []PeerAuthentication `json:"peer_authentication"`
	Uncaptured    []uint16             `json:"uncaptured,omitempty"`    // ports where nothing holds
	OnlyCaptured  []uint16             `json:"only_captured,omitempty"` // if not empty, all others are such
	// Matched is when what policies say last mattered at the pod.
	Matched []edges.Match `json:"matched,omitempty"`
}

// Whether a policy is enforced at a pod.
const (
	EnforcedYes      = "yes"
	EnforcedWaiting  = "not yet"  // its proxy has not acknowledged the newest yet
	EnforcedRejected = "rejected" // its proxy has refused it: what it had before stays in force
	EnforcedAway     = "unknown"  // its proxy is not connected: it works with the last that it had
	EnforcedNo       = "no"       // it has no proxy
)

// PolicyView is an AuthorizationPolicy that holds for a pod.
type PolicyView struct {
	explain.Applied
	Enforced string `json:"enforced"`
}

// PeerAuthentication is one that a pod follows.
type PeerAuthentication struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Scope     string   `json:"scope"`
	Default   bool     `json:"default"` // it sets the mode of ports without one of their own
	Ports     []uint16 `json:"ports,omitempty"`
}

// ObjectVerdict says what would become of an object.
type ObjectVerdict struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Accepted  bool   `json:"accepted"`
	Reason    string `json:"reason"`
	Message   string `json:"message"`
}

// explainer answers them.
type explainer struct {
	store   *xds.Store
	cluster func() *discovery.Cluster // the last that was published, nil before
	each    func(visit func(peer xds.PeerStatus, holding func(typeURL, name string) xds.Holding))
	reports func(pods []string) []report.Report // nil: nothing is known of matches
	replica string
	now     func() time.Time
}

var errNothingPublished = errors.New("the control plane is starting: ask again in a moment")

// badQuestion is the asker's fault.
type badQuestion struct{ error }

func (e badQuestion) Unwrap() error { return e.error }

func (e *explainer) explain(q *ExplainRequest) (*ExplainAnswer, error) {
	if n := max(len(q.Sources), len(q.Destinations), len(q.Pods)); n > maxExplainPods {
		return nil, badQuestion{fmt.Errorf("%d pods, at most %d can be asked about at a time", n, maxExplainPods)}
	}
	published := e.cluster()
	if published == nil {
		return nil, errNothingPublished
	}
	out := &ExplainAnswer{Replica: e.replica}
	c, resources := *published, map[string]map[string][]byte{}
	if len(q.Objects) > 0 {
		var err error
		if c, err = e.with(c, q.Objects); err != nil {
			return nil, badQuestion{err}
		}
		built, verdicts := discovery.Build(c)
		resources = built
		out.Objects = verdictsOf(q.Objects, verdicts)
	} else {
		for _, typeURL := range wire.Types() {
			resources[typeURL] = map[string][]byte{}
			for _, r := range e.store.Resources(typeURL) {
				resources[typeURL][r.Name] = r.Body
			}
		}
	}
	origins := originsOf(c)
	m, err := explain.Read(resources, func(pod string, port uint16) bool {
		o, known := origins[pod]
		return !known || o.Captures(port)
	})
	if err != nil {
		out.Unread = err.Error()
	}
	for _, from := range q.Sources {
		for _, to := range q.Destinations {
			out.Answers = appendNew(out.Answers, m.Can(explain.Question{Source: from, Destination: to, Port: q.Port, Service: q.Service, Request: q.Request}))
		}
	}
	for _, pod := range q.Pods {
		out.Pods = append(out.Pods, podPolicies(pod, m, origins[pod]))
	}
	e.enforcement(out.Pods, len(q.Objects) > 0)
	e.matched(out.Pods, origins)
	return out, nil
}

// matched adds what the pods' proxies say of matches.
func (e *explainer) matched(pods []PodPolicies, origins map[string]podOrigin) {
	if e.reports == nil || len(pods) == 0 {
		return
	}
	names := make([]string, 0, len(pods))
	for i := range pods {
		names = append(names, pods[i].Pod)
	}
	reports := e.reports(names)
	for i := range reports {
		pod := reports[i].Pod.Namespace + "/" + reports[i].Pod.Name
		o := origins[pod]
		j := slices.Index(names, pod)
		pods[j].Matched = joinMatches(pods[j].Matched, matchesOf(&reports[i], &o.Origin))
	}
}

// joinMatches keeps the newest of each.
func joinMatches(a, b []edges.Match) []edges.Match {
	last := map[edges.MatchKey]time.Time{}
	for _, all := range [][]edges.Match{a, b} {
		for _, m := range all {
			if m.Last.After(last[m.MatchKey]) {
				last[m.MatchKey] = m.Last
			}
		}
	}
	var out []edges.Match
	for key, at := range last {
		out = append(out, edges.Match{MatchKey: key, Last: at})
	}
	edges.SortMatches(out)
	return out
}

func appendNew(to, more []explain.Answer) []explain.Answer {
	for i := range more {
		if !slices.Contains(to, more[i]) {
			to = append(to, more[i])
		}
	}
	return to
}

// with is the cluster as if objects had just been applied.
func (e *explainer) with(c discovery.Cluster, objects []*unstructured.Unstructured) (discovery.Cluster, error) {
	if len(objects) > maxExplainObjects {
		return c, fmt.Errorf("%d objects, at most %d can be tried at a time", len(objects), maxExplainObjects)
	}
	for _, obj := range objects {
		list := c.PoliciesOf(obj.GetKind())
		if list == nil {
			return c, fmt.Errorf("%s %s/%s: this kind is not honoured", obj.GetKind(), obj.GetNamespace(), obj.GetName())
		}
		obj = obj.DeepCopy()
		obj.SetCreationTimestamp(metav1.NewTime(e.now()))
		next := slices.Clone(*list)
		same := func(o *unstructured.Unstructured) bool {
			return o.GetNamespace() == obj.GetNamespace() && o.GetName() == obj.GetName()
		}
		if i := slices.IndexFunc(next, same); i >= 0 {
			obj.SetCreationTimestamp(next[i].GetCreationTimestamp())
			next[i] = obj
		} else {
			next = append(next, obj)
		}
		*list = next
	}
	return c, nil
}

func verdictsOf(objects []*unstructured.Unstructured, verdicts discovery.Verdicts) []ObjectVerdict {
	out := make([]ObjectVerdict, 0, len(objects))
	for _, obj := range objects {
		v := verdicts[discovery.Key{Kind: obj.GetKind(), Namespace: obj.GetNamespace(), Name: obj.GetName()}]
		out = append(out, ObjectVerdict{obj.GetKind(), obj.GetNamespace(), obj.GetName(), v.Accepted, v.Reason, v.Message})
	}
	return out
}

type podOrigin struct {
	discovery.Origin
	mesh bool
}

func originsOf(c discovery.Cluster) map[string]podOrigin {
	out := make(map[string]podOrigin, len(c.Pods))
	for i, o := range discovery.Origins(c, c.Pods) {
		out[podKey(c.Pods[i])] = podOrigin{o, discovery.InMesh(c.Pods[i])}
	}
	return out
}

func podKey(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }

func podPolicies(pod string, m *explain.Mesh, o podOrigin) PodPolicies {
	p := PodPolicies{Pod: pod, Mesh: o.mesh, Authorization: []PolicyView{}, Peer: []PeerAuthentication{}, Uncaptured: o.Uncaptured, OnlyCaptured: o.OnlyPorts}
	for _, a := range m.Policies(pod) {
		p.Authorization = append(p.Authorization, PolicyView{Applied: a})
	}
	for _, a := range o.Policies {
		p.Peer = append(p.Peer, PeerAuthentication{Namespace: a.Key.Namespace, Name: a.Key.Name, Scope: a.Scope, Default: a.SetsDefault, Ports: a.Ports})
	}
	return p
}

// enforcement says how far each pod's proxy is with the policies that hold for it.
func (e *explainer) enforcement(pods []PodPolicies, tried bool) {
	type seen struct {
		at  time.Time
		how []string
	}
	if len(pods) == 0 {
		return
	}
	all := map[string]seen{}
	if !tried {
		e.each(func(peer xds.PeerStatus, holding func(typeURL, name string) xds.Holding) {
			ns, name, ok := podOf(peer.Node.ID)
			i := slices.IndexFunc(pods, func(p PodPolicies) bool { return ok && p.Pod == ns+"/"+name })
			if i < 0 || all[pods[i].Pod].at.After(peer.Connected) {
				return
			}
			s := seen{at: peer.Connected}
			for _, a := range pods[i].Authorization {
				s.how = append(s.how, enforced(holding, pods[i].Pod, wire.TypeAuthorizationPolicy, a.Key()))
			}
			all[pods[i].Pod] = s
		})
	}
	for i := range pods {
		s, connected := all[pods[i].Pod]
		for j := range pods[i].Authorization {
			how := EnforcedAway
			switch {
			case !pods[i].Mesh:
				how = EnforcedNo
			case connected:
				how = s.how[j]
			case tried:
				how = EnforcedWaiting
			}
			pods[i].Authorization[j].Enforced = how
		}
	}
}

// enforced says how far a pod's proxy is with one resource, and with what says
// that the resource is for this pod.
func enforced(holding func(typeURL, name string) xds.Holding, pod, typeURL, name string) string {
	own, it := holding(wire.TypeWorkload, pod), holding(typeURL, name)
	switch {
	case own == xds.Rejected || it == xds.Rejected:
		return EnforcedRejected
	case own == xds.Held && it == xds.Held:
		return EnforcedYes
	default:
		return EnforcedWaiting
	}
}

// JoinExplain joins what the replicas say, of which there is at least one: each
// knows of the proxies that are connected to it.
func JoinExplain(all []*ExplainAnswer) *ExplainAnswer {
	out := all[0]
	for _, more := range all[1:] {
		out.Replica += "," + more.Replica
		for i := range out.Pods {
			j := slices.IndexFunc(more.Pods, func(p PodPolicies) bool { return p.Pod == out.Pods[i].Pod })
			if j < 0 {
				continue
			}
			known := joinMatches(out.Pods[i].Matched, more.Pods[j].Matched)
			if slices.ContainsFunc(out.Pods[i].Authorization, func(p PolicyView) bool { return p.Enforced == EnforcedAway }) {
				out.Pods[i] = more.Pods[j]
			}
			out.Pods[i].Matched = known
		}
	}
	return out
}
