package settings

import "time"

// DefaultClusterDomain is what Kubernetes clusters are called unless told
// otherwise.
const DefaultClusterDomain = "cluster.local"

// Default returns the settings of an enabled module without any setting.
// clusterDomain "" means DefaultClusterDomain.
func Default(clusterDomain string) Settings {
	if clusterDomain == "" {
		clusterDomain = DefaultClusterDomain
	}
	return Settings{
		ClusterDomain: clusterDomain,
		TrustDomain:   clusterDomain,
		IdleTimeout:   time.Hour,
		Sidecar: Sidecar{
			RequestCPU:    "100m",
			RequestMemory: "128Mi",
			LimitMemory:   "1Gi",
		},
		ControlPlane: ControlPlane{
			Replicas:      1,
			RequestCPU:    "50m",
			RequestMemory: "128Mi",
		},
	}
}
