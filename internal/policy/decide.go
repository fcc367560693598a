package policy

// Protocol is what is known of a port before any byte is seen (contract 2.14, 3.8).
type Protocol int

// The protocols. Auto means that the bytes decide.
const (
	Auto Protocol = iota
	HTTP
	TCP
)

func (p Protocol) String() string { return [...]string{"auto", "http", "tcp"}[p] }

// Seen is what the first bytes of an inbound connection are.
type Seen int

// What can be seen. ServerFirst means that the application spoke before the
// client did, so nothing is known of the client but that it isn't a mesh one
// (design D9).
const (
	PlainHTTP  Seen = iota // plaintext HTTP/1.1 or h2c
	PlainOther             // plaintext of another kind
	ServerFirst
	ForeignTLS // a ClientHello without a mesh ALPN
	MeshHTTP   // a ClientHello with one of istio-http/1.0, istio-http/1.1, istio-h2
	MeshTCP    // a ClientHello with istio or istio-peer-exchange, and no other mesh ALPN before it
	MeshDetect // a ClientHello with our own ALPN: look at the bytes inside
)

func (s Seen) String() string {
	return [...]string{"plaintext HTTP", "plaintext", "server-first plaintext", "foreign TLS", "mesh TLS (HTTP)", "mesh TLS (TCP)", "mesh TLS"}[s]
}

// Plaintext reports whether the peer is not encrypting towards this proxy.
func (s Seen) Plaintext() bool { return s == PlainHTTP || s == PlainOther || s == ServerFirst }

// Action is what the inbound side does with a connection.
type Action int

// The actions.
const (
	Close         Action = iota // without a byte
	ServeHTTP                   // plaintext, as HTTP
	ServeTCP                    // plaintext or unterminated TLS, as bytes
	TerminateHTTP               // mutual TLS, HTTP inside
	TerminateTCP                // mutual TLS, bytes inside
	TerminateAuto               // mutual TLS, look at the bytes inside
)

func (a Action) String() string {
	return [...]string{"close", "serve-http", "serve-tcp", "terminate-http", "terminate-tcp", "terminate-auto"}[a]
}

// Terminates reports whether the action ends mutual TLS at this proxy.
func (a Action) Terminates() bool { return a >= TerminateHTTP }

// Reason is why a connection was refused or cut: the word that the log, the
// metric and the CLI show (design D14). "" is no refusal.
type Reason string

// The closed set of reasons.
const (
	None               Reason = ""
	PlaintextRefused   Reason = "plaintext_refused"    // STRICT, and the client doesn't encrypt
	ForeignTLSRefused  Reason = "foreign_tls_refused"  // TLS that isn't the mesh's, where it can't be passed on
	HandshakeFailed    Reason = "handshake_failed"     // TLS failed
	HandshakeTimeout   Reason = "handshake_timeout"    // TLS took too long
	PeerUnverified     Reason = "peer_unverified"      // no chain to our roots, or expired
	PeerRevoked        Reason = "peer_revoked"         // its certificate, or that of its CA, is revoked
	PeerIdentity       Reason = "peer_identity"        // proved another identity than expected
	ForeignTrustDomain Reason = "foreign_trust_domain" // identity of a trust domain that isn't ours
	NoIdentity         Reason = "no_identity"          // this proxy has no valid certificate
	PolicyDenied       Reason = "policy_denied"        // an AuthorizationPolicy denies it
	PolicyChanged      Reason = "policy_changed"       // open connection that a new policy forbids
	TokenRefused       Reason = "token_refused"        // a request's token isn't good
	NoDestination      Reason = "no_destination"       // original destination unknown or our own port
	NoEndpoint         Reason = "no_endpoint"          // the service has no ready endpoint
	RegistryOnly       Reason = "registry_only"        // unknown destination under RegistryOnly
	ConnectFailed      Reason = "connect_failed"       // destination refused or didn't answer
	ConnectTimeout     Reason = "connect_timeout"
	IdleTimeout        Reason = "idle_timeout"
	MaxDuration        Reason = "max_duration" // as long as a DestinationRule lets a connection last
	BadRequest         Reason = "bad_request"  // HTTP that can't be parsed safely
	Draining           Reason = "draining"     // this proxy is shutting down
	Overloaded         Reason = "overloaded"   // more connections than allowed
	TLSSettings        Reason = "tls_settings" // what a DestinationRule wants of TLS can't be carried out
)

// Reasons lists the closed set, for metrics and documents.
func Reasons() []Reason {
	return []Reason{
		PlaintextRefused, ForeignTLSRefused, HandshakeFailed, HandshakeTimeout, PeerUnverified, PeerRevoked, PeerIdentity,
		ForeignTrustDomain, NoIdentity, PolicyDenied, PolicyChanged, TokenRefused, NoDestination, NoEndpoint, RegistryOnly, ConnectFailed,
		ConnectTimeout, IdleTimeout, MaxDuration, BadRequest, Draining, Overloaded, TLSSettings,
	}
}

// Decide is the decision table of contract 2.13: what the inbound side does
// with a connection to a port of this mode and protocol whose first bytes are
// as seen. It is asked when a connection comes in and again for every open one
// when policy changes (design D13). A Close carries its reason.
func Decide(mode Mode, proto Protocol, seen Seen) (Action, Reason) {
	switch mode {
	case Disable:
		return decideDisable(proto, seen), None
	case Strict:
		return decideStrict(proto, seen)
	default:
		return decidePermissive(proto, seen)
	}
}

// decideDisable never terminates TLS: to an HTTP port a ClientHello is a bad request.
func decideDisable(proto Protocol, seen Seen) Action {
	if proto == HTTP || (proto == Auto && seen == PlainHTTP) {
		return ServeHTTP
	}
	return ServeTCP
}

// decideStrict ends every TLS with a client certificate required; no mesh ALPN
// is needed (contract 2.15).
func decideStrict(proto Protocol, seen Seen) (Action, Reason) {
	switch {
	case seen.Plaintext():
		return Close, PlaintextRefused
	case proto == HTTP, proto == Auto && seen == MeshHTTP:
		return TerminateHTTP, None
	case proto == Auto && seen == MeshDetect:
		return TerminateAuto, None
	default:
		return TerminateTCP, None
	}
}

func decidePermissive(proto Protocol, seen Seen) (Action, Reason) {
	switch seen {
	case PlainHTTP:
		if proto == TCP {
			return ServeTCP, None
		}
		return ServeHTTP, None
	case PlainOther:
		if proto == HTTP {
			return ServeHTTP, None // which answers 400
		}
		return ServeTCP, None
	case ServerFirst:
		return ServeTCP, None
	case ForeignTLS:
		if proto == HTTP {
			return Close, ForeignTLSRefused
		}
		return ServeTCP, None
	default: // a mesh client: as under STRICT
		return decideStrict(proto, seen)
	}
}
