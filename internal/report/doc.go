// Package report carries what proxies count to the control plane: both ends of
// the Reporting service, on the connection that configuration and certificates
// use too. What the counts mean is package edges'.
//
// A proxy sends its whole table when a stream begins and then, at most once per
// interval, what has changed. Counts are totals, so a stream that breaks loses
// nothing: the next one begins with everything again. A control plane that was
// restarted therefore knows all as soon as its proxies are back.
//
// Invariants of the server:
//
//   - Whose report it is says the credential of the stream, never a message.
//   - A pod has one report: a new stream ends the pod's older one, and takes its
//     place when it is complete.
//   - Edges, texts, streams and messages are bounded for each pod and in all. Who
//     goes beyond is cut off, and that is counted.
package report
