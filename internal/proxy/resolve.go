package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	resolveTimeout = 5 * time.Second
	resolveFresh   = 30 * time.Second // a name is asked for again after so long, when it is needed
	resolveRetry   = 2 * time.Second  // after a failure it isn't earlier
	maxNames       = 1024             // that are kept
	maxAddresses   = 64               // of a name
	maxLookups     = 32               // at a time
)

// resolver resolves the hosts of ServiceEntries, when they are needed.
type resolver struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	now    func() time.Time
	slots  chan struct{} // one element for each lookup that is under way

	mu   sync.Mutex
	kept map[string]*resolvedName
}

// resolvedName is what is known of a name.
type resolvedName struct {
	used time.Time // guarded by resolver.mu

	mu        sync.Mutex // held while it is resolved
	addresses []netip.Addr
	next      time.Time // when to ask again
}

func newResolver(lookup func(context.Context, string) ([]netip.Addr, error), now func() time.Time) *resolver {
	return &resolver{lookup: lookup, now: now, slots: make(chan struct{}, maxLookups), kept: map[string]*resolvedName{}}
}

// addresses resolves names, all at once. A name that can't be resolved keeps the
// addresses that it had, and has none if it never had any.
func (r *resolver) addresses(ctx context.Context, names []string) map[string][]netip.Addr {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	out := make(map[string][]netip.Addr, len(names))
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, name := range names {
		all.Go(func() {
			addresses := r.one(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			out[name] = addresses
		})
	}
	all.Wait()
	return out
}

func (r *resolver) one(ctx context.Context, name string) []netip.Addr {
	n := r.entry(name)
	n.mu.Lock()
	defer n.mu.Unlock()
	now := r.now()
	if now.Before(n.next) {
		return n.addresses
	}
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return n.addresses
	}
	found, err := r.lookup(ctx, name)
	n.next = now.Add(resolveRetry)
	if errors.Is(err, context.Canceled) { // says nothing about the name
		n.next = now
	}
	if err == nil {
		n.next = now.Add(resolveFresh)
		n.addresses = found[:min(len(found), maxAddresses)]
	}
	return n.addresses
}

func (n *resolvedName) lastUsed() *time.Time { return &n.used }

// entry finds or makes what is known of a name.
func (r *resolver) entry(name string) *resolvedName {
	r.mu.Lock()
	defer r.mu.Unlock()
	return keptEntry(r.kept, name, maxNames, r.now(), func() *resolvedName { return &resolvedName{} })
}

// lookupHost asks the pod's resolver: for the whole name first, and for one of the
// cluster only if there is no such name, as every other domain of the pod's search
// list would be asked before the right one.
func lookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", strings.TrimSuffix(host, ".")+".")
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		found, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", host, err)
	}
	for i := range found {
		found[i] = found[i].Unmap().WithZone("")
	}
	return slices.Compact(found), nil
}
