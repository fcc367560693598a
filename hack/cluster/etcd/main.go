// Command etcd is the cluster's store. Debian's is too old to report the progress
// of watches, without which this API server answers some lists only after a
// timeout; this is the version that Kubernetes itself is tested with.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
