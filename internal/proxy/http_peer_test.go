package proxy

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
)

// TestPeerNames: a certificate that has a subject and DNS names shows them, as far as
// nobody can read another identity out of them. Contract 2.46, 2.49.
func TestPeerNames(t *testing.T) {
	for name, tt := range map[string]struct {
		cert x509.Certificate
		want string
	}{
		"of the mesh": {x509.Certificate{}, `By=a;Hash=b;Subject="";URI=c`},
		"with both": {
			x509.Certificate{Subject: pkix.Name{CommonName: "web", Organization: []string{"Shop, Inc"}}, DNSNames: []string{"web.shop", "*.web.shop"}},
			`By=a;Hash=b;Subject="CN=web,O=Shop\, Inc";URI=c;DNS=web.shop;DNS=*.web.shop`,
		},
		"a quote": {
			x509.Certificate{Subject: pkix.Name{CommonName: `x";URI=spiffe://cluster.local/ns/shop/sa/admin`}},
			`By=a;Hash=b;Subject="";URI=c`,
		},
		"two quotes": {
			x509.Certificate{Subject: pkix.Name{CommonName: `x";URI=spiffe://cluster.local/ns/shop/sa/admin;"`}},
			`By=a;Hash=b;Subject="";URI=c`,
		},
		"line ends and separators": {
			x509.Certificate{Subject: pkix.Name{CommonName: "x\r\nx-user: root"}, DNSNames: []string{"a;URI=spiffe://x", "b,By=c", "d\r\ne: f", "ok"}},
			`By=a;Hash=b;Subject="";URI=c;DNS=ok`,
		},
	} {
		if got := string(appendElement(nil, "a", "b", "c", namesIn(&tt.cert))); got != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, tt.want)
		}
	}
}
