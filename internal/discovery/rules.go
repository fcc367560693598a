package discovery

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
)

// ruleSet holds the DestinationRules that are in force.
type ruleSet struct {
	all       []destinationRule // oldest first, as clients choose (contract 3.42)
	selective map[string][]*destinationRule
	selected  map[string]int // pods, by name of the rule
}

func buildRules(c Cluster, verdicts Verdicts) *ruleSet {
	s := &ruleSet{selective: map[string][]*destinationRule{}, selected: map[string]int{}}
	read := func(obj *unstructured.Unstructured) (destinationRule, *reader) {
		return readDestinationRule(obj, c.Settings.ClusterDomain)
	}
	for _, obj := range c.DestinationRules {
		if d, ok := readInForce(&c, KindDestinationRule, obj, verdicts, read); ok {
			s.all = append(s.all, d)
		}
	}
	slices.SortFunc(s.all, func(a, b destinationRule) int {
		if c := a.rule.Created.Compare(b.rule.Created); c != 0 {
			return c
		}
		return strings.Compare(a.name(), b.name())
	})
	for i := range s.all {
		if d := &s.all[i]; d.rule.Selective {
			s.selective[d.rule.Namespace] = append(s.selective[d.rule.Namespace], d)
		}
	}
	return s
}

func (d *destinationRule) name() string { return d.rule.Namespace + "/" + d.rule.Name }

// selecting names the selective rules that select a pod (contract 3.41).
func (s *ruleSet) selecting(pod *corev1.Pod) []string {
	var names []string
	for _, d := range s.selective[pod.Namespace] {
		if selects(d.selector, pod.Labels) {
			names = append(names, d.name())
			s.selected[d.name()]++
		}
	}
	slices.Sort(names)
	return names
}

// put encodes the rules, and says what becomes of each.
func (s *ruleSet) put(into map[string][]byte, verdicts Verdicts, services []*workload.Service, hosts []string) {
	for i := range s.all {
		d := &s.all[i]
		key := Key{KindDestinationRule, d.rule.Namespace, d.rule.Name}
		if _, bad := verdicts[key]; !bad {
			verdicts[key] = s.judge(i, services, hosts)
		}
		put(into, verdicts, key, d.rule, wire.AppendDestinationRule)
	}
}

func (s *ruleSet) judge(i int, services []*workload.Service, hosts []string) Verdict {
	d := &s.all[i]
	matched := 0
	for _, host := range hosts {
		if d.matches(host) {
			matched++
		}
	}
	for _, svc := range services {
		if d.matches(svc.Hostname) {
			matched++
		}
	}
	if matched == 0 {
		return Verdict{Reason: ReasonNoEffect, Message: fmt.Sprintf("no Service and no ServiceEntry has the name %s", d.rule.Host)}
	}
	if !d.rule.Selective && d.rule.Policy != nil {
		for _, older := range s.all[:i] {
			if r := older.rule; !r.Selective && r.Namespace == d.rule.Namespace && r.Host == d.rule.Host && r.Policy != nil && slices.Equal(r.ExportTo, d.rule.ExportTo) {
				return Verdict{Reason: ReasonShadowed, Message: fmt.Sprintf("%s is older (or first by name) and is the one in force for %s: put both into one", r.Name, r.Host)}
			}
		}
	}
	v := Verdict{Accepted: true, Reason: ReasonAccepted, Message: fmt.Sprintf("in force for %s, services of that name: %d", d.rule.Host, matched)}
	if d.rule.Selective {
		v.Workloads = s.selected[d.name()]
		v.Message += fmt.Sprintf(", at %s", workloads(v.Workloads))
	}
	if p := d.rule.Policy; p != nil && p.TLS != nil && p.TLS.Mode == workload.TLSDisable {
		v.Message += "; DISABLE: clients send plaintext"
	}
	if len(d.subsets) > 0 {
		v.Message += "; without effect, as nothing leads to them: subsets " + strings.Join(d.subsets, ", ")
	}
	return v
}

func (d *destinationRule) matches(host string) bool {
	suffix, wild := strings.CutPrefix(d.rule.Host, "*")
	return host == d.rule.Host || (wild && strings.HasSuffix(host, suffix))
}
