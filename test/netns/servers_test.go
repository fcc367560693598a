package netns

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"podseal.io/podseal/internal/policy"
)

// secret is in what every client sends, and every server keeps or gives back.
const secret = "what-nobody-else-may-read"

const broker = "mosquitto" //nolint:misspell // the program is called so

// nobody is a user that programs which refuse to be root run as.
const nobody = 65534

// protocol is one that must work through two proxies, by a server and a client that
// people use.
type protocol struct {
	name     string
	declared policy.Protocol
	port     uint16
	needle   string // besides the secret: what the protocol itself says in plaintext
	// byAddress says that the client must call the pod: the protocol opens
	// connections to further ports.
	byAddress bool
	// start runs the server in the pod, on its port.
	start func(t *testing.T, s *site)
	// talk is one conversation of a client in pod p. It fails if it isn't what it is
	// without a mesh.
	talk func(ctx context.Context, s *site, p *pod, at netip.AddrPort) error
}

// site is a pod with a server in it, and files of its own.
type site struct {
	*mesh
	*pod
	*protocol
	dir string // readable and writable by everybody
}

// file writes a file of the site.
func (s *site) file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// daemon runs a program in the site's pod until the test ends.
func (s *site) daemon(t *testing.T, uid uint32, program string, args ...string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &log, &log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir, "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	s.root(t, cmd.Start)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // it is killed, which is no success
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(3 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s:\n%.4000s", program, &log)
		}
	})
	eventually(t, s.name+" listens", func() error {
		select {
		case <-ended:
			t.Fatalf("%s has ended:\n%.4000s", program, &log)
		default:
		}
		return s.try(app, func() error {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(s.v4, s.port).String(), time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
	})
}

// command runs a client in a pod and returns what it wrote.
func (p *pod) command(ctx context.Context, stdin, program string, args ...string) (string, error) {
	var out, log bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &log
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C"}
	if err := p.try(identity{}, cmd.Start); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%.2000s", filepath.Base(program), err, &log)
	}
	return out.String(), nil
}

// says runs a client and wants the secret in what it writes.
func (p *pod) says(ctx context.Context, stdin, program string, args ...string) error {
	out, err := p.command(ctx, stdin, program, args...)
	if err == nil && !strings.Contains(out, secret) {
		err = fmt.Errorf("%s: %.500q", filepath.Base(program), out)
	}
	return err
}

func port(a netip.AddrPort) string { return fmt.Sprint(a.Port()) }

// protocols are all; ports are not those that have a protocol by their number.
func protocols() []*protocol {
	return []*protocol{
		{name: "PostgreSQL", declared: policy.TCP, port: 15432, needle: "SCRAM-SHA-256", start: startPostgres, talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, "", "psql", "-X", "-h", at.Addr().String(), "-p", port(at), "-U", "postgres", "-Atc", "select '"+secret+"'")
		}},
		{name: "MariaDB", declared: policy.TCP, port: 13306, needle: "mysql_native_password", start: startMariaDB, talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, "", "mariadb", "--no-defaults", "-h", at.Addr().String(), "-P", port(at), "-u", "root", "-Ne", "select '"+secret+"'")
		}},
		{name: "Redis", declared: policy.TCP, port: 16379, needle: "*3\r\n$3\r\nset", start: func(t *testing.T, s *site) {
			s.daemon(t, nobody, "redis-server", "--port", fmt.Sprint(s.port), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", s.dir)
		}, talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			if _, err := p.command(ctx, "", "redis-cli", "-h", at.Addr().String(), "-p", port(at), "set", "key", secret); err != nil {
				return err
			}
			return p.says(ctx, "", "redis-cli", "-h", at.Addr().String(), "-p", port(at), "get", "key")
		}},
		{name: "memcached", declared: policy.TCP, port: 11311, needle: "set file", start: func(t *testing.T, s *site) {
			s.daemon(t, 0, "memcached", "-u", "nobody", "-l", "0.0.0.0", "-p", fmt.Sprint(s.port))
		}, talk: func(ctx context.Context, s *site, p *pod, at netip.AddrPort) error {
			file := filepath.Join(s.dir, "file")
			if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
				return err
			}
			if _, err := p.command(ctx, "", "memccp", "--servers="+at.String(), file); err != nil {
				return err
			}
			return p.says(ctx, "", "memccat", "--servers="+at.String(), "file")
		}},
		{name: "SMTP", declared: policy.TCP, port: 1025, needle: "MAIL FROM", start: func(t *testing.T, s *site) {
			s.daemon(t, 0, "/usr/bin/python3", "-m", "aiosmtpd", "-n", "-l", fmt.Sprintf("0.0.0.0:%d", s.port), "-c", "aiosmtpd.handlers.Mailbox", filepath.Join(s.dir, "mail"))
		}, talk: sendMail},
		{name: "SSH", declared: policy.TCP, port: 1022, needle: "SSH-2.0-", start: startSSH, talk: func(ctx context.Context, s *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, secret, "ssh", "-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes",
				"-i", filepath.Join(s.dir, "user"), "-p", port(at), "root@"+at.Addr().String(), "cat")
		}},
		{name: "MQTT", declared: policy.TCP, port: 11883, needle: "MQTT", start: func(t *testing.T, s *site) {
			s.daemon(t, 0, "/usr/sbin/"+broker, "-c", s.file(t, "conf", fmt.Sprintf("listener %d 0.0.0.0\nallow_anonymous true\nuser root\n", s.port)))
		}, talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			if _, err := p.command(ctx, "", broker+"_pub", "-h", at.Addr().String(), "-p", port(at), "-r", "-q", "1", "-t", "topic", "-m", secret); err != nil {
				return err
			}
			return p.says(ctx, "", broker+"_sub", "-h", at.Addr().String(), "-p", port(at), "-C", "1", "-t", "topic")
		}},
		{name: "FTP", declared: policy.TCP, port: 1021, needle: "EPSV", byAddress: true, start: startFTP, talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, "", "curl", "-sSm", "20", "--ftp-pasv", "ftp://"+at.String()+"/file")
		}},
		{name: "HTTP/1.1", declared: policy.HTTP, port: 8080, needle: "GET /page", start: startNginx(""), talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, "", "curl", "-sSfm", "20", "http://"+at.String()+"/page")
		}},
		{name: "HTTP/2", declared: policy.HTTP, port: 8082, needle: "PRI * HTTP/2.0", start: startNginx("http2"), talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, "", "curl", "-sSfm", "20", "--http2-prior-knowledge", "http://"+at.String()+"/page")
		}},
		{name: "TLS of its own", declared: policy.TCP, port: 8443, needle: "own.example", start: startNginx("ssl http2"), talk: func(ctx context.Context, s *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, "", "curl", "-sSfm", "20", "--cacert", filepath.Join(s.dir, "cert.pem"), "--connect-to", "own.example:443:"+at.String(), "https://own.example/page")
		}},
		{name: "WebSocket", declared: policy.HTTP, port: 8088, needle: "Sec-WebSocket", start: func(t *testing.T, s *site) {
			s.daemon(t, nobody, "/usr/bin/python3", "-c", webSocketServer, fmt.Sprint(s.port))
		}, talk: func(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
			return p.says(ctx, "", "/usr/bin/python3", "-c", webSocketClient, "ws://"+at.String(), secret)
		}},
		{name: "gRPC", declared: policy.HTTP, port: 8090, needle: "grpc.health.v1.Health", start: startGRPC, talk: talkGRPC},
	}
}

const webSocketServer = `
import asyncio, sys, websockets
async def echo(ws):
    async for message in ws:
        await ws.send(message)
async def main():
    async with websockets.serve(echo, "0.0.0.0", int(sys.argv[1])):
        await asyncio.Future()
asyncio.run(main())
`

const webSocketClient = `
import asyncio, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1]) as ws:
        for text in [sys.argv[2], "x" * 300000]:
            await ws.send(text)
            answer = await ws.recv()
            assert answer == text, answer[:100]
            print(answer[:100])
asyncio.run(main())
`

func startPostgres(t *testing.T, s *site) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		t.Fatalf("PostgreSQL is not installed (hack/setup protocols): %v", err)
	}
	bin, data := found[len(found)-1], filepath.Join(s.dir, "data")
	setup := exec.CommandContext(t.Context(), filepath.Join(bin, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions")
	setup.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	setup.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	setup.Dir = s.dir
	if out, err := setup.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s.file(t, "data/pg_hba.conf", "host all all 0.0.0.0/0 trust\n")
	if err := os.Chmod(filepath.Join(data, "pg_hba.conf"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.daemon(t, nobody, filepath.Join(bin, "postgres"), "-D", data, "-p", fmt.Sprint(s.port), "-c", "listen_addresses=*", "-c", "unix_socket_directories=", "-c", "fsync=off")
}

func startMariaDB(t *testing.T, s *site) {
	data := filepath.Join(s.dir, "data")
	if err := errors.Join(os.Mkdir(data, 0o700), os.Chown(data, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	s.daemon(t, nobody, "/usr/sbin/mariadbd", "--no-defaults", "--skip-grant-tables", "--skip-networking=0", "--skip-name-resolve", "--bind-address=0.0.0.0", "--port="+fmt.Sprint(s.port),
		"--datadir="+data, "--socket="+filepath.Join(data, "socket"), "--pid-file="+filepath.Join(data, "pid"), "--innodb-log-file-size=4M", "--skip-log-bin")
}

func startSSH(t *testing.T, s *site) {
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd wants it there and nowhere else
		t.Fatal(err)
	}
	for _, name := range []string{"host", "user"} {
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, name)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s", err, out)
		}
	}
	s.daemon(t, 0, "/usr/sbin/sshd", "-D", "-e", "-f", s.file(t, "conf", fmt.Sprintf(
		"Port %d\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/user.pub\nPermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\nForceCommand /bin/cat\n", s.port, s.dir)))
}

// sendMail sends a letter that says who wrote it, and looks for it in the mailbox.
func sendMail(ctx context.Context, s *site, p *pod, at netip.AddrPort) error {
	from := fmt.Sprintf("%s-%s", strings.ReplaceAll(p.v4.String(), ".", "-"), rand.Text())
	if _, err := p.command(ctx, "Subject: hello\r\n\r\n"+secret+"\r\n", "curl", "-sSm", "20", "smtp://"+at.String(), "--mail-from", from+"@a.example", "--mail-rcpt", "b@b.example", "--upload-file", "-"); err != nil {
		return err
	}
	letters, err := filepath.Glob(filepath.Join(s.dir, "mail", "new", "*"))
	if err != nil {
		return err
	}
	for _, letter := range letters {
		b, err := os.ReadFile(letter)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte(from)) && bytes.Contains(b, []byte(secret)) {
			return nil
		}
	}
	return fmt.Errorf("the letter is not among %d in the mailbox", len(letters))
}

func startFTP(t *testing.T, s *site) {
	root, empty := filepath.Join(s.dir, "root"), filepath.Join(s.dir, "empty")
	if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(empty, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), []byte(secret), 0o644); err != nil {
		t.Fatal(err)
	}
	s.daemon(t, 0, "/usr/sbin/vsftpd", s.file(t, "conf", fmt.Sprintf("listen=YES\nbackground=NO\nlisten_port=%d\nanonymous_enable=YES\nno_anon_password=YES\nanon_root=%s\n"+
		"secure_chroot_dir=%s\nftp_username=daemon\nseccomp_sandbox=NO\npasv_min_port=30000\npasv_max_port=30100\n", s.port, root, empty)))
}

// startNginx serves a page, and files under /files/.
func startNginx(options string) func(*testing.T, *site) {
	return func(t *testing.T, s *site) {
		own := ""
		if strings.HasPrefix(options, "ssl") {
			selfSigned(t, s)
			own = fmt.Sprintf("ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem;", s.dir)
		}
		s.daemon(t, 0, "nginx", "-e", "stderr", "-c", s.file(t, "conf", fmt.Sprintf(`
daemon off; pid %[1]s/pid; user root; worker_processes 1;
events { worker_connections 1000; }
http {
	access_log off; client_max_body_size 0; proxy_temp_path %[1]s/t1; client_body_temp_path %[1]s/t2; fastcgi_temp_path %[1]s/t3; uwsgi_temp_path %[1]s/t4; scgi_temp_path %[1]s/t5;
	server {
		listen %[2]d %[3]s; %[4]s
		location /page { return 200 "%[5]s"; }
		location /files/ { root %[1]s; dav_methods PUT; create_full_put_path on; }
	}
}`, s.dir, s.port, options, own, secret)))
	}
}

func selfSigned(t *testing.T, s *site) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own.example"}, DNSNames: []string{"own.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s.file(t, "cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	s.file(t, "key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
}

func startGRPC(t *testing.T, s *site) {
	g, h := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(g, h)
	h.SetServingStatus(secret, healthpb.HealthCheckResponse_SERVING)
	l := s.listen(t, fmt.Sprintf("0.0.0.0:%d", s.port))
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// talkGRPC makes a call, one that fails in a trailer, and one that streams.
func talkGRPC(ctx context.Context, _ *site, p *pod, at netip.AddrPort) error {
	c, err := grpc.NewClient("passthrough:///"+at.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, address string) (c net.Conn, err error) {
		return c, p.try(app, func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return err
		})
	}))
	if err != nil {
		return err
	}
	defer c.Close()
	client := healthpb.NewHealthClient(c)
	if res, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: secret}); err != nil || res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("call: %v, %w", res, err)
	}
	if _, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: "unknown"}); status.Code(err) != codes.NotFound {
		return fmt.Errorf("a call that fails: %w", err)
	}
	stream, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: secret})
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	if res, err := stream.Recv(); err != nil || res.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("stream: %v, %w", res, err)
	}
	return nil
}

// status asks the proxy in the pod who it is and what it knows.
func (p *pod) proxyStatus(into func(io.Reader) error) error {
	res, body, err := fetchPath(p, "127.0.0.1:15000", "/status")
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("status %s", res.Status)
	}
	return into(strings.NewReader(body))
}
