// Package peerv1 is how replicas of the control plane ask one another what each
// knows. Package controlplane gives it meaning.
package peerv1
