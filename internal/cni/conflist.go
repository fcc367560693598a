package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
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
var errNotAList = errors.New(`it has no list of plugins: write it as a .conflist with "plugins": [ … ], for a chain is needed`)

// insert returns the configuration with the plugin as its last, and whether that
// changed anything. What else is in it stays as it is.
func insert(conf []byte, excluded []string) ([]byte, bool, error) {
	ours, err := json.Marshal(entry{Name, map[string]bool{annotationsCapability: true}, excluded})
	if err != nil {
		return nil, false, fmt.Errorf("write the plugin's entry: %w", err)
	}
	return edit(conf, func(plugins []json.RawMessage) []json.RawMessage {
		if plugins = without(plugins); len(plugins) == 0 {
			return nil
		}
		return append(plugins, ours)
	})
}

// remove returns the configuration without the plugin, and whether that changed
// anything.
func remove(conf []byte) ([]byte, bool, error) {
	return edit(conf, func(plugins []json.RawMessage) []json.RawMessage {
		return append([]json.RawMessage{}, without(plugins)...)
	})
}

// has reports whether the plugin is in the configuration.
func has(conf []byte) (bool, error) {
	_, changed, err := remove(conf)
	return changed, err
}

// edit changes the list of plugins; nil refuses to.
func edit(conf []byte, change func([]json.RawMessage) []json.RawMessage) ([]byte, bool, error) {
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
