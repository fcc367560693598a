// Package chart carries Podseal's Helm chart, the one source of its manifests:
// `podseal install` and the manager render it from here, and `helm install`
// reads the same files.
//
// The chart has two parts. Part "manager" is what `podseal install` applies:
// the namespace of the manager, the CRDs, the manager and all roles. Part
// "controlplane" is what the manager applies when the ModuleConfig named istio
// is enabled, and takes away when it is disabled.
package chart

import "embed"

// Files are the files of the chart, by their paths in it.
//
//go:embed Chart.yaml values.yaml values.schema.json files all:templates
var Files embed.FS
