package ingest

import (
	"net/netip"
	"testing"
)

func TestClientAddr(t *testing.T) {
	proxies := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	f := func(addr, forwarded, want string) {
		t.Helper()
		if got := ClientAddr(netip.MustParseAddr(addr), forwarded, proxies).String(); got != want {
			t.Errorf("%s with %q: %s, want %s", addr, forwarded, got, want)
		}
	}
	f("192.0.2.1", "203.0.113.9", "192.0.2.1") // not one of our proxies: the header is the sender's own story
	f("10.1.1.1", "203.0.113.9", "203.0.113.9")
	f("10.1.1.1", "1.2.3.4, 203.0.113.9, 10.2.2.2", "203.0.113.9")
	f("10.1.1.1", "", "10.1.1.1")
	f("10.1.1.1", "junk", "10.1.1.1")
	f("10.1.1.1", "junk, 10.2.2.2", "10.2.2.2")
	f("::ffff:10.1.1.1", "2001:db8::1", "2001:db8::1")
	f("::1", "::ffff:203.0.113.9", "203.0.113.9")
}
