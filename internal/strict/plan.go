package strict

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Policy is a PeerAuthentication of the namespace, as far as it matters.
type Policy struct {
	Name     string
	Created  time.Time
	Selector map[string]string
	Mode     string
	Ports    map[uint16]string
}

// Change is one PeerAuthentication that is to be made, or changed if it Exists.
type Change struct {
	Namespace string
	Name      string
	Exists    bool
	Selector  map[string]string // of one that is made
	Ports     map[uint16]string // exceptions that are added
	Why       string
}

// Plan says which PeerAuthentications give mode STRICT to the report's workloads:
// one for the namespace, or if workload is not "" one for that, and one for each
// workload with a port that stays PERMISSIVE. Notes are for people. An error means
// that it can't be done by objects of ours.
func Plan(r *Report, in *Input, namespace, workload string, present []Policy) (changes []Change, notes []string, err error) {
	present = slices.Clone(present)
	slices.SortFunc(present, func(a, b Policy) int { // the oldest counts (contract 1.15)
		if c := a.Created.Compare(b.Created); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	if workload == "" {
		wide := Change{Namespace: namespace, Name: "default", Why: "the namespace becomes STRICT"}
		if i := slices.IndexFunc(present, func(p Policy) bool { return len(p.Selector) == 0 }); i >= 0 {
			wide.Name, wide.Exists = present[i].Name, true
		} else if slices.ContainsFunc(present, func(p Policy) bool { return p.Name == wide.Name }) {
			wide.Name = "podseal-strict"
		}
		changes = append(changes, wide)
	}
	var faults []error
	for i := range r.Workloads {
		w := &r.Workloads[i]
		own := ownOf(present, in, w)
		except := map[uint16]string{}
		for _, p := range w.Ports {
			if p.Verdict == Except {
				except[p.Port] = "PERMISSIVE"
			}
		}
		switch {
		case w.Pods == 0, workload == "" && len(except) == 0 && own == nil:
			continue
		case workload == "" && len(except) == 0:
			notes = append(notes, fmt.Sprintf("workload %s follows PeerAuthentication %s, mode %s, which stays as it is", w.Name, own.Name, own.Mode))
			continue
		}
		c := Change{Namespace: namespace, Name: w.Name, Ports: except, Why: "workload " + w.Name + " becomes STRICT"}
		if len(except) > 0 {
			c.Why += fmt.Sprintf(", but for ports %v", slices.Sorted(maps.Keys(except)))
		}
		if own != nil {
			c.Name, c.Exists = own.Name, true
			if also := others(own.Selector, in, w); len(also) > 0 {
				notes = append(notes, fmt.Sprintf("PeerAuthentication %s is for %s, too", own.Name, strings.Join(also, ", ")))
			}
		} else if c.Selector, err = selector(in, w); err != nil {
			faults = append(faults, err)
			continue
		}
		changes = append(changes, c)
	}
	return changes, notes, errors.Join(faults...)
}

// ownOf is the oldest policy that selects all pods of the workload (contract 1.18).
func ownOf(oldestFirst []Policy, in *Input, w *Workload) *Policy {
	for i := range oldestFirst {
		p := &oldestFirst[i]
		if len(p.Selector) == 0 {
			continue
		}
		selected := false
		for j := range in.Pods {
			selected = selected || (in.Pods[j].Namespace == w.Namespace && in.Pods[j].Workload == w.Name && Selects(p.Selector, in.Pods[j].Labels))
		}
		if selected {
			return p
		}
	}
	return nil
}

// Selects reports whether a selector selects a pod with these labels; none selects all.
func Selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// others are the other workloads that a selector selects.
func others(selector map[string]string, in *Input, w *Workload) []string {
	found := map[string]bool{}
	for i := range in.Pods {
		p := &in.Pods[i]
		if p.Namespace == w.Namespace && p.Workload != w.Name && Selects(selector, p.Labels) {
			found[p.Workload] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// generated are labels, or the begin of their names, that somebody else than the
// author puts on pods: a selector of them would not outlive the pods.
var generated = []string{
	"pod-template-hash", "controller-revision-hash", "statefulset.kubernetes.io/", "apps.kubernetes.io/", "batch.kubernetes.io/", "controller-uid", "job-name",
	"security.istio.io/", "service.istio.io/", "istio.io/", "sidecar.istio.io/", "topology.kubernetes.io/", "pod-template-generation",
}

// selector finds labels that all pods of the workload have and no others do: the
// usual one alone if that is enough.
func selector(in *Input, w *Workload) (map[string]string, error) {
	var shared map[string]string
	for i := range in.Pods {
		p := &in.Pods[i]
		if p.Namespace != w.Namespace || p.Workload != w.Name {
			continue
		}
		if shared == nil {
			shared = maps.Clone(p.Labels)
		}
		maps.DeleteFunc(shared, func(k, v string) bool { return p.Labels[k] != v })
	}
	maps.DeleteFunc(shared, func(k, _ string) bool {
		return slices.ContainsFunc(generated, func(g string) bool { return strings.HasPrefix(k, g) })
	})
	for _, usual := range []string{"app.kubernetes.io/name", "app", "k8s-app"} {
		one := map[string]string{usual: shared[usual]}
		if shared[usual] != "" && len(others(one, in, w)) == 0 {
			return one, nil
		}
	}
	if len(shared) == 0 {
		return nil, fmt.Errorf("the pods of %s/%s have no label in common that a PeerAuthentication could select them by", w.Namespace, w.Name)
	}
	if also := others(shared, in, w); len(also) > 0 {
		return nil, fmt.Errorf("no label tells the pods of %s/%s from those of %s", w.Namespace, w.Name, strings.Join(also, ", "))
	}
	return shared, nil
}

// Refused are the callers that were fine before and are refused since: what the
// reports said then and say now. New are those that nobody had seen before.
func Refused(before, now *Report) (fine, unseen []Caller) {
	known := map[string]Caller{}
	for i := range before.Workloads {
		for _, p := range before.Workloads[i].Ports {
			for _, c := range p.Callers {
				known[key(&before.Workloads[i], p.Port, &c)] = c
			}
		}
	}
	for i := range now.Workloads {
		for _, p := range now.Workloads[i].Ports {
			for _, c := range p.Callers {
				was, seen := known[key(&now.Workloads[i], p.Port, &c)]
				switch {
				case total(c.Refusals) <= total(was.Refusals):
				case seen && was.Connections > 0:
					fine = append(fine, c)
				default:
					unseen = append(unseen, c)
				}
			}
		}
	}
	return fine, unseen
}

func key(w *Workload, port uint16, c *Caller) string {
	return fmt.Sprintf("%s/%s:%d<%s", w.Namespace, w.Name, port, c.Name())
}

func total(refusals map[string]uint64) uint64 {
	var n uint64
	for _, x := range refusals {
		n += x
	}
	return n
}
