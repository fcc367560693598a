package strict

import (
	"fmt"
	"slices"
	"strings"

	"podseal.io/podseal/internal/edges"
)

// What a caller can be recognised as.
const (
	isProbe   = "kubelet's probe"
	isAPI     = "the API server"
	isScraper = "a scraper of metrics"
)

// scrapers are names of programs that scrape, as they stand in labels and names of
// workloads.
var scrapers = []string{"prometheus", "vmagent", "vmsingle", "grafana-agent", "alloy", "opentelemetry-collector", "otel-collector", "telegraf"}

// needs says what a caller needs before the port can be STRICT, and whether it
// stands in the way. Who is recognised doesn't, if nobody else uses the port: it
// then stays PERMISSIVE.
func (j *judge) needs(c *Caller, p *Port, pods []*Pod) string {
	c.Recognised = j.recognise(c, p, pods)
	alone := p.Mutual == 0
	for i := range p.Callers {
		alone = alone && (i == slices.Index(names(p.Callers), c.Name()) || j.recognise(&p.Callers[i], p, pods) != "")
	}
	if c.Recognised != "" {
		c.Blocks = !alone
		if alone {
			return "nothing: " + c.Recognised + " can't have a proxy, so the port stays PERMISSIVE"
		}
	} else {
		c.Blocks = true
	}
	switch c.Recognised {
	case isProbe:
		return "let its probes be rewritten (no annotation sidecar.istio.io/rewriteAppHTTPProbers: \"false\") and restart the workload; the port is used by others, too"
	case isScraper:
		return "scrape port 15020, which has the application's metrics too, or inject the scraper; the port is used by others, too"
	case isAPI:
		return "give the webhook or aggregated API a port of its own; this one is used by others, too"
	}
	if c.Peer.Kind == edges.KindWorkload {
		return j.workloadNeeds(c, p)
	}
	return stranger(c.Peer.Kind)
}

func names(all []Caller) []string {
	out := make([]string, 0, len(all))
	for i := range all {
		out = append(out, all[i].Name())
	}
	return out
}

// recognise says what of Kubernetes a caller is: by where it comes from and what
// objects say of the port.
func (j *judge) recognise(c *Caller, p *Port, pods []*Pod) string {
	has := func(of func(*Pod) []uint16) bool {
		return slices.ContainsFunc(pods, func(pod *Pod) bool { return slices.Contains(of(pod), p.Port) })
	}
	node := c.Peer.Kind == edges.KindKubelet || c.Peer.Kind == edges.KindNode
	switch {
	case c.Peer.Kind == edges.KindAPIServer,
		node && c.What != "plaintext" && has(func(pod *Pod) []uint16 { return pod.Hooks }):
		return isAPI
	case c.Peer.Kind == edges.KindKubelet && has(func(pod *Pod) []uint16 { return pod.Probed }):
		return isProbe
	case c.Peer.Kind == edges.KindWorkload && j.scrapes(c.Peer):
		return isScraper
	}
	return ""
}

func (j *judge) scrapes(p edges.Peer) bool {
	texts := []string{p.Name}
	if c := j.callers[p.Namespace+"/"+p.Name]; c != nil {
		texts = append(texts, c.labels["app.kubernetes.io/name"], c.labels["app"])
	}
	return slices.ContainsFunc(texts, func(text string) bool {
		return slices.ContainsFunc(scrapers, func(s string) bool { return strings.Contains(text, s) })
	})
}

// workloadNeeds is for callers that are pods.
func (j *judge) workloadNeeds(c *Caller, p *Port) string {
	who := j.callers[c.Peer.Namespace+"/"+c.Peer.Name]
	switch {
	case who == nil:
		return "it is gone; if it comes back it needs a proxy"
	case who.meshed == who.pods && !c.Last.After(who.oldest):
		c.Blocks = false
		return "nothing: all of its pods have a proxy, and it was seen before they were made"
	case who.meshed == who.pods && p.Mode == "DISABLE":
		c.Blocks = false
		return "nothing: its proxies send plaintext because the port's mode is DISABLE"
	case who.meshed == who.pods && len(c.Refusals) == 0:
		return "its proxies send plaintext: look for a DestinationRule that says DISABLE (`podseal can`), and for traffic.sidecar.istio.io/excludeOutbound… at its pods"
	case who.meshed > 0:
		return fmt.Sprintf("restart it: %d of its %d pods have no proxy", who.pods-who.meshed, who.pods)
	case j.Injected[c.Peer.Namespace]:
		return "restart it: its pods are older than the label of their namespace, or are excluded from injection"
	default:
		return fmt.Sprintf("inject it: `kubectl label namespace %s istio-injection=enabled`, then restart it", c.Peer.Namespace)
	}
}

// stranger is for callers that aren't pods.
func stranger(kind string) string {
	switch kind {
	case edges.KindKubelet, edges.KindNode:
		return "something in a node's host network, which can't have a proxy: move it into the pod network, or let the port stay PERMISSIVE"
	case edges.KindLoadBalancer, edges.KindOutside, edges.KindService:
		return "it comes from outside of the mesh: put a proxy of the mesh before the workload, or let the port stay PERMISSIVE"
	case edges.KindGone:
		return "the address of a pod that is gone: find out what it was, or wait until it is out of the window"
	case edges.KindRest:
		return "callers that the proxy had no room to name: see `podseal edges`"
	default:
		return "find out what it is, or let the port stay PERMISSIVE"
	}
}
