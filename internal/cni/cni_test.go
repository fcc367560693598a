package cni

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"podseal.io/podseal/internal/capture"
)

const nativeStatus = `{"initContainers":["istio-proxy"],"containers":null,"volumes":["istio-envoy"],"revision":"default"}`

func injected(more ...string) map[string]string {
	a := map[string]string{statusAnnotation: nativeStatus}
	for i := 0; i < len(more); i += 2 {
		a[more[i]] = more[i+1]
	}
	return a
}

// TestWanted: which pods the plugin captures (contract 5.50).
func TestWanted(t *testing.T) {
	for name, tt := range map[string]struct {
		annotations map[string]string
		captured    bool
		fault       string
	}{
		"native":                        {injected(), true, ""},
		"classic":                       {injected(statusAnnotation, `{"initContainers":["istio-validation"],"containers":["istio-proxy"]}`), true, ""},
		"no annotations":                {nil, false, ""},
		"not injected":                  {map[string]string{trafficPrefix + "includeOutboundIPRanges": "*"}, false, ""},
		"captured by an init container": {injected(statusAnnotation, `{"initContainers":["istio-init","istio-proxy"]}`), false, ""},
		"no proxy":                      {injected(statusAnnotation, `{"containers":["other"]}`), false, ""},
		"opted out":                     {injected(injectAnnotation, "false"), false, ""},
		"opted in":                      {injected(injectAnnotation, "true"), true, ""},
		"no capture":                    {injected(modeAnnotation, "NONE"), false, ""},
		"not JSON":                      {injected(statusAnnotation, "{"), false, statusAnnotation},
		"another mode":                  {injected(modeAnnotation, "TPROXY"), false, "TPROXY"},
		"a wrong port":                  {injected(trafficPrefix+"excludeInboundPorts", "http"), false, "http"},
		"a wrong range":                 {injected(trafficPrefix+"includeOutboundIPRanges", "10.0.0.1"), false, "10.0.0.1"},
		"a wrong loopback":              {injected(loopbackAnnotation, "10.0.0.0/8"), false, "10.0.0.0/8"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := Wanted(tt.annotations)
			if (config != nil) != tt.captured || (err != nil) != (tt.fault != "") {
				t.Fatalf("captured %t, %v", config != nil, err)
			}
			if err != nil && (!errors.Is(err, errUnreadable) || !strings.Contains(err.Error(), tt.fault)) {
				t.Errorf("the error doesn't say what is wrong: %v", err)
			}
		})
	}
}

// TestSettings: annotations say what is captured; the proxy's own ports never are
// (contract 5.51).
func TestSettings(t *testing.T) {
	config, err := Wanted(injected(
		trafficPrefix+"includeOutboundIPRanges", "10.0.0.0/8", trafficPrefix+"excludeOutboundIPRanges", "10.1.0.0/16",
		trafficPrefix+"excludeInboundPorts", "22", trafficPrefix+"includeOutboundPorts", "53", trafficPrefix+"excludeOutboundPorts", "25",
		trafficPrefix+"excludeInterfaces", "net1", rerouteAnnotation, "tap0", loopbackAnnotation, "127.0.0.0/8"))
	if err != nil {
		t.Fatal(err)
	}
	text := capture.Build(*config).Text()
	for _, want := range []string{"10.0.0.0/8", "10.1.0.0/16", "dport 22 return", "dport 15090 return", "dport 15021 return", "dport 15020 return", "dport 53 jump", "dport 25 return", `"net1"`, `"tap0"`, "127.0.0.0/8"} {
		if !strings.Contains(text, want) {
			t.Errorf("nothing of %s in:\n%s", want, text)
		}
	}
	if config, err = Wanted(injected()); err != nil || capture.Build(*config).Text() != capture.Build(capture.Default()).Text() {
		t.Errorf("no annotation is not the default: %v", err)
	}
}

const conflist = `{
  "name": "net", "cniVersion": "1.0.0", "disableCheck": true, "x-own": {"a": [1, 2.50, 12345678901234567890]},
  "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}, "big": 12345678901234567890}, {"type": "portmap", "capabilities": {"portMappings": true}}]
}`

func plugins(t *testing.T, conf []byte) []string {
	t.Helper()
	var c struct{ Plugins []struct{ Type string } }
	if err := json.Unmarshal(conf, &c); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range c.Plugins {
		names = append(names, p.Type)
	}
	return names
}

// TestConflist: the plugin is the last of the chain, once, and what else is in the
// file stays.
func TestConflist(t *testing.T) {
	with, changed, err := insert([]byte(conflist), []string{"kube-system"})
	if err != nil || !changed || !slices.Equal(plugins(t, with), []string{"bridge", "portmap", Name}) {
		t.Fatalf("%s, %t, %v", with, changed, err)
	}
	for _, want := range []string{annotationsCapability, "kube-system", `"disableCheck": true`, "12345678901234567890", "2.50", "portMappings"} {
		if !strings.Contains(string(with), want) {
			t.Errorf("nothing of %s in %s", want, with)
		}
	}
	if again, changed, err := insert(with, []string{"kube-system"}); err != nil || changed || string(again) != string(with) {
		t.Errorf("inserted twice: %t, %v", changed, err)
	}
	if other, changed, err := insert(with, nil); err != nil || !changed || strings.Contains(string(other), "kube-system") || len(plugins(t, other)) != 3 {
		t.Errorf("a change of settings: %s, %t, %v", other, changed, err)
	}
	// somebody has put another plugin behind it
	behind := strings.Replace(string(with), `"plugins": [`, `"plugins": [{"type": "`+Name+`"},`, 1)
	if moved, changed, err := insert([]byte(behind), []string{"kube-system"}); err != nil || !changed || !slices.Equal(plugins(t, moved), []string{"bridge", "portmap", Name}) {
		t.Errorf("not the last, or twice: %s, %t, %v", moved, changed, err)
	}
	without, changed, err := remove(with)
	if err != nil || !changed || !slices.Equal(plugins(t, without), []string{"bridge", "portmap"}) {
		t.Errorf("%s, %t, %v", without, changed, err)
	}
	var was, is map[string]any
	if json.Unmarshal([]byte(conflist), &was) != nil || json.Unmarshal(without, &is) != nil || !maps.EqualFunc(was, is, func(a, b any) bool { x, _ := json.Marshal(a); y, _ := json.Marshal(b); return string(x) == string(y) }) {
		t.Errorf("something was lost: %s", without)
	}
	for name, text := range map[string]string{
		"not JSON": "{", "a list": "[]", "one plugin": `{"name": "a", "type": "bridge"}`, "plugins are none": `{"plugins": {}}`, "too large": `{"plugins": [], "x": "` + strings.Repeat("a", maxConfig) + `"}`,
	} {
		if out, changed, err := insert([]byte(text), nil); err == nil {
			t.Errorf("%s: %s, %t", name, out, changed)
		}
	}
}

func FuzzConflist(f *testing.F) {
	f.Add([]byte(conflist))
	f.Add([]byte(`{"plugins":[]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","plugins":[{"type":"` + Name + `"},1,null,"x",{"type":1}]}`))
	f.Add([]byte(single))
	f.Fuzz(func(t *testing.T, conf []byte) {
		if !isList(conf) {
			list, err := listOf(conf)
			if err != nil {
				return
			}
			if conf = list; !isList(conf) {
				t.Fatalf("no list was made: %q", conf)
			}
		}
		with, _, err := insert(conf, []string{"a"})
		if err != nil {
			return
		}
		if there, err := has(with); err != nil || !there {
			t.Fatalf("it is not in %q: %v", with, err)
		}
		if _, changed, err := insert(with, []string{"a"}); err != nil || changed {
			t.Fatalf("not the same when done again: %q, %v", with, err)
		}
		without, _, err := remove(with)
		if err != nil {
			return // it was the only one
		}
		if there, err := has(without); err != nil || there {
			t.Fatalf("it is still in %q: %v", without, err)
		}
	})
}

func FuzzAnnotations(f *testing.F) {
	f.Add(nativeStatus, "REDIRECT", "*", "80")
	f.Add(`{"containers":["istio-proxy"]}`, "", "10.0.0.0/8,::/0", "")
	f.Add("{}", "NONE", "", "a")
	f.Fuzz(func(t *testing.T, status, mode, ranges, ports string) {
		config, err := Wanted(map[string]string{
			statusAnnotation: status, modeAnnotation: mode, trafficPrefix + "includeOutboundIPRanges": ranges, trafficPrefix + "excludeInboundPorts": ports,
		})
		if config != nil && (err != nil || config.Validate() != nil) {
			t.Fatalf("%+v, %v", config, err)
		}
	})
}
