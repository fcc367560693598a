package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"podseal.io/podseal/internal/controlplane"
	"podseal.io/podseal/internal/edges"
	"podseal.io/podseal/internal/explain"
)

// explained is what a replica says: of each pair that it is allowed, unless an
// object is tried; of each pod one policy, which replica istiod-2 knows to be enforced.
func explained(replica string, q *controlplane.ExplainRequest) *controlplane.ExplainAnswer {
	out := &controlplane.ExplainAnswer{Replica: replica}
	for _, from := range q.Sources {
		for _, to := range q.Destinations {
			a := explain.Answer{Source: from, Destination: to, Port: q.Port, Service: q.Service, Verdict: explain.Yes, Allowed: true, Over: explain.OverMutualTLS, Because: "so"}
			if len(q.Objects) > 0 {
				a.Verdict, a.Allowed, a.DryRun = explain.No, false, "no"
				a.Because = q.Objects[0].GetNamespace() + "/" + q.Objects[0].GetName()
			}
			if q.Request != nil {
				a.Because += " " + q.Request.Method + q.Request.Path + q.Request.Header["x-a"]
			}
			out.Answers = append(out.Answers, a)
		}
	}
	for _, pod := range q.Pods {
		p := controlplane.PolicyView{Applied: explain.Applied{Namespace: "shop", Name: "api", Action: "ALLOW", Scope: "namespace", Rules: 2}, Enforced: controlplane.EnforcedAway}
		if replica == "istiod-2" {
			p.Enforced = controlplane.EnforcedYes
		}
		out.Pods = append(out.Pods, controlplane.PodPolicies{
			Pod: pod, Mesh: true, Authorization: []controlplane.PolicyView{p}, Peer: []controlplane.PeerAuthentication{{Namespace: "shop", Name: "strict", Scope: "namespace", Default: true, Ports: []uint16{9090}}},
			Matched: []edges.Match{
				{MatchKey: edges.MatchKey{Kind: "AuthorizationPolicy", Object: "shop/api", Rule: 1, Outcome: "allowed"}, Last: now.Add(-5 * time.Second)},
				{MatchKey: edges.MatchKey{Kind: "AuthorizationPolicy", Object: "shop/api", Rule: -1, Outcome: "denied"}, Last: now.Add(-3 * time.Hour)},
				{MatchKey: edges.MatchKey{Kind: "PeerAuthentication", Object: "shop/strict", Rule: -1, Outcome: "mutual_tls"}, Last: now.Add(-time.Minute)},
				{MatchKey: edges.MatchKey{Kind: "DestinationRule", Object: "shop/db", Rule: -1, Outcome: "followed"}, Last: now.Add(-time.Minute)},
			},
		})
	}
	return out
}

func TestCan(t *testing.T) {
	for name, tc := range map[string]struct {
		o                   canOptions
		source, destination string
		want                []string // source, destination, service, because
	}{
		"workloads":  {canOptions{}, "old/legacy", "shop/api", []string{"old/legacy-1 shop/api-1  so"}},
		"a pod":      {canOptions{}, "pod/shop/web-1", "shop/api", []string{"shop/web-1 shop/api-1  so"}},
		"a service":  {canOptions{namespace: "shop"}, "web", "service/api", []string{"shop/web-1 shop/api-1 shop/api so"}},
		"svc":        {canOptions{}, "shop/web", "svc/shop/api", []string{"shop/web-1 shop/api-1 shop/api so"}},
		"a request":  {canOptions{method: "post", path: "/x", header: []string{"X-A: 1", "x-a=2"}}, "shop/web", "shop/api", []string{"shop/web-1 shop/api-1  so POST/x1,2"}},
		"with kinds": {canOptions{namespace: "shop"}, "deploy/web", "deploy/api", []string{"shop/web-1 shop/api-1  so"}},
	} {
		request, err := tc.o.request()
		if err != nil {
			t.Fatal(err)
		}
		answers, err := tc.o.ask(t.Context(), asLooker(t, withServices()), withServices(), tc.source, tc.destination, &controlplane.ExplainRequest{Request: request})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, a := range answers {
			got = append(got, strings.Join([]string{a.Source, a.Destination, a.Service, a.Because}, " "))
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for _, tc := range []struct{ destination, want string }{{"shop/aip", "Did you mean shop/api?"}, {"service/shop/apj", "Did you mean shop/api?"}, {"pod/shop/api-2", "Did you mean pod/shop/api-1"}} {
		_, err := (&canOptions{}).ask(t.Context(), asLooker(t, withServices()), withServices(), "shop/web", tc.destination, &controlplane.ExplainRequest{})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.destination, err)
		}
	}
}

func withServices() *controlplane.View {
	v := testView()
	v.Pods[1].Services = []string{"api"}
	return v
}

// What is in files is tried, and nothing else of them; what can't be read is said.
func TestTriedPolicies(t *testing.T) {
	var notes bytes.Buffer
	text := `# a comment
---
apiVersion: v1
kind: List
items:
- {apiVersion: security.istio.io/v1beta1, kind: AuthorizationPolicy, metadata: {name: a}, spec: {}}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}}
---
{"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": "x"}}
`
	objects, err := readPolicies([]string{"-"}, streams{in: strings.NewReader(text), err: &notes}, "shop")
	if err != nil || len(objects) != 2 || objects[0].GetNamespace() != "shop" || objects[1].GetNamespace() != "x" || !strings.Contains(notes.String(), "Deployment shop/d is left out") {
		t.Errorf("%v %v %s", objects, err, notes.String())
	}
	answers, err := (&canOptions{}).ask(t.Context(), asLooker(t, testView()), testView(), "shop/web", "shop/api", &controlplane.ExplainRequest{Objects: objects})
	if err != nil || answers[0].Because != "shop/a" {
		t.Errorf("%+v %v", answers, err)
	}
	var out bytes.Buffer
	printAnswers(streams{out: &out}, answers)
	if !strings.Contains(out.String(), "no        mutual TLS   shop/a; with the dry-run policies in force: no") {
		t.Error(out.String())
	}
	for name, text := range map[string]string{"no kind": "a: b", "no YAML": "a: [", "no policy": "{apiVersion: v1, kind: Pod}", "nothing": ""} {
		_, err := readPolicies([]string{"-"}, streams{in: strings.NewReader(text), err: &notes}, "shop")
		var coded codedError
		if !asCoded(err, &coded) || coded.code != exitBadInput {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeObjects(f *testing.F) {
	f.Add("a: b\n---\n{}")
	f.Add("apiVersion: v1\nkind: List\nitems: [1, {kind: x}]")
	f.Add("{\"kind\": 1}")
	f.Fuzz(func(t *testing.T, text string) {
		objects, err := decodeObjects(strings.NewReader(text))
		for _, obj := range objects {
			if err == nil && obj.GetKind() == "" {
				t.Error("an object without a kind")
			}
		}
	})
}

// Each replica knows of its own proxies: what one doesn't know another may.
func TestAuthzCheck(t *testing.T) {
	a, b := testView(), testView()
	b.Replica = "istiod-2"
	out, err := asLooker(t, a, b).explain(t.Context(), &controlplane.ExplainRequest{Pods: []string{"shop/api-1", "shop/api-2"}})
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	printPolicies(streams{out: &text}, out.Pods, now)
	if got := strings.Join(strings.Fields(text.String()), " "); got != "ACTION AUTHORIZATIONPOLICY RULES SCOPE ENFORCED LAST_MATCHED ALLOW api.shop 2 namespace yes allowed 5s ago, denied 3h ago" {
		t.Error(got)
	}
	out.Pods[1].Authorization[0].Enforced = controlplane.EnforcedRejected
	text.Reset()
	printPolicies(streams{out: &text}, out.Pods, now)
	if !strings.Contains(text.String(), "at 1 of 2; rejected") {
		t.Error(text.String())
	}
	text.Reset()
	printPolicies(streams{out: &text}, nil, now)
	if !strings.Contains(text.String(), "everybody is let in") {
		t.Error(text.String())
	}
	text.Reset()
	printOrigin(streams{out: &text}, &out.Pods[0], now)
	if !strings.Contains(text.String(), "Applied PeerAuthentication: strict.shop (namespace), sets the workload's mode and that of ports [9090]; last matched: mutual tls 60s ago") {
		t.Error(text.String())
	}
	text.Reset()
	printMatched(streams{out: &text}, out.Pods, now)
	if got := strings.Join(strings.Fields(text.String()), " "); got != "Also followed: OBJECT LAST_MATCHED DestinationRule db.shop followed 60s ago" {
		t.Error(got)
	}
	text.Reset()
	out.Pods[0].Matched, out.Pods[1].Matched = nil, nil
	printMatched(streams{out: &text}, out.Pods, now)
	if printPolicies(streams{out: &text}, out.Pods, now); !strings.Contains(text.String(), "never seen") || strings.Contains(text.String(), "Also") {
		t.Error(text.String())
	}
	for _, name := range []string{"api-1", "pod/shop/api-1", "api", "deploy/api", "svc/api"} {
		if found, err := findAny(withServices().Pods, name, "shop"); err != nil || len(found) != 1 || found[0].Name != "api-1" {
			t.Errorf("%s: %v %v", name, found, err)
		}
	}
}
