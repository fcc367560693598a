package datapath

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"podseal.io/podseal/internal/ca"
	"podseal.io/podseal/internal/identity"
	"podseal.io/podseal/internal/policy"
	"podseal.io/podseal/internal/report"
	"podseal.io/podseal/internal/wire"
	"podseal.io/podseal/internal/workload"
	"podseal.io/podseal/internal/xds"
)

const (
	trustDomain = "cluster.local"
	namespace   = "shop"
	controlAddr = "127.0.0.1:15012" // in each pod
	controlName = "istiod.d8-istio.svc"
)

// podsealProgram is the product as it was built.
func podsealProgram(o Options) (string, error) {
	path, err := exec.LookPath(filepath.Join(o.Bin, "podseal-proxy"))
	if err != nil {
		return "", fmt.Errorf("not built: make build: %w", err)
	}
	return path, nil
}

// podseal runs as the injector would run it.
func podseal(path string, s site) (program, error) {
	name, address := "server", serverAddress
	if s.client {
		name, address = "client", clientAddress
	}
	token := filepath.Join(s.dir, "token")
	if err := os.WriteFile(token, []byte(name), 0o644); err != nil {
		return program{}, fmt.Errorf("write the token: %w", err)
	}
	return program{
		name: path,
		args: []string{"proxy", "sidecar", "--ca-address", controlAddr, "--ca-server-name", controlName, "--root-file", s.root, "--token-file", token, "--drain", "100ms"},
		env:  []string{"POD_NAME=" + name, "POD_NAMESPACE=" + namespace, "INSTANCE_IPS=" + address},
		user: proxyUser,
	}, nil
}

// controlPlane gives proxies their certificates and the world: a client, and a
// server under STRICT with a port that is TCP and one that is HTTP.
type controlPlane struct {
	grpc  *grpc.Server
	xds   *xds.Server
	edges *report.Server
	root  []byte
	serve sync.WaitGroup
}

// newControlPlane serves in both pods, so that no other network is needed.
func newControlPlane(client, server *pod) (*controlPlane, error) {
	now := time.Now()
	issuer, err := ca.NewSelfSigned(trustDomain, now, rand.Reader)
	if err != nil {
		return nil, err
	}
	serving, err := issuer.ServingCertificate([]string{controlName}, 24*time.Hour, now)
	if err != nil {
		return nil, err
	}
	c := &controlPlane{root: issuer.Bundle().PEM()}
	store := xds.NewStore()
	if err := tell(store, c.root); err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	c.grpc = grpc.NewServer(append(xds.ServerOptions(), grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{serving}, MinVersion: tls.VersionTLS13})))...)
	ca.NewServer(ca.ServerConfig{
		Issuer: func() (*ca.Issuer, error) { return issuer, nil },
		Review: func(_ context.Context, token string) (ca.Caller, error) {
			return ca.Caller{Namespace: namespace, ServiceAccount: token, Pod: token}, nil
		},
		TrustDomain: func() string { return trustDomain },
		Now:         time.Now, Log: log,
	}).Register(c.grpc)
	c.xds = xds.NewServer(xds.ServerConfig{Store: store, Authenticate: func(context.Context) (string, error) { return "a proxy", nil }, Log: log})
	c.xds.Register(c.grpc)
	c.edges = report.NewServer(report.ServerConfig{Authenticate: func(ctx context.Context) (report.Pod, error) {
		md, _ := metadata.FromIncomingContext(ctx)
		name, ok := strings.CutPrefix(strings.Join(md.Get("authorization"), ""), "Bearer ")
		if !ok {
			return report.Pod{}, errors.New("no token")
		}
		return report.Pod{Namespace: namespace, Name: name}, nil
	}, Log: log})
	c.edges.Register(c.grpc)
	for _, p := range []*pod{client, server} {
		var l net.Listener
		err := p.do(nil, func() (err error) {
			l, err = net.Listen("tcp", controlAddr)
			return err
		})
		if err != nil {
			c.stop()
			return nil, fmt.Errorf("serve the control plane: %w", err)
		}
		c.serve.Go(func() { _ = c.grpc.Serve(l) }) // it ends with stop
	}
	return c, nil
}

func (c *controlPlane) stop() {
	c.xds.Shutdown()
	c.edges.Shutdown()
	c.grpc.Stop()
	c.xds.Wait()
	c.edges.Wait()
	c.serve.Wait()
}

// tell puts the world into the store.
func tell(store *xds.Store, root []byte) error {
	mesh, err := wire.AppendMesh(nil, &workload.Mesh{TrustDomains: []string{trustDomain}, ClusterDomain: trustDomain, BundlePEM: root})
	if err != nil {
		return err
	}
	service := &workload.Service{
		Name: "server", Namespace: namespace, Hostname: "server." + namespace + ".svc." + trustDomain,
		Addresses: []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
	endpoint := workload.Endpoint{Address: netip.MustParseAddr(serverAddress), Ready: true, Targets: map[uint16]uint16{}}
	workloads := map[string][]byte{}
	for name, address := range map[string]string{"client": clientAddress, "server": serverAddress} {
		w := &workload.Workload{
			UID: namespace + "/" + name, Name: name, Namespace: namespace, Addresses: []netip.Addr{netip.MustParseAddr(address)}, Mesh: true,
			Identity: identity.MustNew(trustDomain, namespace, name), Modes: policy.Modes{Default: policy.Strict}, CanonicalName: name, WorkloadName: name,
		}
		if name == "server" {
			for port, protocol := range map[uint16]policy.Protocol{appPort: policy.TCP, httpPort: policy.HTTP} {
				service.Ports = append(service.Ports, workload.ServicePort{Name: protocol.String(), Port: port, Protocol: protocol})
				endpoint.Targets[port] = port
				w.Ports = append(w.Ports, workload.Port{Target: port, Protocol: protocol, ServiceHost: service.Hostname, ServicePort: port})
			}
		}
		if workloads[w.UID], err = wire.AppendWorkload(nil, w); err != nil {
			return err
		}
	}
	service.Endpoints = []workload.Endpoint{endpoint}
	body, err := wire.AppendService(nil, service)
	if err != nil {
		return err
	}
	for _, typeURL := range wire.Types() {
		store.Replace(typeURL, nil) // there are none, and a proxy must know that
	}
	store.Replace(wire.TypeMesh, map[string][]byte{"mesh": mesh})
	store.Replace(wire.TypeService, map[string][]byte{namespace + "/server": body})
	store.Replace(wire.TypeWorkload, workloads)
	return nil
}

// ready reports whether the Podseal proxy of a pod is.
func ready(p *pod) error {
	return p.do(nil, func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(p.address.String(), "15021"), time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, "GET /healthz/ready HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		b := make([]byte, len("HTTP/1.0 200"))
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		if string(b) != "HTTP/1.0 "+strconv.Itoa(http.StatusOK) {
			return errors.New("not ready")
		}
		return nil
	})
}
