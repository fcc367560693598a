// Package xds keeps named, versioned blobs equal at both ends of a stream: the
// delta variant of the xDS transport, server and client. It knows nothing of
// what it carries.
//
// A blob travels as google.protobuf.Any: the type URL in type_url, the bytes in
// value. Its version is a hash of the bytes, so a restarted or another server
// gives equal content an equal version and a reconnecting client is sent only
// what differs.
//
// One stream carries any number of types, each with a state of its own:
//
//	client                                   server
//	type, subscribe, initial versions  ─────>
//	                                   <─────  resources, removed, nonce 1
//	type, nonce 1 (ACK)                ─────>
//	                                   <─────  what changed since, nonce 2
//	type, nonce 2, error_detail (NACK) ─────>
//
// Invariants of the server:
//
//   - At most one response per type is in flight; what changes meanwhile goes
//     into the next one.
//   - The first request for a type is always answered, with nothing in it if the
//     client is up to date, so that a client knows when it is.
//   - A type that was never given to [Store.Replace] is not answered: a control
//     plane that is starting must not tell its clients that nothing exists.
//   - A version that was rejected is not sent again on that stream.
//
// A [Journal] keeps what a client holds in a file, for a restart without a server.
//
// The text of a NACK names the resources at fault, one to a line after the
// first: the name as a Go string literal, a colon, a space and the reason. A
// NACK without such lines rejects the whole response.
package xds
