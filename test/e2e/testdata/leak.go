package proxy

import (
	"context"
	"net/netip"
)

// leakPlaintext is what a broken proxy might do: it has shaken hands, says so, and
// sends everything past its TLS. Only the end-to-end test builds it in.
func (p *proxy) leakPlaintext(ctx context.Context, to routing, encrypted stream) stream {
	plain, err := p.cfg.Dial(ctx, netip.Addr{}, to.endpoint)
	if err != nil {
		return encrypted
	}
	return plain
}
