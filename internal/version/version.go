// Package version says which build this is.
package version

// Version is set by the linker; "dev" is a build without it.
var Version = "dev"
