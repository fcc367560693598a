package h2

import "encoding/binary"

// clientSettings takes the client's settings over and passes on what concerns the
// application (RFC 9113 6.5).
func (r *Relay) clientSettings(f *frame) error {
	d := &r.down
	switch {
	case f.id != 0:
		return broken(protocolError, "SETTINGS of a stream")
	case f.has(flagAck) && len(f.payload) > 0, len(f.payload)%6 != 0:
		return broken(frameSize, "SETTINGS have another size")
	}
	if err := r.budgets.control.spend("too many SETTINGS"); err != nil {
		return err
	}
	if f.has(flagAck) {
		if d.early {
			d.early = false
			return nil
		}
		if d.unacked > 0 && !r.dead {
			d.unacked--
			r.up.out = appendHead(r.up.room(), 0, frameSettings, flagAck, 0)
		}
		return nil
	}
	var pass []byte
	if !d.heard {
		d.heard = true
		if !r.dead {
			r.up.out = append(r.up.room(), preface...)
			r.up.preface = true
		}
		pass = appendSetting(pass, settingPush, 0)
	}
	pass, err := d.settings(pass, f.payload)
	if err != nil {
		return err
	}
	if r.dead {
		r.greet(nil)
		d.out = appendHead(d.room(), 0, frameSettings, flagAck, 0)
		return nil
	}
	r.up.unacked++ // acknowledged when the application does
	r.up.out = append(appendHead(r.up.room(), len(pass), frameSettings, 0, 0), pass...)
	return nil
}

// settings takes one side's settings over and appends those that the other side is
// to know.
func (s *side) settings(pass, p []byte) ([]byte, error) {
	for ; len(p) >= 6; p = p[6:] {
		id, v := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])
		switch id {
		case settingTableSize:
			s.enc.hpack.SetMaxDynamicTableSize(min(v, 4096))
		case settingPush:
			if v > 1 || v == 1 && s.client {
				return nil, broken(protocolError, "SETTINGS_ENABLE_PUSH")
			}
		case settingMaxStreams:
			if s.client {
				pass = appendSetting(pass, id, min(v, maxStreams))
			}
		case settingInitialWindow:
			if v > maxWindow {
				return nil, broken(flowControl, "SETTINGS_INITIAL_WINDOW_SIZE")
			}
			s.window = int64(v)
			pass = appendSetting(pass, id, v)
		case settingMaxFrame:
			if v < maxFrame || v > 1<<24-1 {
				return nil, broken(protocolError, "SETTINGS_MAX_FRAME_SIZE")
			}
		case settingMaxList:
			if s.client {
				v = min(v, maxList)
			}
			pass = appendSetting(pass, id, v)
		case settingConnect:
			if v > 1 || s.connect && v == 0 {
				return nil, broken(protocolError, "SETTINGS_ENABLE_CONNECT_PROTOCOL")
			}
			if s.client {
				s.connect = v == 1
				pass = appendSetting(pass, id, v)
			}
		}
	}
	return pass, nil
}

// greet sends our own SETTINGS, if none have been sent: pass are the application's,
// nil without it, when there is also nobody else to acknowledge the client's.
func (r *Relay) greet(pass []byte) {
	d := &r.down
	if pass == nil && r.up.unacked > 0 {
		defer func() {
			for ; r.up.unacked > 0; r.up.unacked-- {
				d.out = appendHead(d.room(), 0, frameSettings, flagAck, 0)
			}
		}()
	}
	if d.greeted {
		return
	}
	d.greeted = true
	pass = firstSettings(pass)
	d.out = append(appendHead(d.room(), len(pass), frameSettings, 0, 0), pass...)
}

// firstSettings adds our own bounds where the application has set none.
func firstSettings(pass []byte) []byte {
	has := func(id uint16) bool {
		for p := pass; len(p) >= 6; p = p[6:] {
			if binary.BigEndian.Uint16(p) == id {
				return true
			}
		}
		return false
	}
	if !has(settingMaxStreams) {
		pass = appendSetting(pass, settingMaxStreams, maxStreams)
	}
	if !has(settingMaxList) {
		pass = appendSetting(pass, settingMaxList, maxList)
	}
	return pass
}

func (r *Relay) appSettings(f *frame) error {
	u, d := &r.up, &r.down
	switch {
	case f.id != 0, f.has(flagAck) && len(f.payload) > 0, len(f.payload)%6 != 0:
		return broken(protocolError, "SETTINGS")
	case f.has(flagAck):
		if u.unacked > 0 {
			u.unacked--
			d.out = appendHead(d.room(), 0, frameSettings, flagAck, 0)
		}
		return nil
	}
	pass, err := u.settings(nil, f.payload)
	if err != nil {
		return err
	}
	if !u.heard && d.greeted {
		pass = firstSettings(pass)
	}
	u.heard = true
	d.unacked++
	if d.unacked > maxUnacked {
		return broken(enhanceYourCalm, "the application sends SETTINGS without end")
	}
	if !d.greeted {
		r.greet(append(make([]byte, 0, 64), pass...))
		return nil
	}
	d.out = append(appendHead(d.room(), len(pass), frameSettings, 0, 0), pass...)
	return nil
}

const maxUnacked = 1000
