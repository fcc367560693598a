// Package v1alpha1 is the part of Deckhouse's API that Podseal answers to: the
// ModuleConfig (deckhouse.io/v1alpha1, cluster-scoped) whose object named
// "istio" turns the mesh on and off and carries its settings.
//
// The types mirror what Deckhouse stores, so that one object serves a cluster
// with Deckhouse and one without. Podseal never owns the CRD where Deckhouse
// has installed it.
package v1alpha1
