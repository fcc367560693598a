// Package install puts Podseal into a cluster, keeps it there and says whether
// it is well.
//
// [Render] turns values into manifests: a pure function of the embedded chart.
// [Cluster] applies manifests by server-side apply, deletes them in reverse
// order and waits for what they bring up, saying what it waits for. [Manager]
// does with the control plane what the ModuleConfig named istio says. [Check]
// looks at all of it and says what to do about each fault.
//
// Invariant: the webhooks are the first objects of the control plane to be
// applied and the first to be deleted. While they are there, a pod of the mesh
// is created with a proxy or not at all; when they go, nothing is left that
// could block the creation of pods.
package install
