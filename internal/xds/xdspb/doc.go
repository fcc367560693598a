// Package xdspb is the generated transport of package xds.
package xdspb
