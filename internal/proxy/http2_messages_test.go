package proxy

import (
	"context"
	"strings"
	"testing"
	"time"

	testpb "google.golang.org/grpc/interop/grpc_testing"

	"podseal.io/podseal/internal/policy"
)

// TestGRPCMessages: the messages of calls are counted in both directions as they pass,
// also while a call goes on, and those of a call that is denied are not. Contract 7.2, 7.3.
func TestGRPCMessages(t *testing.T) {
	p, _, client := grpcPair(t, policy.HTTP)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 2 {
		if _, err := client.UnaryCall(ctx, &testpb.SimpleRequest{Payload: &testpb.Payload{Body: make([]byte, 100_000)}}); err != nil {
			t.Fatal(err)
		}
	}
	both, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := both.Send(&testpb.StreamingOutputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := both.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	counted := func() (requests, responses string) {
		_, all := get(t, p.inside, 2, "GET", "/stats/prometheus")
		for line := range strings.Lines(all) {
			if !strings.Contains(line, `reporter="destination"`) || !strings.Contains(line, `request_protocol="grpc"`) || !strings.Contains(line, `connection_security_policy="mutual_tls"`) || !strings.Contains(line, `destination_service_name="web"`) {
				continue
			}
			value := strings.TrimSpace(line[strings.LastIndexByte(line, ' '):])
			switch {
			case strings.HasPrefix(line, "istio_request_messages_total"):
				requests = value
			case strings.HasPrefix(line, "istio_response_messages_total"):
				responses = value
			}
		}
		return requests, responses
	}
	if requests, responses := counted(); requests != "5" || responses != "5" {
		t.Errorf("%s messages of requests and %s of responses, want 5 and 5", requests, responses)
	}
	_ = both.CloseSend()
	for err == nil {
		_, err = both.Recv()
	}
	p.enforce(deny("everything", policy.Rule{}))
	if _, err := client.UnaryCall(ctx, &testpb.SimpleRequest{}); err == nil {
		t.Error("it is not denied")
	}
	if requests, responses := counted(); requests != "5" || responses != "5" {
		t.Errorf("after a denied call: %s and %s", requests, responses)
	}
}
