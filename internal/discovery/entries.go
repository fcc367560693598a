package discovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// entrySet holds the ServiceEntries that are in force.
type entrySet struct {
	all []serviceEntry
}

func buildEntries(c Cluster, verdicts Verdicts) *entrySet {
	s := &entrySet{}
	for _, obj := range c.ServiceEntries {
		if rev := obj.GetLabels()[labelRevision]; rev != "" && !c.Settings.Serves(rev) {
			continue // another control plane's: contract 1.37
		}
		key := Key{KindServiceEntry, obj.GetNamespace(), obj.GetName()}
		e, r := readServiceEntry(obj, c.Settings.ClusterDomain)
		if len(r.faults) > 0 {
			verdicts[key] = Verdict{Reason: ReasonInvalid, Message: Describe(r.faults) + " · it is left out"}
			last := c.LastGood[key]
			if last == nil {
				continue
			}
			good, again := readServiceEntry(last, c.Settings.ClusterDomain)
			if len(again.faults) > 0 {
				continue
			}
			verdicts[key] = Verdict{Reason: ReasonInvalid, Message: Describe(r.faults) + " · the last good version stays in force"}
			e = good
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
