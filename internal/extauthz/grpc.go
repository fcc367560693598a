package extauthz

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	"podseal.io/podseal/internal/authpb"
	"podseal.io/podseal/internal/policy"
)

// grpcClient speaks envoy.service.auth.v3.Authorization.
type grpcClient struct {
	settings policy.Authorizer
	conn     *grpc.ClientConn
}

func newGRPCClient(a policy.Authorizer, dial func(context.Context) (net.Conn, error)) (*grpcClient, error) {
	conn, err := grpc.NewClient("passthrough:///"+a.Host,
		// The dialler encrypts where the destination is in the mesh.
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithAuthority(net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))),
		grpc.WithDisableServiceConfig(), grpc.WithNoProxy(), grpc.WithIdleTimeout(keepIdle),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: 2 * time.Second}, MinConnectTimeout: 5 * time.Second}),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare connection to the authorizer: %w", err)
	}
	return &grpcClient{a, conn}, nil
}

// Close implements Client.
func (c *grpcClient) Close() { _ = c.conn.Close() } // it is closed only once

// Ask implements Client.
func (c *grpcClient) Ask(ctx context.Context, check *Check) (*Answer, error) {
	res, err := authpb.NewAuthorizationClient(c.conn).Check(ctx, &authpb.CheckRequest{Attributes: c.attributes(check)})
	if err != nil {
		return nil, fmt.Errorf("ask the authorizer: %w", err)
	}
	if res.GetStatus() == nil {
		return nil, errors.New("the authorizer's answer has no status")
	}
	if res.GetStatus().GetCode() != 0 {
		d := res.GetDeniedResponse()
		a := &Answer{Status: cmp.Or(int(d.GetStatus().GetCode()), 403), Body: d.GetBody()}
		if a.Status < 200 || a.Status > 599 {
			return nil, fmt.Errorf("the authorizer answers with status %d", a.Status)
		}
		for _, ch := range changes(d.GetHeaders(), mayAnswer) {
			a.Headers = append(a.Headers, Header{ch.Name, ch.Value})
		}
		return a, nil
	}
	ok := res.GetOkResponse()
	a := &Answer{Allowed: true}
	for _, name := range ok.GetHeadersToRemove() {
		if name = strings.ToLower(name); mayChange(name) {
			a.Request = append(a.Request, Change{Name: name})
		}
	}
	a.Request = append(a.Request, changes(ok.GetHeaders(), mayChange)...)
	a.Response = changes(ok.GetResponseHeadersToAdd(), mayAnswer)
	return a, nil
}

// Values of HeaderValueOption.append_action that differ from overwriting.
const (
	addIfAbsent = 1
)

// changes reads what an authorizer wants of a head. Without a word a field is
// overwritten, as Envoy does.
func changes(options []*authpb.HeaderValueOption, may func(string) bool) []Change {
	var out []Change
	for _, o := range options {
		name, value := strings.ToLower(o.GetHeader().GetKey()), o.GetHeader().GetValue()
		if value == "" {
			value = string(o.GetHeader().GetRawValue())
		}
		if !may(name) || !clean(value) {
			continue
		}
		out = append(out, Change{Name: name, Value: value, Put: true, Keep: o.GetAppend().GetValue() || o.GetAppendAction() == addIfAbsent})
	}
	return out
}

func (c *grpcClient) attributes(check *Check) *authpb.AttributeContext {
	a := &authpb.AttributeContext{
		Source: peer(check.Source, check.SourcePrincipal), Destination: peer(check.Destination, check.DestinationPrincipal),
		Request: &authpb.AttributeContext_Request{Time: timestamppb.New(check.Time)},
	}
	if check.SNI != "" {
		a.TlsSession = &authpb.AttributeContext_TLSSession{Sni: check.SNI}
	}
	r := check.Request
	if r == nil {
		return a
	}
	h := &authpb.AttributeContext_HttpRequest{
		Method: text(r.Method), Path: text(r.Path), Host: text(r.Host), Scheme: "http", Protocol: r.Protocol, Size: -1,
		Headers: map[string]string{":method": text(r.Method), ":path": text(r.Path), ":authority": text(r.Host), ":scheme": "http"},
	}
	for _, f := range r.Headers {
		switch f.Name {
		case "host":
			continue
		case "x-request-id":
			h.Id = text(f.Value)
		case "content-length":
			if n, err := strconv.ParseInt(f.Value, 10, 64); err == nil {
				h.Size = n
			}
		}
		if before, twice := h.Headers[f.Name]; twice {
			h.Headers[f.Name] = before + "," + text(f.Value)
		} else {
			h.Headers[f.Name] = text(f.Value)
		}
	}
	if c.settings.MaxBody > 0 {
		h.Headers[partialBody] = strconv.FormatBool(r.Partial)
		if c.settings.BodyAsBytes {
			h.RawBody = r.Body
		} else {
			h.Body = text(string(r.Body))
		}
	}
	a.Request.Http = h
	return a
}

// text is what protobuf takes as a string.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "!")
}

func peer(at netip.AddrPort, principal string) *authpb.AttributeContext_Peer {
	return &authpb.AttributeContext_Peer{
		Principal: principal,
		Address:   &authpb.Address{SocketAddress: &authpb.SocketAddress{Address: at.Addr().Unmap().String(), PortValue: uint32(at.Port())}},
	}
}
