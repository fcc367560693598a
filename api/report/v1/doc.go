// Package reportv1 is the protobuf form of what proxies tell the control plane
// about traffic. Package edges gives it meaning.
package reportv1
