package controlplane

import (
	"context"
	"fmt"
	"strings"
	"time"

	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/strict"
)

// StrictParts are what [StrictInput] reads of a view of all namespaces.
func StrictParts() []string { return []string{PartPods, PartProxies, PartEdges, PartDetails} }

// StrictInput is what a view says of who talks to whom, for a verdict on STRICT.
// hooks are the ports that the API server calls, by "<service>.<namespace>:<port>".
func StrictInput(v *View, window time.Duration, hooks map[string]bool) strict.Input {
	in := strict.Input{Now: v.Now, Window: window, Graph: edges.Build(v.Edges), Injected: map[string]bool{}}
	for _, ns := range v.Injected {
		in.Injected[ns] = true
	}
	proxies := make(map[string]*ProxyView, len(v.Proxies))
	for i := range v.Proxies {
		proxies[v.Proxies[i].Namespace+"/"+v.Proxies[i].Pod] = &v.Proxies[i]
	}
	for i := range v.Pods {
		p := &v.Pods[i]
		pod := strict.Pod{
			Namespace: p.Namespace, Name: p.Name, Workload: p.Workload, Mesh: p.Mesh, Created: p.Created,
			Mode: p.Mode, PortModes: p.PortModes, Probed: p.Probed, Labels: p.Labels,
		}
		for _, port := range p.Ports {
			pod.Ports = append(pod.Ports, port.Port)
			name, number, _ := strings.Cut(port.Service, ":")
			parts := strings.SplitN(name, ".", 3)
			if len(parts) == 3 && hooks[parts[0]+"."+parts[1]+":"+number] {
				pod.Hooks = append(pod.Hooks, port.Port)
			}
		}
		if proxy := proxies[p.Namespace+"/"+p.Name]; proxy != nil && proxy.Reports && proxy.Gone.IsZero() {
			pod.Reports, pod.Since = true, proxy.Started
		}
		in.Pods = append(in.Pods, pod)
	}
	return in
}

// strictWindow is how far back the control plane looks by itself.
const strictWindow = 24 * time.Hour

// adviser says what STRICT would break.
type adviser struct {
	view func(ctx context.Context, namespace string, parts []string) (*View, error)
}

// Bounds of one warning. kubectl prints each on a line of its own, and the API
// server cuts what is longer than 256 characters.
const (
	maxWarnedCallers = 5
	maxWarning       = 250
)

// warn says who would be refused by mode STRICT at some of the pods.
func (a *adviser) warn(ctx context.Context, namespace string, selector map[string]string) ([]string, error) {
	v, err := a.view(ctx, "", StrictParts())
	if err != nil {
		return nil, err
	}
	in := StrictInput(v, strictWindow, nil)
	r := strict.Judge(in, wanted(&in, namespace, selector))
	return warnings(&r, namespace), nil
}

// wanted are the workloads of a namespace, or of all if it is "", with a pod that a
// selector selects and that isn't STRICT already.
func wanted(in *strict.Input, namespace string, selector map[string]string) func(ns, workload string) bool {
	want := map[string]bool{}
	for i := range in.Pods {
		p := &in.Pods[i]
		if (namespace == "" || p.Namespace == namespace) && p.Mesh && strict.Selects(selector, p.Labels) {
			want[p.Namespace+"/"+p.Workload] = true
		}
	}
	return func(ns, workload string) bool { return want[ns+"/"+workload] }
}

func warnings(r *strict.Report, namespace string) []string {
	var out []string
	more := 0
	for i := range r.Workloads {
		w := &r.Workloads[i]
		for _, p := range w.Ports {
			if p.Verdict == strict.Strict {
				continue
			}
			for j := range p.Callers {
				c := &p.Callers[j]
				if !c.Blocks && c.Recognised == "" {
					continue
				}
				if len(out) == maxWarnedCallers {
					more++
					continue
				}
				out = append(out, cut(fmt.Sprintf("STRICT refuses %s at %s/%s port %d, seen %s ago (%s): %s", c.Name(), w.Namespace, w.Name, p.Port, ago(r, c), c.What, c.Needs)))
			}
		}
	}
	target := namespace
	if target == "" {
		target = "NAMESPACE"
	}
	switch {
	case more > 0:
		out = append(out, fmt.Sprintf("STRICT refuses %d more callers: `podseal strict %s`", more, target))
	case len(out) > 0:
		out = append(out, fmt.Sprintf("`podseal strict %s` says more; undo this if they matter", target))
	case r.Verdict == strict.Wait:
		out = append(out, fmt.Sprintf("nobody was seen who would be refused, but not all was observed for %s: `podseal strict %s`", strictWindow, target))
	}
	return out
}

func ago(r *strict.Report, c *strict.Caller) string {
	return r.Now.Sub(c.Last).Round(time.Second).String()
}

func cut(text string) string {
	if len(text) > maxWarning {
		return text[:maxWarning-3] + "..."
	}
	return text
}
