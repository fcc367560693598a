package controlplane

import (
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	reportv1 "podseal.io/podseal/api/report/v1"
	"podseal.io/podseal/internal/report"
)

// testReports reports edges with the token of a pod and with others: whose they
// are says the token, and only a token of one pod is good for it.
func testReports(t *testing.T, conn *grpc.ClientConn, s *grpcServer) {
	open := func(token string) (grpc.BidiStreamingClient[reportv1.Update, reportv1.Directive], error) {
		stream, err := reportv1.NewReportingClient(conn).Report(withToken(t.Context(), token))
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		return stream, err
	}
	for _, token := range []string{"expired-token", "foreign-token", "unbound-token", "x"} {
		if _, err := open(token); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", token, err)
		}
	}
	stream, err := open("web-token")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reportv1.Update{Proxy: &reportv1.Proxy{Version: "v1", Identity: "cluster.local/ns/bank/sa/vault"}, Complete: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return len(s.report.Reports()) == 1 })
	if got, want := s.report.Reports()[0].Pod, (report.Pod{Namespace: "shop", Name: "web-1", Identity: "cluster.local/ns/shop/sa/web"}); got != want {
		t.Errorf("the report is of %+v, want %+v", got, want)
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	deadline, tick := time.NewTimer(20*time.Second), time.NewTicker(5*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("it did not become true")
		}
	}
}
