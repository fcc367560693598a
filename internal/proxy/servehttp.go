package proxy

import "context"

func (in *inbound) serveHTTP(ctx context.Context, client stream, first sight) {
	in.serveTCP(ctx, client, first)
}
