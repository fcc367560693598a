package workload

import (
	"strings"
	"testing"
	"time"
)

// rules reads lines of "<age> <namespace>/<name> <host> [export=a,b] [selective]
// [tls=MODE] [port=80:MODE] [port=80]".
func rules(t *testing.T, text string) []*DestinationRule {
	t.Helper()
	var all []*DestinationRule
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		ns, name, _ := strings.Cut(f[1], "/")
		age, err := time.ParseDuration(f[0])
		if err != nil {
			t.Fatal(err)
		}
		r := &DestinationRule{Namespace: ns, Name: name, Host: f[2], ExportTo: []string{"*"}, Created: time.Unix(1e6, 0).Add(-age)}
		for _, word := range f[3:] {
			key, value, _ := strings.Cut(word, "=")
			switch key {
			case "export":
				r.ExportTo = strings.Split(value, ",")
			case "selective":
				r.Selective = true
			case "tls":
				r.Policy = &TrafficPolicy{TLS: tlsOf(value)}
			case "policy":
				r.Policy = &TrafficPolicy{MaxConnections: 7}
			case "port":
				if r.Ports == nil {
					r.Ports = map[uint16]TrafficPolicy{}
				}
				_, mode, _ := strings.Cut(value, ":")
				r.Ports[80] = TrafficPolicy{TLS: tlsOf(mode)}
			default:
				t.Fatalf("no such word %q", word)
			}
		}
		all = append(all, r)
	}
	return all
}

func tlsOf(mode string) *ClientTLS {
	for m := TLSDisable; m <= TLSIstioMutual; m++ {
		if m.String() == mode {
			return &ClientTLS{Mode: m}
		}
	}
	return nil
}

// TestConduct asks as a client in namespace shop about port 80 of db in namespace
// data; mesh is the root namespace.
func TestConduct(t *testing.T) {
	const db = "db.data.svc.cluster.local"
	for name, tt := range map[string]struct{ rules, rule, tls, beneath string }{
		"no rule":                           {"", "", "", ""},
		"contract 3.31: a rule without tls": {"1s shop/a " + db + " policy", "shop/a", "", ""},
		"contract 3.39: the client's namespace is first":            {"1s shop/a " + db + " tls=SIMPLE\n9s data/b " + db + " tls=DISABLE\n9s mesh/c " + db + " tls=MUTUAL", "shop/a", "SIMPLE", ""},
		"contract 3.39: with its private rules":                     {"1s shop/a " + db + " tls=SIMPLE export=shop\n1s data/b " + db + " tls=DISABLE", "shop/a", "SIMPLE", ""},
		"contract 3.39: and with those that it exports elsewhere":   {"1s shop/a " + db + " tls=SIMPLE export=bank", "shop/a", "SIMPLE", ""},
		"contract 3.39: even by a wildcard":                         {"1s shop/a * tls=SIMPLE\n1s data/b " + db + " tls=DISABLE", "shop/a", "SIMPLE", ""},
		"contract 3.39: and without a word":                         {"1s shop/a " + db + "\n1s data/b " + db + " tls=DISABLE", "shop/a", "", ""},
		"contract 3.39: then the service's":                         {"1s data/b " + db + " tls=DISABLE\n1s mesh/c " + db + " tls=SIMPLE", "data/b", "DISABLE", ""},
		"contract 3.39: if it exports":                              {"1s data/b " + db + " tls=DISABLE export=data\n1s mesh/c " + db + " tls=SIMPLE", "mesh/c", "SIMPLE", ""},
		"contract 3.39: to us":                                      {"1s data/b " + db + " tls=DISABLE export=data,bank\n1s mesh/c " + db + " tls=SIMPLE", "mesh/c", "SIMPLE", ""},
		"contract 3.39: then the root's":                            {"1s mesh/c *.cluster.local tls=ISTIO_MUTUAL", "mesh/c", "ISTIO_MUTUAL", ""},
		"contract 3.39: nobody else's":                              {"1s bank/c " + db + " tls=DISABLE", "", "", ""},
		"contract 3.40: the name before wildcards":                  {"9s shop/a *.data.svc.cluster.local tls=SIMPLE\n1s shop/b " + db + " tls=DISABLE", "shop/b", "DISABLE", ""},
		"contract 3.40: the longest wildcard":                       {"9s shop/a * tls=SIMPLE\n1s shop/b *.data.svc.cluster.local tls=DISABLE\n9s shop/c *.cluster.local tls=MUTUAL", "shop/b", "DISABLE", ""},
		"contract 3.40: exportTo after the match":                   {"1s data/a " + db + " tls=SIMPLE export=data,bank\n1s data/b *.data.svc.cluster.local tls=DISABLE", "", "", ""},
		"contract 3.40: what is private isn't among them":           {"1s data/a " + db + " tls=SIMPLE export=data\n1s data/b *.data.svc.cluster.local tls=DISABLE", "data/b", "DISABLE", ""},
		"contract 3.41: a selector that selects wins":               {"9s shop/a " + db + " tls=SIMPLE\n1s shop/mine " + db + " selective tls=DISABLE", "shop/mine", "DISABLE", ""},
		"contract 3.41: one that doesn't is nothing":                {"9s shop/other " + db + " selective tls=SIMPLE\n1s shop/b " + db + " tls=DISABLE", "shop/b", "DISABLE", ""},
		"contract 3.41: but its namespace has matched":              {"9s shop/other " + db + " selective tls=SIMPLE\n1s data/b " + db + " tls=DISABLE", "", "", ""},
		"contract 3.41: selectors are of the own namespace":         {"9s data/mine " + db + " selective tls=SIMPLE\n1s data/b " + db + " tls=DISABLE", "data/b", "DISABLE", ""},
		"contract 3.42: the oldest that says anything":              {"9s shop/a " + db + "\n5s shop/b " + db + " tls=DISABLE\n1s shop/c " + db + " tls=SIMPLE", "shop/b", "DISABLE", ""},
		"contract 3.42: equally old: by name":                       {"5s shop/b " + db + " tls=DISABLE\n5s shop/a " + db + " tls=SIMPLE", "shop/a", "SIMPLE", ""},
		"contract 3.44: the port's entry":                           {"1s shop/a " + db + " tls=DISABLE port=80:SIMPLE", "shop/a", "SIMPLE", ""},
		"contract 3.44: replaces all":                               {"1s shop/a " + db + " policy port=80", "shop/a", "", ""},
		"contract 3.45: an entry without tls":                       {"1s shop/a " + db + " tls=DISABLE port=80", "shop/a", "", "DISABLE"},
		"contract 3.45: an entry without tls under ISTIO_MUTUAL":    {"1s shop/a " + db + " tls=ISTIO_MUTUAL port=80", "shop/a", "", "ISTIO_MUTUAL"},
		"contract 3.45: an entry alone says nothing about the rest": {"1s shop/a " + db + " port=80:DISABLE", "shop/a", "DISABLE", ""},
	} {
		w := NewWorld(Mesh{RootNamespace: "mesh"}, nil, nil, rules(t, tt.rules)...)
		got := w.Conduct(&Workload{Namespace: "shop", Rules: []string{"shop/mine", "data/mine"}}, &Service{Name: "db", Namespace: "data", Hostname: db}, 80)
		tls, beneath := "", ""
		if got.TLS != nil {
			tls = got.TLS.Mode.String()
		}
		if got.Beneath != TLSAuto {
			beneath = got.Beneath.String()
		}
		if got.Rule != tt.rule || tls != tt.tls || beneath != tt.beneath {
			t.Errorf("%s: %s %q %q, want %s %q %q", name, got.Rule, tls, beneath, tt.rule, tt.tls, tt.beneath)
		}
		if name == "contract 3.44: replaces all" && got.MaxConnections != 0 {
			t.Error("the port's entry inherits")
		}
	}
}

// TestConductOfTheRoot: clients in the root namespace have no stage of their own
// (contract 3.39).
func TestConductOfTheRoot(t *testing.T) {
	w := NewWorld(Mesh{RootNamespace: "mesh"}, nil, nil, rules(t, "1s mesh/a *.local tls=SIMPLE\n1s data/b db.data.svc.cluster.local tls=DISABLE")...)
	s := &Service{Namespace: "data", Hostname: "db.data.svc.cluster.local"}
	if got := w.Conduct(&Workload{Namespace: "mesh"}, s, 80); got.Rule != "data/b" {
		t.Errorf("got %s", got.Rule)
	}
	if got := w.Conduct(nil, s, 80); got.Rule != "data/b" { // nobody we know
		t.Errorf("got %s", got.Rule)
	}
	if got := w.Conduct(&Workload{Namespace: "mesh"}, nil, 80); got.Rule != "" {
		t.Errorf("got %s", got.Rule)
	}
}
