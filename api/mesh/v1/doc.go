// Package meshv1 is what the control plane tells proxies, as protobuf.
package meshv1
