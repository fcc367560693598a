// Package ca issues workload certificates: the issuer, the service that hands
// certificates out and the client that asks for them and renews them.
//
// The service is istio.v1.auth.IstioCertificateService/CreateCertificate
// (contract 4.5), so existing authorities and clients of that API fit at either
// end:
//
//	request   csr                PEM CERTIFICATE REQUEST; only its key counts (4.8)
//	          validity_duration  seconds; 24 h if not positive, at most 90 d (4.21)
//	metadata  authorization      Bearer <service account token> (4.16)
//	answer    cert_chain         leaf, each intermediate, whole root bundle (4.11)
//
// Invariant: the identity in a certificate comes from the reviewed token and
// the trust domain of the control plane, and from nothing that the caller says.
//
// A leaf has its identity as the one URI SAN, critical, with an empty subject; it
// may sign, be a TLS server and a TLS client, and is valid from two minutes ago
// for its lifetime, never longer than its issuer (4.22, 4.23).
package ca
