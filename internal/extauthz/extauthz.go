// Package extauthz asks authorizers over Envoy's protocol of external
// authorization, gRPC or HTTP, and reads what they answer.
//
// What an answer changes is data: the caller makes the changes. An answer that
// can't be had, or can't be understood, is an error, and what that means is for
// the caller to say, too. Connections are made by the caller's dialler and kept
// for a while.
package extauthz

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"time"

	"podseal.io/podseal/internal/policy"
)

const (
	maxAnswer   = 256 << 10        // bytes of an answer
	keepIdle    = 30 * time.Second // a connection without questions
	maxKept     = 8                // connections without questions
	partialBody = "x-envoy-auth-partial-body"
)

// Check is what an authorizer is told. Of a connection that isn't HTTP there is no
// Request.
type Check struct {
	Time                                  time.Time
	Source, Destination                   netip.AddrPort
	SourcePrincipal, DestinationPrincipal string // URIs; "" is none
	SNI                                   string
	Request                               *Request
}

// Request is what HTTP adds.
type Request struct {
	Method, Path, Host string
	Protocol           string // HTTP/1.1 or HTTP/2
	Headers            []Header
	Body               []byte // as far as the authorizer gets it
	Partial            bool   // there is more
}

// Header is a field, its name in lower case.
type Header struct{ Name, Value string }

// Change changes a head: all fields of the name go, unless Keep is set, then one
// with Value comes, if Put is.
type Change struct {
	Name, Value string
	Put, Keep   bool
}

// Answer is what an authorizer says.
type Answer struct {
	Allowed bool
	// What the client gets if it isn't allowed.
	Status  int
	Headers []Header
	Body    string
	// What changes if it is: of the request before the application gets it, and of the
	// response.
	Request, Response []Change
}

// Client asks one authorizer. It may be used by any number of goroutines.
type Client interface {
	Ask(ctx context.Context, c *Check) (*Answer, error)
	Close()
}

// New makes a client, which connects when it asks for the first time.
func New(a policy.Authorizer, dial func(ctx context.Context) (net.Conn, error)) (Client, error) {
	if a.HTTP {
		return newHTTPClient(a, dial), nil
	}
	return newGRPCClient(a, dial)
}

// Tells reports whether an authorizer's settings allow it to give the application a
// field, its name in lower case. One over gRPC may give any.
func Tells(a *policy.Authorizer, name string) bool { return a.HTTP && matches(a.UpstreamHeaders, name) }

// matches reports whether a name in lower case is one of the patterns, exact or with
// a star at one end.
func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		switch {
		case p == name:
			return true
		case strings.HasPrefix(p, "*") && strings.HasSuffix(name, p[1:]):
			return true
		case strings.HasSuffix(p, "*") && strings.HasPrefix(name, p[:len(p)-1]):
			return true
		}
	}
	return false
}

// mayChange reports whether an authorizer may set or take away a field: not one
// that HTTP itself or the mesh needs.
func mayChange(name string) bool { return policy.CheckFieldName(name) == nil }

// mayAnswer reports whether an authorizer may set a field of an answer to a client.
func mayAnswer(name string) bool {
	switch name {
	case "date", "server", "x-envoy-upstream-service-time", "x-envoy-decorator-operation":
		return false
	}
	return mayChange(name)
}

// clean reports whether a value can be sent as it is.
func clean(value string) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
