package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/containernetworking/cni/pkg/version"
)

// maxConfig bounds a network configuration, in bytes.
const maxConfig = 1 << 20

// entry is the plugin's place in a network configuration.
type entry struct {
	Type              string          `json:"type"`
	Capabilities      map[string]bool `json:"capabilities"`
	ExcludeNamespaces []string        `json:"excludeNamespaces,omitempty"`
}

// errNotAList is the older form of a network configuration, with one plugin.
var errNotAList = errors.New("it has no list of plugins")

// oldestChain is the first version of the specification in which a plugin is told the
// result of those before it.
const oldestChain = "0.3.0"

// listOf makes a list of the older form, as runtimes do that use both.
func listOf(conf []byte) ([]byte, error) {
	if len(conf) > maxConfig {
		return nil, fmt.Errorf("it is larger than %d bytes", maxConfig)
	}
	var one struct {
		Name    string `json:"name"`
		Version string `json:"cniVersion"`
		Type    string `json:"type"`
	}
	if err := json.Unmarshal(conf, &one); err != nil {
		return nil, fmt.Errorf("not an object in JSON: %w", err)
	}
	if one.Type == "" || one.Name == "" {
		return nil, errors.New("it has neither a list of plugins nor one plugin with name and type")
	}
	out, err := json.MarshalIndent(map[string]any{"name": one.Name, "cniVersion": one.Version, "plugins": []json.RawMessage{conf}}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write the network configuration: %w", err)
	}
	return append(out, '\n'), nil
}

// chains says what keeps a list's version from having a chain; a version that can't be
// read is the runtime's business.
func chains(all map[string]json.RawMessage) error {
	var v string
	if text, ok := all["cniVersion"]; ok {
		if err := json.Unmarshal(text, &v); err != nil {
			return fmt.Errorf("its cniVersion is no text: %w", err)
		}
	}
	if ok, err := version.GreaterThanOrEqualTo(v, oldestChain); v == "" || (err == nil && !ok) {
		return fmt.Errorf("its cniVersion is %q: plugins after the first need %s or later", v, oldestChain)
	}
	return nil
}

// insert returns the configuration with the plugin as its last, and whether that
// changed anything. What else is in it stays as it is.
func insert(conf []byte, excluded []string) ([]byte, bool, error) {
	ours, err := json.Marshal(entry{Name, map[string]bool{annotationsCapability: true}, excluded})
	if err != nil {
		return nil, false, fmt.Errorf("write the plugin's entry: %w", err)
	}
	return edit(conf, chains, func(plugins []json.RawMessage) []json.RawMessage {
		if plugins = without(plugins); len(plugins) == 0 {
			return nil
		}
		return append(plugins, ours)
	})
}

// remove returns the configuration without the plugin, and whether that changed
// anything.
func remove(conf []byte) ([]byte, bool, error) {
	return edit(conf, nil, func(plugins []json.RawMessage) []json.RawMessage {
		return append([]json.RawMessage{}, without(plugins)...)
	})
}

// has reports whether the plugin is in the configuration.
func has(conf []byte) (bool, error) {
	_, changed, err := remove(conf)
	return changed, err
}

// edit changes the list of plugins, if allowed allows it; a change to nil refuses to.
func edit(conf []byte, allowed func(map[string]json.RawMessage) error, change func([]json.RawMessage) []json.RawMessage) ([]byte, bool, error) {
	if len(conf) > maxConfig {
		return nil, false, fmt.Errorf("it is larger than %d bytes", maxConfig)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(conf, &all); err != nil {
		return nil, false, fmt.Errorf("not an object in JSON: %w", err)
	}
	var plugins []json.RawMessage
	if text, ok := all["plugins"]; !ok {
		return nil, false, errNotAList
	} else if err := json.Unmarshal(text, &plugins); err != nil {
		return nil, false, fmt.Errorf("its plugins are not a list: %w", err)
	}
	if allowed != nil {
		if err := allowed(all); err != nil {
			return nil, false, err
		}
	}
	changed := change(slices.Clone(plugins))
	if changed == nil {
		return nil, false, errors.New("it has no plugins")
	}
	if slices.EqualFunc(plugins, changed, sameJSON) {
		return conf, false, nil
	}
	text, err := json.Marshal(changed)
	if err != nil {
		return nil, false, fmt.Errorf("write the list of plugins: %w", err)
	}
	all["plugins"] = text
	out, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, false, fmt.Errorf("write the network configuration: %w", err)
	}
	return append(out, '\n'), true, nil
}

// without returns the plugins that aren't ours.
func without(plugins []json.RawMessage) []json.RawMessage {
	return slices.DeleteFunc(plugins, func(p json.RawMessage) bool {
		var e struct {
			Type string `json:"type"`
		}
		return json.Unmarshal(p, &e) == nil && e.Type == Name // what has no type is somebody else's
	})
}

// sameJSON reports whether two texts mean the same.
func sameJSON(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}
