package tlsconn

import (
	"crypto/tls"
	"fmt"
	"net"
)

// Types of records (RFC 8446 B.1).
const (
	typeCCS       byte = 20
	typeAlert     byte = 21
	typeHandshake byte = 22
	typeData      byte = 23
)

// Alerts (RFC 8446 6).
const (
	alertCloseNotify       byte = 0
	alertUnexpectedMessage byte = 10
	alertBadRecordMAC      byte = 20
	alertRecordOverflow    byte = 22
	alertDecodeError       byte = 50
	alertIllegalParameter  byte = 47
	alertInternalError     byte = 80
	alertUserCanceled      byte = 90

	levelWarning byte = 1
	levelFatal   byte = 2
)

// BadRecordError says that the peer broke the protocol. The connection is then of
// no more use.
type BadRecordError struct {
	Alert tls.AlertError // which was sent
	Why   string
}

func (e *BadRecordError) Error() string { return fmt.Sprintf("bad TLS record: %s", e.Why) }

// remoteError is what crypto/tls returns for an alert that the peer sent.
func remoteError(alert byte) error {
	return &net.OpError{Op: "remote error", Net: "tcp", Err: tls.AlertError(alert)}
}
