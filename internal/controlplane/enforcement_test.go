package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"podseal.io/podseal/internal/discovery"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/xds"
)

// testEnforcement has three pods of the mesh that follow shop/strict and
// shop/from-web, of which some are connected and are so far with the policy.
func testEnforcement(how map[string]xds.Holding) (*enforcement, discovery.Verdicts) {
	c := *testExplainer().cluster()
	c.Pods = append(c.Pods, meshPod("shop", "db", "10.0.0.4", true))
	_, verdicts := discovery.Build(c)
	now := func() time.Time { return epoch }
	e := &enforcement{
		now: now, log: slog.New(slog.DiscardHandler), others: &peerStateReader{now: now},
		view: func(context.Context, string, []string) (*View, error) {
			return adviceView(edges.Plaintext, "cron"), nil
		},
	}
	e.own = &stateReader{
		cluster: func() *discovery.Cluster { return &c },
		each: func(visit func(xds.PeerStatus, func(typeURL, name string) xds.Holding)) {
			for pod, h := range how {
				visit(xds.PeerStatus{Node: xds.Node{ID: "sidecar~ip~" + pod + ".shop~d"}, Connected: epoch}, func(typeURL, _ string) xds.Holding {
					if typeURL == wire.TypeWorkload {
						return xds.Held
					}
					return h
				})
			}
		},
	}
	return e, verdicts
}

// A policy is enforced when all of the proxies say so that it is for.
func TestEnforcedCondition(t *testing.T) {
	key := discovery.Key{Kind: discovery.KindAuthorizationPolicy, Namespace: "shop", Name: "from-web"}
	for name, tc := range map[string]struct {
		how             map[string]xds.Holding
		status, message string
	}{
		"all":         {map[string]xds.Holding{"web": xds.Held, "api": xds.Held, "db": xds.Held}, "True Enforced", "enforced by 3 of 3 workloads"},
		"one is late": {map[string]xds.Holding{"web": xds.Held, "api": xds.Waiting, "db": xds.Held}, "False Progressing", "enforced by 2 of 3 workloads; 1 have not acknowledged it yet"},
		"one refuses": {map[string]xds.Holding{"web": xds.Held, "api": xds.Rejected, "db": xds.Waiting}, "False Rejected", "enforced by 1 of 3 workloads; refused by shop/api: `podseal status` says why"},
		"one is away": {map[string]xds.Holding{"web": xds.Held, "api": xds.Held}, "Unknown NotConnected", "enforced by 2 of 3 workloads; 1 are not connected to the control plane"},
		"nobody":      {nil, "Unknown NotConnected", "enforced by 0 of 3 workloads; 3 are not"},
	} {
		e, verdicts := testEnforcement(tc.how)
		got := e.conditions(t.Context(), verdicts)[key]
		if len(got) != 1 || got[0].status+" "+got[0].reason != tc.status || !strings.HasPrefix(got[0].message, tc.message) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for name, tc := range map[string]struct {
		v    discovery.Verdict
		want string
	}{
		"shadowed":   {discovery.Verdict{Reason: discovery.ReasonShadowed, Message: "other is older"}, "False Shadowed ignored: other is older"},
		"invalid":    {discovery.Verdict{Reason: discovery.ReasonInvalid, Message: "x · it is left out"}, "False Invalid ignored: it is not valid"},
		"selects no": {discovery.Verdict{Accepted: true, Reason: discovery.ReasonAccepted}, "False NoWorkload no running pod of the mesh is to enforce it"},
	} {
		if c := enforcedCondition(tc.v, nil, nil, nil); strings.Join([]string{c.status, c.reason, c.message}, " ") != tc.want {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// Each kind of policy says by how many of the proxies that it is for it is enforced,
// and asks them for the resource that tells of it.
func TestEnforcedKinds(t *testing.T) {
	base, _ := testEnforcement(nil)
	c := *base.own.cluster()
	c.RequestAuthentications = append(c.RequestAuthentications,
		specified(discovery.KindRequestAuthentication, "shop", "tokens", map[string]any{"selector": map[string]any{"matchLabels": map[string]any{"app": "api"}}}),
		specified(discovery.KindRequestAuthentication, "shop", "gateway", map[string]any{"targetRef": map[string]any{"kind": "Gateway", "name": "g", "group": "gateway.networking.k8s.io"}}))
	c.ServiceEntries = append(c.ServiceEntries,
		specified(discovery.KindServiceEntry, "shop", "out", map[string]any{"hosts": []any{"a.example"}, "exportTo": []any{"."}, "ports": []any{map[string]any{"number": int64(80), "name": "http", "protocol": "HTTP"}}}),
		specified(discovery.KindServiceEntry, "shop", "wrong", map[string]any{"hosts": []any{"*"}}))
	c.DestinationRules = append(c.DestinationRules, specified(discovery.KindDestinationRule, "shop", "nobody", map[string]any{"host": "nobody.example"}))
	_, verdicts := discovery.Build(c)
	for name, tc := range map[string]struct {
		kind, object, want string
		resource           string // of which the proxy at shop/api has not acknowledged the newest
	}{
		"tokens":          {discovery.KindRequestAuthentication, "tokens", "True Enforced enforced by 1 of 1 workloads", ""},
		"tokens, late":    {discovery.KindRequestAuthentication, "tokens", "False Progressing enforced by 0 of 1 workloads; 1 have not acknowledged it yet", wire.TypeRequestAuthentication + " shop/tokens"},
		"tokens, gateway": {discovery.KindRequestAuthentication, "gateway", "False NoEffect ignored: targetRef is for gateways", ""},
		"entry":           {discovery.KindServiceEntry, "out", "True Enforced enforced by 3 of 3 workloads", ""},
		"entry, late":     {discovery.KindServiceEntry, "out", "False Progressing enforced by 2 of 3 workloads; 1 have not acknowledged it yet", wire.TypeServiceEntry + " shop/out"},
		"entry, wrong":    {discovery.KindServiceEntry, "wrong", "False Invalid ignored: it is not valid", ""},
		"rule of nobody":  {discovery.KindDestinationRule, "nobody", "False NoEffect ignored: no Service and no ServiceEntry has the name nobody.example", ""},
	} {
		e := &enforcement{now: base.now, log: base.log, view: base.view, others: base.others}
		e.own = &stateReader{
			cluster: func() *discovery.Cluster { return &c },
			each: func(visit func(xds.PeerStatus, func(typeURL, name string) xds.Holding)) {
				for _, pod := range []string{"web", "api", "db"} {
					visit(xds.PeerStatus{Node: xds.Node{ID: "sidecar~ip~" + pod + ".shop~d"}, Connected: epoch}, func(typeURL, name string) xds.Holding {
						if pod == "api" && typeURL+" "+name == tc.resource {
							return xds.Waiting
						}
						return xds.Held
					})
				}
			},
		}
		got := e.conditions(t.Context(), verdicts)[discovery.Key{Kind: tc.kind, Namespace: "shop", Name: tc.object}]
		if len(got) == 0 || !strings.HasPrefix(got[0].status+" "+got[0].reason+" "+got[0].message, tc.want) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// What says STRICT says whom that refuses, and says the same until somebody else is.
func TestCallersCondition(t *testing.T) {
	key := discovery.Key{Kind: discovery.KindPeerAuthentication, Namespace: "shop", Name: "strict"}
	young := adviceView(edges.MutualTLS)
	young.Proxies[0].Started = epoch.Add(-time.Hour)
	for name, tc := range map[string]struct {
		view *View
		want string
	}{
		"somebody":        {adviceView(edges.Plaintext, "cron", "batch"), "False CallersRefused seen within 24h0m0s without the mesh's mutual TLS: old/batch at shop/api port 8080, old/cron at shop/api port 8080; `podseal strict` says what they need"},
		"many":            {adviceView(edges.Plaintext, "a", "b", "c", "d", "e", "f"), "old/e at shop/api port 8080 and 1 more;"},
		"nobody":          {adviceView(edges.MutualTLS, "web"), "True NobodyRefused nobody was refused"},
		"not long enough": {young, "Unknown NotObserved nobody was refused, or seen who would be, but 1 of 1"},
	} {
		e, verdicts := testEnforcement(nil)
		e.view = func(context.Context, string, []string) (*View, error) {
			tc.view.Pods[0].Name = "api"
			tc.view.Proxies[0].Pod = "api"
			return tc.view, nil
		}
		got := e.conditions(t.Context(), verdicts)[key]
		if len(got) != 2 || !strings.Contains(strings.Join([]string{got[1].status, got[1].reason, got[1].message}, " "), tc.want) {
			t.Errorf("%s: %+v", name, got)
		}
		e.view = func(context.Context, string, []string) (*View, error) { return nil, errors.New("no") }
		again := e.conditions(t.Context(), verdicts)[key]
		e.looked = time.Time{}
		later := e.conditions(t.Context(), verdicts)[key]
		if len(again) != 2 || again[1] != got[1] || later[1] != got[1] {
			t.Errorf("%s: again %+v, later %+v", name, again, later)
		}
	}
}
