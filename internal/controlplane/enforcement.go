package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/strict"
	"podseal.io/podseal/internal/wire"
)

// The reasons of the conditions Enforced and CallersReady.
const (
	reasonEnforced     = "Enforced"
	reasonNobody       = "NoWorkload"  // there is nobody to enforce it
	reasonProgressing  = "Progressing" // some proxies have not acknowledged it yet
	reasonRejected     = "Rejected"    // some proxies refuse it
	reasonNotConnected = "NotConnected"
	reasonNobodyBroken = "NobodyRefused"
	reasonBroken       = "CallersRefused"
	reasonNotObserved  = "NotObserved"
)

// maxNamed is how many pods or callers a condition names.
const maxNamed = 5

// callersEvery is how often it is looked who STRICT refuses, and matchesEvery when
// policies last mattered.
const (
	callersEvery = 30 * time.Second
	matchesEvery = 30 * time.Second
)

// enforcement knows, of each policy, how far the proxies are that it is for.
type enforcement struct {
	own    *stateReader
	others *peerStateReader
	view   func(ctx context.Context, namespace string, parts []string) (*View, error)
	now    func() time.Time
	log    *slog.Logger

	matches *matchReader // nil knows of none
	peers   *peerClient
	read    time.Time // matches
	matched matched

	looked  time.Time // at callers
	callers map[discovery.Key]condition
}

// conditions are Enforced, and CallersReady of what says STRICT, of all policies.
func (e *enforcement) conditions(ctx context.Context, verdicts discovery.Verdicts) map[discovery.Key][]condition {
	own, governs := e.own.read()
	if own == nil {
		return nil
	}
	all, silent := e.others.read(ctx)
	states := tallyStates(governs, append(all, own))
	out := map[discovery.Key][]condition{}
	for key, v := range verdicts {
		if slices.Contains(enforceable, key.Kind) {
			out[key] = append(out[key], enforcedCondition(v, governs[key], states[key], silent))
		}
	}
	if e.now().Sub(e.looked) >= callersEvery {
		e.looked = e.now()
		e.callers = e.refusedBy(ctx, e.own.cluster(), governs)
	}
	for key, c := range e.callers {
		out[key] = append(out[key], c)
	}
	if e.matches != nil {
		if e.now().Sub(e.read) >= matchesEvery {
			e.read = e.now()
			e.matched = e.readMatches(ctx)
		}
		for key := range verdicts {
			if slices.Contains(enforceable, key.Kind) {
				out[key] = append(out[key], matchedCondition(e.matched[key]))
			}
		}
	}
	return out
}

// readMatches is when each object last mattered, by all replicas.
func (e *enforcement) readMatches(ctx context.Context) matched {
	all := matched{}
	said := [][]objectMatch{e.matches.read()}
	for _, a := range askPeers[[]objectMatch](ctx, e.peers, peerMatches, struct{}{}) {
		if a.answer != nil {
			said = append(said, *a.answer)
		}
	}
	for _, one := range said {
		for i := range one {
			all.note(one[i].Key, one[i].Outcome, one[i].Last)
		}
	}
	return all
}

// state is how many proxies are how far with one policy, and which refuse it.
type state struct {
	held, waiting int
	rejected      []string
}

// resourceOf is what tells proxies of an object.
func resourceOf(key discovery.Key, pod string) (typeURL, name string) {
	switch key.Kind {
	case discovery.KindAuthorizationPolicy:
		return wire.TypeAuthorizationPolicy, key.Namespace + "/" + key.Name
	case discovery.KindDestinationRule:
		return wire.TypeDestinationRule, key.Namespace + "/" + key.Name
	case discovery.KindServiceEntry:
		return wire.TypeServiceEntry, key.Namespace + "/" + key.Name
	case discovery.KindRequestAuthentication:
		return wire.TypeRequestAuthentication, key.Namespace + "/" + key.Name
	default: // modes are part of what is told of the pod
		return wire.TypeWorkload, pod
	}
}

// enforceable are the kinds of which it is known which proxies are to enforce them.
var enforceable = []string{
	discovery.KindPeerAuthentication, discovery.KindAuthorizationPolicy, discovery.KindRequestAuthentication, discovery.KindDestinationRule, discovery.KindServiceEntry,
}

// passedOver are the verdicts of objects that proxies aren't told of.
var passedOver = []string{discovery.ReasonShadowed, discovery.ReasonNoEffect, discovery.ReasonUnencoded}

func enforcedCondition(v discovery.Verdict, pods []string, s *state, silent []string) condition {
	if s == nil {
		s = &state{}
	}
	total := len(pods)
	away := total - s.held - s.waiting - len(s.rejected)
	c := condition{kind: conditionEnforced, message: fmt.Sprintf("enforced by %d of %d workloads", s.held, total)}
	switch {
	case slices.Contains(passedOver, v.Reason):
		c.status, c.reason, c.message = "False", v.Reason, "ignored: "+v.Message
	case v.Reason == discovery.ReasonInvalid && strings.HasSuffix(v.Message, "it is left out"):
		c.status, c.reason, c.message = "False", v.Reason, "ignored: it is not valid"
	case total == 0:
		c.status, c.reason, c.message = "False", reasonNobody, "no running pod of the mesh is to enforce it"
	case len(s.rejected) > 0:
		c.status, c.reason = "False", reasonRejected
		c.message += "; refused by " + named(s.rejected) + ": `podseal status` says why"
	case s.waiting > 0:
		c.status, c.reason = "False", reasonProgressing
		c.message += fmt.Sprintf("; %d have not acknowledged it yet", s.waiting)
	case away > 0:
		c.status, c.reason = "Unknown", reasonNotConnected
	default:
		c.status, c.reason = "True", reasonEnforced
	}
	if away > 0 && c.reason != reasonNobody && !strings.HasPrefix(c.message, "ignored") {
		c.message += fmt.Sprintf("; %d are not connected to the control plane", away)
		if len(silent) > 0 {
			c.message += ", as far as is known without " + named(silent)
		}
	}
	return c
}

func named(all []string) string {
	text := strings.Join(all[:min(len(all), maxNamed)], ", ")
	if more := len(all) - maxNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// refusedBy says of each PeerAuthentication with STRICT whom it refuses, or would.
func (e *enforcement) refusedBy(ctx context.Context, c *discovery.Cluster, governs map[discovery.Key][]string) map[discovery.Key]condition {
	saying := map[discovery.Key]*unstructured.Unstructured{}
	for _, obj := range c.PeerAuthentications {
		if discovery.SaysStrict(obj) {
			saying[discovery.Key{Kind: discovery.KindPeerAuthentication, Namespace: obj.GetNamespace(), Name: obj.GetName()}] = obj
		}
	}
	if len(saying) == 0 {
		return nil
	}
	v, err := e.view(ctx, "", StrictParts())
	if err != nil {
		e.log.Warn("nothing is known of who STRICT refuses", slog.String("error", err.Error()))
		return e.callers
	}
	in := StrictInput(v, strictWindow, nil)
	workloads := make(map[string]string, len(in.Pods))
	for i := range in.Pods {
		workloads[in.Pods[i].Namespace+"/"+in.Pods[i].Name] = in.Pods[i].Namespace + "/" + in.Pods[i].Workload
	}
	out := map[discovery.Key]condition{}
	for key := range saying {
		governed := map[string]bool{}
		for _, pod := range governs[key] {
			governed[workloads[pod]] = true
		}
		if len(governed) > 0 {
			r := strict.Judge(in, func(ns, workload string) bool { return governed[ns+"/"+workload] })
			out[key] = callersCondition(&r)
		}
	}
	return out
}

// callersCondition doesn't say how often and when: it would never stand still.
func callersCondition(r *strict.Report) condition {
	c := condition{kind: conditionCallersReady, status: "True", reason: reasonNobodyBroken, message: fmt.Sprintf("nobody was refused, or seen who would be, within %s", strictWindow)}
	var who []string
	short := 0
	for i := range r.Workloads {
		w := &r.Workloads[i]
		if w.Observed < r.Window || len(w.Blind) > 0 {
			short++
		}
		for _, p := range w.Ports {
			for j := range p.Callers {
				if caller := &p.Callers[j]; len(caller.Refusals) > 0 || caller.Blocks {
					who = append(who, fmt.Sprintf("%s at %s/%s port %d", caller.Name(), w.Namespace, w.Name, p.Port))
				}
			}
		}
	}
	slices.Sort(who)
	switch who = slices.Compact(who); {
	case len(who) > 0:
		c.status, c.reason = "False", reasonBroken
		c.message = fmt.Sprintf("seen within %s without the mesh's mutual TLS: %s; `podseal strict` says what they need", strictWindow, named(who))
	case short > 0:
		c.status, c.reason = "Unknown", reasonNotObserved
		c.message = fmt.Sprintf("nobody was refused, or seen who would be, but %d of %d workloads were not observed for %s", short, len(r.Workloads), strictWindow)
	}
	return c
}
