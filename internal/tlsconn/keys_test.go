package tlsconn

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"io"
	"strings"
	"testing"
)

func unhex(tb testing.TB, s string) []byte {
	tb.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// RFC 8448 section 3: from the traffic secret to a record on the wire, both directions.
func TestRecordsOfRFC8448(t *testing.T) {
	content := make([]byte, 50)
	for i := range content {
		content[i] = byte(i)
	}
	for _, c := range []struct {
		name, secret, iv, record string
		seq                      uint64
	}{
		{
			name:   "client",
			secret: "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
			iv:     "5b78923dee08579033e523d9",
			record: `1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4`,
		},
		{
			name:   "server",
			secret: "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
			iv:     "cf782b88dd83549aadf1e984",
			seq:    1, // a ticket came before
			record: `17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d`,
		},
	} {
		s, _ := suiteOf(tls.TLS_AES_128_GCM_SHA256)
		var k keys
		if err := k.use(s, unhex(t, c.secret)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(k.iv[:], unhex(t, c.iv)) {
			t.Errorf("%s: iv %x", c.name, k.iv)
		}
		k.seq = c.seq
		want := unhex(t, c.record)
		rec := make([]byte, len(want))
		copy(rec[headerLen:], content)
		if n := k.seal(rec, len(content), typeData); !bytes.Equal(rec[:n], want) {
			t.Errorf("%s: sealed %x\nwant %x", c.name, rec[:n], want)
		}
		k.seq = c.seq
		inner, err := k.open(nil, rec)
		if err != nil || !bytes.Equal(inner, append(content[:50:50], typeData)) {
			t.Errorf("%s: opened %x, %v", c.name, inner, err)
		}
	}
}

// Old keys are overwritten, and what was sealed with them opens no more.
func TestUpdateForgets(t *testing.T) {
	for name, id := range suites {
		s, ok := suiteOf(id)
		if !ok {
			t.Fatal(name)
		}
		secret := bytes.Repeat([]byte{7}, s.hashLen)
		var a, b keys
		if a.use(s, bytes.Clone(secret)) != nil || b.use(s, secret) != nil {
			t.Fatal(name)
		}
		rec := make([]byte, 100)
		n := a.seal(rec, 10, typeData)
		if err := b.update(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(secret, make([]byte, s.hashLen)) {
			t.Errorf("%s: the old secret is still there", name)
		}
		if _, err := b.open(nil, rec[:n]); err == nil {
			t.Errorf("%s: an old record opens", name)
		}
		if err := a.update(); err != nil {
			t.Fatal(err)
		}
		n = a.seal(rec, 10, typeData)
		if _, err := b.open(nil, rec[:n]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var k keys
	s, _ := suiteOf(tls.TLS_AES_128_GCM_SHA256)
	if k.use(s, make([]byte, 31)) == nil {
		t.Error("a short secret was taken")
	}
	if _, ok := suiteOf(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256); ok {
		t.Error("a suite of TLS 1.2 was taken")
	}
}

// What crypto/tls writes into the key log is taken and overwritten.
func TestSecretsAreTaken(t *testing.T) {
	var s secrets
	for _, label := range []string{"CLIENT_HANDSHAKE_TRAFFIC_SECRET", "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"} {
		line := []byte(label + " 0011 a1b2\n")
		if n, err := s.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		if !bytes.Equal(line, make([]byte, len(line))) {
			t.Errorf("the line is still there: %q", line)
		}
	}
	if !bytes.Equal(s.client, []byte{0xa1, 0xb2}) || !bytes.Equal(s.server, []byte{0xa1, 0xb2}) {
		t.Errorf("%x %x", s.client, s.server)
	}
	if _, err := s.Write([]byte("CLIENT_TRAFFIC_SECRET_0 00 zz\n")); err == nil {
		t.Error("what is no secret was taken")
	}
}

// A connection that is told to rest while it is busy carries the same bytes.
func TestRestAtAnyTime(t *testing.T) {
	client, server := established(t, 0)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				client.Rest()
				server.Rest()
			}
		}
	}()
	msg, got := make([]byte, 3000), make([]byte, 3000)
	for i := range 200 {
		for j := range msg {
			msg[j] = byte(i + j)
		}
		if _, err := client.Write(msg); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, msg) {
			t.Fatalf("message %d: %v", i, err)
		}
	}
	close(stop)
	<-done
}

// Of no secret no cipher is made, whatever else has gone wrong.
func TestNoCipherWithoutSecret(t *testing.T) {
	client, _ := established(t, 0)
	k := &client.records.out.keys
	k.forget()
	defer func() {
		if recover() == nil {
			t.Error("there is one")
		}
	}()
	k.cipher()
}
