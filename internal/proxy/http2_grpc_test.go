package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"podseal.io/podseal/internal/policy"
)

// grpcApp is a server of grpc-go, which sends its SETTINGS before it is spoken to.
type grpcApp struct {
	testpb.UnimplementedTestServiceServer
	cancelled chan struct{}
}

func (a *grpcApp) UnaryCall(ctx context.Context, in *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-end", "yes"))
	if s := in.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.GetCode()), s.GetMessage())
	}
	return &testpb.SimpleResponse{Username: strings.Join(md.Get("x-forwarded-client-cert"), "|"), Payload: in.GetPayload()}, nil
}

func (*grpcApp) StreamingInputCall(s testpb.TestService_StreamingInputCallServer) error {
	n := int32(0)
	for {
		in, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return s.SendAndClose(&testpb.StreamingInputCallResponse{AggregatedPayloadSize: n})
		}
		if err != nil {
			return err
		}
		n += int32(len(in.GetPayload().GetBody()))
	}
}

func (*grpcApp) StreamingOutputCall(in *testpb.StreamingOutputCallRequest, s testpb.TestService_StreamingOutputCallServer) error {
	for _, p := range in.GetResponseParameters() {
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: &testpb.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	return nil
}

func (a *grpcApp) FullDuplexCall(s testpb.TestService_FullDuplexCallServer) error {
	for {
		in, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			close(a.cancelled)
			return err
		}
		if err := s.Send(&testpb.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
	}
}

// grpcPair has a gRPC server behind a sidecar, and a client behind another.
func grpcPair(t *testing.T, proto policy.Protocol) (*pair, *grpcApp, testpb.TestServiceClient) {
	t.Helper()
	l, app := newOneListener(), &grpcApp{cancelled: make(chan struct{})}
	s := grpc.NewServer()
	testpb.RegisterTestServiceServer(s, app)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-served })
	p := newPair(t, proto, l.handOn)
	conn, err := grpc.NewClient("passthrough:///web", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return p.net.Connect(ctx, p.client.Addresses[0], p.service)
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return p, app, testpb.NewTestServiceClient(conn)
}

// TestGRPC is calls of each kind through two sidecars, on ports that are declared and
// that aren't. Contract 2.46, 2.59, 6.26, 6.38, 7.2, 7.3.
func TestGRPC(t *testing.T) {
	for _, proto := range []policy.Protocol{policy.HTTP, policy.Auto} {
		t.Run(proto.String(), func(t *testing.T) {
			p, app, client := grpcPair(t, proto)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()

			var trailer metadata.MD
			res, err := client.UnaryCall(ctx, &testpb.SimpleRequest{Payload: &testpb.Payload{Body: make([]byte, 300_000)}}, grpc.Trailer(&trailer))
			if err != nil || len(res.GetPayload().GetBody()) != 300_000 || len(trailer.Get("x-end")) != 1 || !strings.HasSuffix(res.GetUsername(), "URI=spiffe://cluster.local/ns/shop/sa/client") {
				t.Fatalf("unary: %v %v %.100v", err, trailer, res)
			}
			_, err = client.UnaryCall(ctx, &testpb.SimpleRequest{ResponseStatus: &testpb.EchoStatus{Code: 9, Message: "not yet"}})
			if status.Code(err) != codes.FailedPrecondition || status.Convert(err).Message() != "not yet" {
				t.Errorf("status: %v", err)
			}
			grpcStreams(ctx, t, client)
			grpcEnds(ctx, t, client, app)

			p.enforce(deny("unary", on(policy.RequestPath, "/grpc.testing.TestService/UnaryCall")))
			_, err = client.UnaryCall(ctx, &testpb.SimpleRequest{})
			if status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != accessDenied {
				t.Errorf("denied: %v", err)
			}
			eventually(t, func() bool {
				_, metrics := get(t, p.inside, 2, "GET", "/stats/prometheus")
				return strings.Contains(metrics, `request_protocol="grpc"`) && strings.Contains(metrics, `grpc_response_status="9"`) && strings.Contains(metrics, `grpc_response_status="7"`) && strings.Contains(metrics, `grpc_response_status="0"`)
			})
		})
	}
}

func grpcStreams(ctx context.Context, t *testing.T, client testpb.TestServiceClient) {
	t.Helper()
	up, err := client.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := up.Send(&testpb.StreamingInputCallRequest{Payload: &testpb.Payload{Body: make([]byte, 30_000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := up.CloseAndRecv(); err != nil || sum.GetAggregatedPayloadSize() != 3_000_000 {
		t.Errorf("client's stream: %v %v", sum, err)
	}
	want := &testpb.StreamingOutputCallRequest{}
	for range 100 {
		want.ResponseParameters = append(want.ResponseParameters, &testpb.ResponseParameters{Size: 30_000})
	}
	down, err := client.StreamingOutputCall(ctx, want)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		m, err := down.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n += len(m.GetPayload().GetBody())
	}
	if n != 3_000_000 {
		t.Errorf("server's stream: %d", n)
	}
	both, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := both.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		if _, err := both.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := both.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := both.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// grpcEnds: a deadline is the client's, a call that is taken back ends at the server.
func grpcEnds(ctx context.Context, t *testing.T, client testpb.TestServiceClient, app *grpcApp) {
	t.Helper()
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	late, err := client.StreamingInputCall(soon)
	if err != nil {
		t.Fatal(err)
	}
	if err := late.RecvMsg(&testpb.StreamingInputCallResponse{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}
	back, cancel := context.WithCancel(ctx)
	both, err := client.FullDuplexCall(back)
	if err != nil {
		t.Fatal(err)
	}
	if err := both.Send(&testpb.StreamingOutputCallRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := both.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case <-app.cancelled:
	case <-ctx.Done():
		t.Error("the server doesn't know that the call was taken back")
	}
}

// Design D13: a stream that is no longer allowed ends with a status.
func TestGRPCAccessChange(t *testing.T) {
	p, app, client := grpcPair(t, policy.Auto)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	both, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := both.Send(&testpb.StreamingOutputCallRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := both.Recv(); err != nil {
		t.Fatal(err)
	}
	p.enforce(allow("nobody"))
	if _, err := both.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	<-app.cancelled
}
