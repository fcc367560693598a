package controlplane

import (
	"context"
	"fmt"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"podseal.io/podseal/internal/discovery"
)

// meshConfig follows the ConfigMap in which Istio's users configure the mesh. It has
// a cache of its own, since the other one holds ConfigMaps of another name.
type meshConfig struct {
	cache cache.Cache
	text  atomic.Pointer[string]
}

func newMeshConfig(cfg *rest.Config, namespace string) (*meshConfig, error) {
	c, err := cache.New(cfg, cache.Options{
		Scheme: newScheme(), DefaultTransform: cache.TransformStripManagedFields(), DefaultNamespaces: map[string]cache.Config{namespace: {}},
		ByObject: map[client.Object]cache.ByObject{&corev1.ConfigMap{}: {Field: fields.OneTermEqualSelector("metadata.name", discovery.MeshConfigMap)}},
	})
	if err != nil {
		return nil, fmt.Errorf("control plane: cache of the mesh's configuration: %w", err)
	}
	return &meshConfig{cache: c}, nil
}

// Text is the configuration as it is now, "" if there is none.
func (m *meshConfig) Text() string {
	if s := m.text.Load(); s != nil {
		return *s
	}
	return ""
}

// watch follows the ConfigMap. It returns what says that it was seen once.
func (m *meshConfig) watch(ctx context.Context, changed func()) (toolscache.InformerSynced, error) {
	informer, err := m.cache.GetInformer(ctx, &corev1.ConfigMap{}, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("control plane: watch the mesh's configuration: %w", err)
	}
	reg, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { m.see(obj); changed() },
		UpdateFunc: func(_, obj any) { m.see(obj); changed() },
		DeleteFunc: func(any) { m.see(nil); changed() },
	})
	if err != nil {
		return nil, fmt.Errorf("control plane: watch the mesh's configuration: %w", err)
	}
	return reg.HasSynced, nil
}

func (m *meshConfig) see(obj any) {
	text := ""
	if cm, ok := obj.(*corev1.ConfigMap); ok && cm.Name == discovery.MeshConfigMap {
		text = cm.Data[discovery.MeshConfigKey]
	}
	m.text.Store(&text)
}
