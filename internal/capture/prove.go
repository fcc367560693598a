package capture

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrNotCaptured means that the pod's traffic does not go through the proxy.
var ErrNotCaptured = errors.New("the traffic of this pod is not captured")

const (
	// proofTimeout bounds the whole proof; a network that is not captured is found
	// out at once.
	proofTimeout = 3 * time.Second
	// proofPause is the pause after an attempt that says nothing, e.g. from an address
	// that the kernel still looks for duplicates of.
	proofPause = 20 * time.Millisecond
	// maxProofs bounds how many addresses are tried.
	maxProofs = 16
)

// proofPorts are ports at which nothing listens in a pod of the mesh (contract
// 5.35). More than one, since a pod may have excluded one of them.
var proofPorts = []uint16{15002, 15003, 15005}

// Prove shows that the rules are in place without the right to read them: it
// connects to each address of the pod at a port where nothing listens, and only
// redirection can bring such a connection to one of the inbound listeners (contract
// 5.14, rule 8 of 5.26). It must run as the proxy's user. As all rules come in one
// transaction, the one that is seen to work stands for all.
//
// Connections of others that arrive meanwhile are returned, in any case. The error
// wraps ErrNotCaptured.
func Prove(ctx context.Context, inbound []*net.TCPListener, addrs []netip.Addr) ([]*net.TCPConn, error) {
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%w: it has no address to prove it with", ErrNotCaptured)
	}
	ctx, cancel := context.WithTimeout(ctx, proofTimeout)
	defer cancel()
	p := prover{arrived: make(chan *net.TCPConn)}
	var accepting sync.WaitGroup
	for _, l := range inbound {
		_ = l.SetDeadline(time.Time{}) // it fails on a closed one only, and then Accept does
		accepting.Go(func() { p.accept(ctx, l) })
	}
	var err error
	for _, addr := range addrs[:min(len(addrs), maxProofs)] {
		if err = p.proveOne(ctx, addr); err != nil {
			break
		}
	}
	cancel()
	for _, l := range inbound {
		_ = l.SetDeadline(time.Unix(1, 0)) // see above
	}
	accepting.Wait()
	for _, l := range inbound {
		_ = l.SetDeadline(time.Time{}) // see above
	}
	return p.others, err
}

// prover looks at what arrives.
type prover struct {
	arrived chan *net.TCPConn
	mu      sync.Mutex
	others  []*net.TCPConn
}

// accept hands over what arrives until the context ends and the listener's deadline
// is over.
func (p *prover) accept(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		select {
		case p.arrived <- c:
		case <-ctx.Done():
			p.keep(c)
		}
	}
}

func (p *prover) keep(c *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.others = append(p.others, c)
}

// proveOne tries until the context ends, unless nothing listens at any of the ports,
// which is an answer.
func (p *prover) proveOne(ctx context.Context, addr netip.Addr) error {
	for {
		var faults []string
		refused := 0
		for _, port := range proofPorts {
			err := p.attempt(ctx, netip.AddrPortFrom(addr, port))
			if err == nil {
				return nil
			}
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, ErrNotRedirected) {
				refused++
			}
			faults = append(faults, err.Error())
		}
		if refused == len(proofPorts) || ctx.Err() != nil {
			return fmt.Errorf("%w: %s", ErrNotCaptured, strings.Join(faults, "; "))
		}
		pause, done := context.WithTimeout(ctx, proofPause)
		<-pause.Done()
		done()
	}
}

// attempt connects and looks whether that connection is among those that arrive.
func (p *prover) attempt(ctx context.Context, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, proofTimeout/3)
	defer cancel()
	var d net.Dialer
	d.SetMultipathTCP(false)
	dialled, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer dialled.Close()
	for {
		select {
		case c := <-p.arrived:
			if c.RemoteAddr().String() != dialled.LocalAddr().String() {
				p.keep(c)
				continue
			}
			original, err := OriginalDst(c)
			_ = c.Close() // it was only a proof
			if err == nil && original != to {
				err = fmt.Errorf("a connection to %s arrived as one to %s", to, original)
			}
			return err
		case <-ctx.Done():
			return fmt.Errorf("connection to %s: %w: something else answers there", to, ErrNotRedirected)
		}
	}
}

// PodAddresses are the addresses of the network namespace by which others reach it:
// those that Prove takes.
func PodAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range all {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		addr, ok := netip.AddrFromSlice(n.IP)
		addr = addr.Unmap()
		if ok && addr.IsGlobalUnicast() && !slices.Contains(out, addr) && addr != source6 {
			out = append(out, addr)
		}
	}
	return out, nil
}
