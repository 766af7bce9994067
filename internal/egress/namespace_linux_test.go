package egress_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inNamespace is set in the environment of a test that runs in a network of its own.
const inNamespace = "TANDEM_TEST_NAMESPACE"

// runInNamespace runs the calling test once more, in a process with a network and a mount namespace
// of its own, and fails when that fails. It returns what the process printed. Where
// there is no such namespace to be had the test is skipped.
func runInNamespace(t *testing.T, env ...string) string {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func(flags uintptr) ([]byte, error) {
		child := exec.CommandContext(t.Context(), executable, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=5m")
		child.Env = append(os.Environ(), append(env, inNamespace+"=1")...)
		child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		if flags&syscall.CLONE_NEWUSER != 0 {
			child.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
			child.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		return child.CombinedOutput()
	}
	output, err := start(syscall.CLONE_NEWNET | syscall.CLONE_NEWNS)
	if errors.Is(err, syscall.EPERM) { // not root: a user namespace makes us one
		output, err = start(syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER)
	}
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno): // clone(2) itself
		t.Skipf("%s needs namespaces, which take root or user namespaces: %v", t.Name(), err)
	case err != nil:
		t.Fatalf("in its namespace: %v\n%s", err, output)
	case bytes.Contains(output, []byte("\n--- SKIP: ")):
		t.Skipf("%s", output)
	}
	return string(output)
}

// everyAddressIsLocal makes a connection to any address of both families arrive at this
// machine, as far as TCP can reach it at all.
func everyAddressIsLocal() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(socket)
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("name the loopback: %w", err)
	}
	loopback.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, loopback); err != nil {
		return fmt.Errorf("bring the loopback up: %w", err)
	}
	// The last address of the loopback's own network would be a broadcast without its own route.
	for _, prefix := range []string{"0.0.0.0/0", "::/0", "127.255.255.255/32"} {
		if err := addLocalRoute(netip.MustParsePrefix(prefix)); err != nil {
			return fmt.Errorf("make %s local: %w", prefix, err)
		}
	}
	return nil
}

// addLocalRoute is `ip route replace local PREFIX dev lo`.
func addLocalRoute(prefix netip.Prefix) error {
	const loopback = 1 // the index of lo in every namespace
	destination := prefix.Addr().AsSlice()
	route := struct {
		Header unix.NlMsghdr
		Route  unix.RtMsg
		Out    unix.RtAttr
		Index  uint32
		To     unix.RtAttr
	}{
		Header: unix.NlMsghdr{Type: unix.RTM_NEWROUTE,
			Flags: unix.NLM_F_REQUEST | unix.NLM_F_ACK | unix.NLM_F_CREATE | unix.NLM_F_REPLACE},
		Route: unix.RtMsg{
			Family: unix.AF_INET, Dst_len: uint8(prefix.Bits()),
			Table: unix.RT_TABLE_LOCAL, Protocol: unix.RTPROT_BOOT, Scope: unix.RT_SCOPE_HOST, Type: unix.RTN_LOCAL,
		},
		Out:   unix.RtAttr{Len: unix.SizeofRtAttr + 4, Type: unix.RTA_OIF},
		Index: loopback,
		To:    unix.RtAttr{Len: unix.SizeofRtAttr + uint16(len(destination)), Type: unix.RTA_DST},
	}
	if prefix.Addr().Is6() {
		route.Route.Family = unix.AF_INET6
	}
	route.Header.Len = uint32(binary.Size(route) + len(destination))
	var message bytes.Buffer
	if err := binary.Write(&message, binary.NativeEndian, route); err != nil {
		return err
	}
	message.Write(destination)
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	if err := unix.Sendto(socket, message.Bytes(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(socket, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("an answer of %d bytes", n)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// activeOpens is how many TCP connections, of both families, this namespace has begun:
// the kernel counts each when its first packet leaves, whether or not anybody answers.
func activeOpens(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "ActiveOpens" {
				n, err := strconv.Atoi(fields[i])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("the kernel does not count connections:\n%s", text)
	return 0
}
