package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"podseal.io/podseal/internal/xds/xdspb"
)

// maxInitial bounds the initial versions of one request, in bytes, so that the
// server takes it. It leaves room for the rest of the request.
const maxInitial = maxRequest - 64<<10

// handler takes a change into force and returns what it rejects, by name. An
// earlier version of what it rejects stays in force.
type handler func(typeURL string, upserts []Resource, removed []string) (rejected map[string]error)

// replica is what the client holds: per type the version by name. It does no
// I/O.
type replica struct {
	types []string
	held  map[string]map[string]string
	// whole has the types whose initial versions didn't fit into a request:
	// the first response of the stream then is all there is.
	whole map[string]bool
	limit int // bytes of initial versions; maxInitial outside tests
}

// newReplica starts from what is held already, which may be nil.
func newReplica(types []string, held map[string]map[string]string) *replica {
	r := &replica{types: slices.Clone(types), held: map[string]map[string]string{}, limit: maxInitial}
	for _, t := range types {
		r.held[t] = map[string]string{}
		for name, version := range held[t] {
			if version != "" {
				r.held[t][name] = version
			}
		}
	}
	return r
}

// open returns the requests that begin a stream.
func (r *replica) open(nodeID string, metadata map[string]string) []*xdspb.DeltaDiscoveryRequest {
	r.whole = map[string]bool{}
	node := &xdspb.Node{Id: nodeID, UserAgentName: "podseal"}
	if len(metadata) > 0 {
		node.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for key, value := range metadata {
			node.Metadata.Fields[key] = structpb.NewStringValue(value)
		}
	}
	var out []*xdspb.DeltaDiscoveryRequest
	for i, typeURL := range r.types {
		req := &xdspb.DeltaDiscoveryRequest{
			TypeUrl:                 typeURL,
			ResourceNamesSubscribe:  []string{wildcard},
			InitialResourceVersions: make(map[string]string, len(r.held[typeURL])),
		}
		if i == 0 {
			req.Node = node
		}
		size := 0
		for name, version := range r.held[typeURL] {
			req.InitialResourceVersions[name] = version
			size += len(name) + len(version) + 12
		}
		if size > r.limit {
			req.InitialResourceVersions = nil
			r.whole[typeURL] = true
		}
		out = append(out, req)
	}
	return out
}

// apply hands a response to handle, notes what is held now and returns the ACK
// or NACK to send.
func (r *replica) apply(res *xdspb.DeltaDiscoveryResponse, handle handler) *xdspb.DeltaDiscoveryRequest {
	typeURL := res.GetTypeUrl()
	answer := &xdspb.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: res.GetNonce()}
	held, ok := r.held[typeURL]
	if !ok {
		answer.ErrorDetail = &xdspb.Status{Code: int32(codes.InvalidArgument), Message: "not subscribed to this type"}
		return answer
	}
	upserts, rejected := unwrap(res)
	removed := r.gone(res, held)
	if len(upserts) > 0 || len(removed) > 0 {
		maps.Copy(rejected, handle(typeURL, upserts, removed))
	}
	for _, name := range removed {
		delete(held, name)
	}
	for _, u := range upserts {
		if rejected[u.Name] == nil {
			held[u.Name] = u.Version
		}
	}
	if len(rejected) > 0 {
		answer.ErrorDetail = &xdspb.Status{Code: int32(codes.InvalidArgument), Message: truncate(nackText(rejected, len(res.GetResources())), maxNackText)}
	}
	return answer
}

// gone returns the names that are held and no longer exist, sorted. A name that
// is sent in the same response exists.
func (r *replica) gone(res *xdspb.DeltaDiscoveryResponse, held map[string]string) []string {
	sent := make(map[string]bool, len(res.GetResources()))
	for _, x := range res.GetResources() {
		sent[x.GetName()] = true
	}
	var out []string
	if r.whole[res.GetTypeUrl()] {
		delete(r.whole, res.GetTypeUrl())
		for name := range held {
			if !sent[name] {
				out = append(out, name)
			}
		}
	} else {
		for _, name := range res.GetRemovedResources() {
			if _, ok := held[name]; ok && !sent[name] {
				out = append(out, name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// unwrap returns the resources of a response that can be handed on, and why the
// others cannot. Of resources of one name the last counts.
func unwrap(res *xdspb.DeltaDiscoveryResponse) ([]Resource, map[string]error) {
	rejected := map[string]error{}
	at := make(map[string]int, len(res.GetResources()))
	var out []Resource
	for _, x := range res.GetResources() {
		u := Resource{Name: x.GetName(), Version: x.GetVersion(), Body: x.GetResource().GetValue()}
		switch {
		case u.Name == "" || u.Name == wildcard:
			rejected[u.Name] = errors.New("not a name")
		case u.Version == "":
			rejected[u.Name] = errors.New("no version")
		case x.GetResource().GetTypeUrl() != res.GetTypeUrl():
			rejected[u.Name] = fmt.Errorf("of type %q", x.GetResource().GetTypeUrl())
		default:
			if i, dup := at[u.Name]; dup {
				out[i] = u
				continue
			}
			at[u.Name] = len(out)
			out = append(out, u)
		}
	}
	return out, rejected
}
