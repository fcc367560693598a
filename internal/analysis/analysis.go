// Package analysis finds what of a cluster's objects will not work as written.
//
// [Analyze] is pure: objects in, messages out, sorted. Findings that Istio's
// analyzers have too carry their codes (IST0…), so that what people know and have
// suppressed holds; ours are PDS0….
package analysis

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"istio.io/api/annotation"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/discovery"
)

// Level is how bad a finding is.
type Level string

// The levels, the mildest first.
const (
	Info    Level = "Info"
	Warning Level = "Warning"
	Error   Level = "Error"
)

// Levels are in order, the mildest first.
func Levels() []Level { return []Level{Info, Warning, Error} }

// AtLeast reports whether l is as bad as o, or worse.
func (l Level) AtLeast(o Level) bool {
	return slices.Index(Levels(), l) >= slices.Index(Levels(), o)
}

// The codes of findings.
const (
	NamespaceNotInjected = "IST0102"
	PodWithoutProxy      = "IST0103"
	Invalid              = "IST0106"
	MutualTLSConflict    = "IST0113"
	PortName             = "IST0118"
	TwoInjectionLabels   = "IST0123"
	SelectsNothing       = "IST0127"
	SchemaWarning        = "IST0133"
	BrokenWebhook        = "IST0139"
	ApplicationUID       = "IST0144"

	NoEffect      = "PDS0101" // a policy that has no effect as a whole
	NoTargetPort  = "PDS0102" // a port that no service leads to
	NotCompared   = "PDS0103" // rules that look at HTTP on a TCP port
	WeakerThanSet = "PDS0104" // DISABLE or PERMISSIVE beneath STRICT
	ExcludedPort  = "PDS0105" // a service's port that isn't captured
	OnTheNode     = "PDS0106" // host network in a namespace of the mesh
	NotHonoured   = "PDS0107" // an object of a kind, or an annotation, without effect
	RootExpires   = "PDS0108"
	NotEnforced   = "PDS0109" // proxies refuse it
)

// Message is one finding.
type Message struct {
	Code      string `json:"code"`
	Level     Level  `json:"level"`
	Kind      string `json:"kind"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	File      string `json:"file,omitempty"` // that the object stands in
	Text      string `json:"message"`
}

// Object is how people see whom a message is about.
func (m *Message) Object() string {
	name := m.Name
	if m.Namespace != "" {
		name = m.Namespace + "/" + name
	}
	return strings.TrimSpace(m.Kind + " " + name + " " + m.File)
}

// Input is what Analyze looks at.
type Input struct {
	discovery.Cluster
	Namespaces []*corev1.Namespace
	// Unhonoured are objects of Istio's kinds that the mesh doesn't read.
	Unhonoured []*unstructured.Unstructured
	// Webhooks are the mesh's own, with what is wrong with them; "" is nothing.
	Webhooks []Webhook
	Roots    []Root
	// Partial: there may be more in the cluster than is here, so that what refers to
	// something that isn't here is no finding.
	Partial bool
	// Files says in which file an object stands, by its key.
	Files map[discovery.Key]string
	Now   time.Time
}

// Webhook is one webhook configuration.
type Webhook struct{ Kind, Name, Problem string }

// Root is one root certificate in force.
type Root struct {
	Name     string
	NotAfter time.Time
}

// rootSoon is how long before its end a root is a finding.
const rootSoon = 30 * 24 * time.Hour

type analyzer struct {
	Input
	verdicts   discovery.Verdicts
	namespaces map[string]*corev1.Namespace
	origins    map[*corev1.Pod]discovery.Origin
	out        []Message
}

// Analyze finds all that is to be said, but what an object's annotation
// galley.istio.io/analyze-suppress names by code.
func Analyze(in Input) []Message {
	a := &analyzer{Input: in, namespaces: map[string]*corev1.Namespace{}}
	_, a.verdicts = discovery.Build(in.Cluster)
	a.origins = map[*corev1.Pod]discovery.Origin{}
	for i, o := range discovery.Origins(in.Cluster, in.Pods) {
		a.origins[in.Pods[i]] = o
	}
	for _, ns := range in.Namespaces {
		a.namespaces[ns.Name] = ns
		a.namespace(ns)
	}
	for _, pod := range in.Pods {
		a.pod(pod)
	}
	for _, svc := range in.Services {
		a.service(svc)
	}
	for _, list := range [][]*unstructured.Unstructured{in.PeerAuthentications, in.AuthorizationPolicies, in.RequestAuthentications, in.DestinationRules, in.ServiceEntries} {
		for _, obj := range list {
			a.policy(obj)
		}
	}
	for _, obj := range in.Unhonoured {
		a.add(obj, NotHonoured, Warning, "Podseal does not honour %s: the object has no effect", obj.GetKind())
	}
	a.mesh()
	slices.SortStableFunc(a.out, func(x, y Message) int {
		return cmp.Or(slices.Index(Levels(), y.Level)-slices.Index(Levels(), x.Level), strings.Compare(x.Code, y.Code), strings.Compare(x.Object(), y.Object()), strings.Compare(x.Text, y.Text))
	})
	return slices.Compact(a.out)
}

// object is what a finding can be about.
type object interface {
	GetNamespace() string
	GetName() string
	GetAnnotations() map[string]string
}

func (a *analyzer) add(obj object, code string, level Level, format string, args ...any) {
	kind := map[bool]string{true: "Pod"}[isPod(obj)]
	switch o := obj.(type) {
	case *corev1.Namespace:
		kind = "Namespace"
	case *corev1.Service:
		kind = "Service"
	case *unstructured.Unstructured:
		kind = o.GetKind()
	}
	for suppressed := range strings.SplitSeq(obj.GetAnnotations()[annotation.GalleyAnalyzeSuppress.Name], ",") {
		if s := strings.TrimSpace(suppressed); s == code || s == "*" {
			return
		}
	}
	key := discovery.Key{Kind: kind, Namespace: obj.GetNamespace(), Name: obj.GetName()}
	a.out = append(a.out, Message{code, level, kind, key.Namespace, key.Name, a.Files[key], fmt.Sprintf(format, args...)})
}

func isPod(obj object) bool { _, is := obj.(*corev1.Pod); return is }

// mesh is about what belongs to the mesh itself.
func (a *analyzer) mesh() {
	for _, w := range a.Webhooks {
		if w.Problem != "" {
			a.out = append(a.out, Message{Code: BrokenWebhook, Level: Error, Kind: w.Kind, Name: w.Name, Text: w.Problem})
		}
	}
	for _, r := range a.Roots {
		left := r.NotAfter.Sub(a.Now)
		m := Message{Code: RootExpires, Level: Warning, Kind: "Certificate", Name: r.Name}
		switch {
		case left <= 0:
			m.Level, m.Text = Error, "the root has expired: nothing that it signed is trusted any more (docs/ca.md says how to exchange it)"
		case left <= rootSoon:
			m.Text = fmt.Sprintf("the root ends in %d days: exchange it (docs/ca.md)", int(left.Hours()/24))
		default:
			continue
		}
		a.out = append(a.out, m)
	}
}
