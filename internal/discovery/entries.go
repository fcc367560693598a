package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// entrySet holds the ServiceEntries that are in force.
type entrySet struct {
	all []serviceEntry
}

func buildEntries(c Cluster, verdicts Verdicts) *entrySet {
	s := &entrySet{}
	read := func(obj *unstructured.Unstructured) (serviceEntry, *reader) {
		return readServiceEntry(obj, c.Settings.ClusterDomain)
	}
	for _, obj := range c.ServiceEntries {
		e, ok := readInForce(&c, KindServiceEntry, obj, verdicts, read)
		if !ok {
			continue
		}
		e.identify(c.Settings.TrustDomain)
		s.all = append(s.all, e)
	}
	return s
}

// selecting makes a pod an endpoint of the entries that select it.
func (s *entrySet) selecting(pod *corev1.Pod, addresses []netip.Addr) {
	for i := range s.all {
		e := &s.all[i]
		if e.selector == nil || e.entry.Namespace != pod.Namespace || !selects(e.selector, pod.Labels) || !takesConnections(pod) {
			continue
		}
		for _, a := range addresses {
			e.entry.Endpoints = append(e.entry.Endpoints, workload.EntryEndpoint{Address: a, Workload: pod.Namespace + "/" + pod.Name})
		}
	}
}

// takesConnections reports whether a pod that nobody publishes endpoints for may
// get connections (contract 3.59).
func takesConnections(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// put encodes the entries, and says what becomes of each.
func (s *entrySet) put(into map[string][]byte, verdicts Verdicts) {
	for i := range s.all {
		x := s.all[i].entry
		slices.SortStableFunc(x.Endpoints, func(a, b workload.EntryEndpoint) int { return strings.Compare(a.Workload, b.Workload) })
		key := Key{KindServiceEntry, x.Namespace, x.Name}
		if _, bad := verdicts[key]; !bad {
			v := Verdict{Accepted: true, Reason: ReasonAccepted, Message: fmt.Sprintf("in force for %s", strings.Join(x.Hosts, ", "))}
			if s.all[i].selector != nil {
				v.Workloads = len(x.Endpoints)
				v.Message += fmt.Sprintf(", at %s", workloads(v.Workloads))
			}
			verdicts[key] = v
		}
		put(into, verdicts, key, x, wire.AppendServiceEntry)
	}
}

// hosts are the names of all entries.
func (s *entrySet) hosts() []string {
	var all []string
	for i := range s.all {
		all = append(all, s.all[i].entry.Hosts...)
	}
	return all
}
