package proof

import (
	"encoding/json"
	"net/netip"
	"testing"
)

var (
	podAddr  = netip.MustParseAddr("10.0.0.7")
	peerPort = netip.MustParseAddrPort("10.0.0.9:40000")
	webPort  = netip.MustParseAddrPort("10.0.0.7:80")
)

// What is on the wire is held against what the proxy says, and nothing that isn't
// proved to be encrypted passes for it.
func TestCompare(t *testing.T) {
	in := func(kind Kind, tls, plain int64) Seen {
		return Seen{Inbound: true, Client: peerPort, Server: webPort, Kind: kind.String(), TLSBytes: tls, PlainBytes: plain}
	}
	says := func(security, reason string) []Claim {
		return []Claim{{Client: peerPort, Server: webPort, Security: security, Reason: reason}}
	}
	probe := in(Plaintext, 0, 10)
	probe.Server = netip.AddrPortFrom(podAddr, 15021)
	missed := in(MeshTLS, 100, 0)
	missed.Missed = 5
	out := Seen{Client: netip.AddrPortFrom(podAddr, 5000), Server: peerPort, Kind: ForeignTLS.String(), TLSBytes: 9}
	control := out
	control.Server = netip.MustParseAddrPort("10.0.0.1:15012")
	leaking := control
	leaking.Kind, leaking.TLSBytes, leaking.PlainBytes = Plaintext.String(), 0, 9
	for name, c := range map[string]struct {
		seen   Seen
		claims []Claim
		losses bool
		want   Verdict
	}{
		"mutual TLS":                       {in(MeshTLS, 100, 0), says(SaidMutualTLS, ""), false, Agrees},
		"joined late":                      {in(UnknownTLS, 100, 0), says(SaidMutualTLS, ""), false, Agrees},
		"plaintext that is said":           {in(Plaintext, 0, 100), says(SaidPlaintext, ""), false, Agrees},
		"plaintext that was refused":       {in(Plaintext, 0, 100), says(SaidNothing, "plaintext_refused"), false, Agrees},
		"plaintext said to be mutual TLS":  {in(Plaintext, 0, 100), says(SaidMutualTLS, ""), false, Leak},
		"the same, asked early":            {in(Plaintext, 0, 100), append(says(SaidNothing, ""), says(SaidMutualTLS, "")...), false, Leak},
		"one byte of plaintext behind TLS": {in(MeshTLS, 100, 1), says(SaidMutualTLS, ""), false, Leak},
		"plaintext said to be foreign TLS": {in(Plaintext, 0, 100), says(SaidForeignTLS, ""), false, Leak},
		"plaintext that nobody knows of":   {in(Plaintext, 0, 100), nil, false, Leak},
		"the same, with losses":            {in(Plaintext, 0, 100), nil, true, Unproven},
		"TLS that nobody knows of":         {in(ForeignTLS, 100, 0), nil, false, Unreported},
		"foreign TLS":                      {in(ForeignTLS, 100, 0), says(SaidForeignTLS, ""), false, Agrees},
		"foreign TLS said to be mutual":    {in(ForeignTLS, 100, 0), says(SaidMutualTLS, ""), false, Differs},
		"TLS said to be plaintext":         {in(MeshTLS, 100, 0), says(SaidPlaintext, ""), false, Differs},
		"a part is missing":                {missed, says(SaidMutualTLS, ""), false, Unproven},
		"a probe":                          {probe, nil, false, Expected},
		"to the control plane":             {control, nil, false, Expected},
		"to its port, in plaintext":        {leaking, nil, false, Leak},
		"origination":                      {out, []Claim{{Outbound: true, Client: out.Client, Server: out.Server, Security: SaidTLS}}, false, Agrees},
		"a proxy that doesn't say its end": {out, []Claim{{Outbound: true, Server: out.Server, Security: SaidTLS}}, false, Agrees},
		"another connection to that end":   {out, []Claim{{Outbound: true, Client: netip.AddrPortFrom(podAddr, 5001), Server: out.Server, Security: SaidTLS}}, false, Unreported},
	} {
		o := Observation{Proxy: "v1", Seen: []Seen{c.seen}, Claims: c.claims}
		if c.losses {
			o.ProxyLost = 1
		}
		got := o.Compare()
		if len(got) != 1 || got[0].Verdict != c.want {
			t.Errorf("%s: %+v, want %s", name, got, c.want)
		}
	}
	empty := Observation{Proxy: "v1", Seen: []Seen{in(Empty, 0, 0)}}
	if got := empty.Compare(); len(got) != 0 {
		t.Errorf("a connection without content: %+v", got)
	}
	alone := Observation{Seen: []Seen{in(Plaintext, 0, 1)}}
	if got := alone.Compare(); got[0].Verdict != Expected {
		t.Errorf("without a proxy: %+v", got)
	}
}

// An observation is read back as it was written: it is carried from the pod as JSON.
// Whatever a pod says, comparing it ends, and says nothing better than it is.
func FuzzObservation(f *testing.F) {
	good, err := json.Marshal(Observation{Proxy: "v1", Seen: []Seen{{Inbound: true, Client: peerPort, Server: webPort, Kind: "plaintext", PlainBytes: 1}}, Claims: []Claim{{Client: peerPort, Server: webPort, Security: SaidMutualTLS}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"seen":[{"kind":"mesh TLS","tls_bytes":1}],"claims":[{"security":"mutual_tls"}]}`))
	f.Add([]byte(`{"seen":[{"plain_bytes":-1,"missed_bytes":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Observation
		if json.Unmarshal(b, &o) != nil {
			return
		}
		for _, found := range o.Compare() {
			if found.Verdict == Agrees && found.PlainBytes > 0 && found.Kind != Plaintext.String() && found.Said[0] != SaidNothing {
				t.Errorf("%+v agrees", found)
			}
		}
		again, err := json.Marshal(o)
		var back Observation
		if err != nil || json.Unmarshal(again, &back) != nil {
			t.Errorf("not read back: %v", err)
		}
	})
}
