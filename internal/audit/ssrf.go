package audit

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"

	"tandem"
)

const (
	vectorSample  = 3 // vectors of a kind that the quick level tries beside the basic ones
	mostReachable = 3 // accepted ones after which a check has seen enough
)

// nobody replaces public hosts in vectors, so that a deployment that takes one calls nobody (RFC 6761).
const nobody = "audit.invalid"

func ssrfChecks() []Check {
	caller := []Need{NeedCaller}
	const fix = "serve --mode production refuses it; " +
		"narrow --allow-callback-cidr and --allow-callback-host to the receivers you mean"
	return []Check{
		{
			ID: "ssrf-metadata", Group: GroupSSRF,
			Title: "Callbacks to metadata services are refused",
			Level: LevelQuick, Needs: caller,
			Remediation: fixReport, Run: vectorCheck(kindMetadata),
		},
		{
			ID: "ssrf-private", Group: GroupSSRF,
			Title: "Callbacks to private addresses and names are refused",
			Level: LevelQuick, Needs: caller,
			Remediation: fix, Run: vectorCheck(kindPrivate),
		},
		{
			ID: "ssrf-notation", Group: GroupSSRF,
			Title: "URLs that parsers read differently are refused",
			Level: LevelQuick, Needs: caller,
			Remediation: fixReport, Run: vectorCheck(kindNotation),
		},
		{
			ID: "ssrf-port", Group: GroupSSRF,
			Title: "Callbacks to unusual ports are refused",
			Level: LevelQuick, Needs: caller,
			Remediation: "serve --mode production allows 80, 443 and --allow-callback-port only",
			Run:         vectorCheck(kindPort),
		},
		{
			ID: "ssrf-arrival", Group: GroupSSRF,
			Title: "What must not be called is not, whatever the answer says",
			Level: LevelQuick, Needs: []Need{NeedCaller, NeedReceiver},
			Remediation: fix + "; let nothing between callbacks and the network rewrite their addresses",
			Run:         checkArrival,
		},
		{
			ID: "ssrf-redirect", Group: GroupSSRF,
			Title: "Redirects of a receiver are not followed",
			Level: LevelQuick, Needs: []Need{NeedCaller, NeedReceiver},
			Remediation: "put no proxy that follows redirects before callbacks; no flag of tandem follows them",
			Run:         checkRedirect,
		},
		{
			ID: "ssrf-own-address", Group: GroupSSRF,
			Title: "The deployment does not call itself",
			Level: LevelQuick, Needs: caller,
			Remediation: fix, Run: checkOwnAddress,
		},
		{
			ID: "ssrf-oracle", Group: GroupSSRF,
			Title: "Refusals do not tell what is there",
			Level: LevelQuick, Needs: caller,
			Remediation: "let no proxy answer refusals with words of its own; no flag of tandem does",
			Run:         checkOracle,
		},
	}
}

// kind sorts the vectors by what would refuse them.
type kind int

const (
	kindMetadata kind = iota // refused in every mode
	kindPrivate              // refused unless opted in
	kindNotation             // no URL that can be called
	kindPort                 // refused for its port
	kindNone                 // not refused
)

// vectors returns the URLs of a kind that a strict deployment refuses, those first that every audit tries, and
// how many they are. What the receiver's own address needs is not asked, because the operator has opted it in for this
// audit; that many are left out.
func (t *Target) vectors(want kind) (urls []string, first, leftOut int) {
	if want == kindPort {
		return ports(), 4, 0
	}
	var others []string
	for _, vector := range Vectors() {
		address := strings.ReplaceAll(vector.URL, "example.com", nobody)
		found := vector.kind()
		switch {
		case found != want || !utf8.ValidString(address): // JSON has no other text
		case found == kindPrivate && t.leadsToReceiver(address):
			leftOut++
		case vector.basic():
			urls = append(urls, address)
		default:
			others = append(others, address)
		}
	}
	return slices.Concat(urls, others), len(urls), leftOut
}

// ports are those that nobody has opened, ones drawn anew for each audit first.
func ports() []string {
	var urls []string
	add := func(port int) { urls = append(urls, "http://"+net.JoinHostPort(nobody, strconv.Itoa(port))+"/") }
	for range 4 {
		add(10_000 + rand.IntN(50_000))
	}
	for _, port := range []int{
		22, 25, 79, 81, 442, 444, 2375, 3306, 5432, 6379, 6443, 8080, 9200, 10250, 11211, 27017, 65535,
	} {
		add(port)
	}
	return urls
}

// kind says what refuses a vector in production; kindNone where nothing does, or where it takes more than a URL.
func (v *Vector) kind() kind {
	switch {
	case v.Production == called, v.Production == stopped, v.Answers != nil, v.Receiver != "", v.Own.IsValid():
		return kindNone
	case v.Production == invalid:
		return kindNotation
	case v.Demo == blocked:
		return kindMetadata
	case v.Class == ClassPort:
		return kindNone // ports are a kind of their own
	default:
		return kindPrivate
	}
}

// leadsToReceiver reports whether a URL names the host of the audit's receiver, however it is written: also
// as the end of an IPv6 address, where transition mechanisms keep an IPv4 address.
func (t *Target) leadsToReceiver(address string) bool {
	host, own := canonicalHost(address), canonicalHost(t.cfg.CallbackURL)
	if host == "" || host == own {
		return host != ""
	}
	outer, err := netip.ParseAddr(host)
	inner, err2 := netip.ParseAddr(own)
	return err == nil && err2 == nil && outer.Is6() && inner.Is4() && [4]byte(outer.AsSlice()[12:]) == inner.As4()
}

// canonicalHost is the host of a URL in one form: lower-case ASCII without a dot at the end, an address as
// netip writes it; "" if there is none.
func canonicalHost(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	host := u.Hostname()
	if ascii, err := idna.Lookup.ToASCII(host); err == nil {
		host = ascii
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().String()
	}
	return host
}

// sample takes the first ones and some of the others, evenly, in a quick audit.
func (t *Target) sample(urls []string, first int) []string {
	if t.cfg.Level == LevelFull || len(urls) <= first+vectorSample {
		return urls
	}
	some, others := slices.Clone(urls[:first]), urls[first:]
	for i := range vectorSample {
		some = append(some, others[i*len(others)/vectorSample])
	}
	return some
}

// vectorCheck hands every vector of a kind in as a callback URL. It must be refused then, or be seen
// blocked at the dial.
func vectorCheck(want kind) func(context.Context, *Target) Finding {
	return func(ctx context.Context, t *Target) Finding {
		var v verdict
		all, first, leftOut := t.vectors(want)
		refused := 0
		var accepted []Answer
		tried := t.sample(all, first)
		for _, address := range tried {
			a := t.submit(ctx, address)
			switch {
			case a.Err != nil:
				v.expect(a, false, "")
				return v.finding()
			case a.refused():
				refused++
			case a.Status == http.StatusAccepted:
				accepted = append(accepted, a)
			default:
				v.doubtf("%s is neither a refusal nor a 202", a)
			}
			if len(accepted) == mostReachable {
				break
			}
		}
		for _, a := range accepted {
			t.judgeAccepted(ctx, &v, a)
		}
		if v.failed == nil && v.unknown == nil {
			v.passf("%d of %d vectors refused at submission, %d at the dial", refused, len(all), len(accepted))
			if leftOut > 0 {
				v.passf("%d left out: they name the audit's own receiver", leftOut)
			}
		}
		return v.finding()
	}
}

// judgeAccepted watches a callback that was taken until it is blocked, or was tried.
func (t *Target) judgeAccepted(ctx context.Context, v *verdict, a Answer) {
	request, last := t.await(ctx, a, t.cfg.Patience, func(r tandem.Request) bool { return len(r.Attempts) > 0 })
	switch {
	case last.Err != nil || last.Status != http.StatusOK:
		v.failf("%s; what became of it is not known: %s", a, last)
	case len(request.Attempts) == 0:
		v.failf("%s, and not tried within %v", a, t.cfg.Patience)
	case request.Attempts[0].Outcome != tandem.OutcomeBlocked:
		v.failf("%s, and tried: %s", a, oneLine(string(request.Attempts[0].Outcome)))
	}
}

// checkRedirect answers callbacks with redirects to an address of ours, where nobody must come.
func checkRedirect(ctx context.Context, t *Target) Finding {
	var v verdict
	codes := []int{http.StatusFound, http.StatusTemporaryRedirect}
	if t.cfg.Level == LevelFull {
		codes = []int{http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect}
	}
	for _, code := range codes {
		canary := t.cfg.Receiver.hook(http.StatusOK, "")
		first := t.cfg.Receiver.hook(code, t.callback(canary))
		a := t.submit(ctx, t.callback(first))
		if !t.taken(&v, a) {
			return v.finding()
		}
		request, last := t.await(ctx, a, t.cfg.Patience, func(r tandem.Request) bool { return len(r.Attempts) > 0 })
		switch {
		case len(canary.seen()) > 0:
			v.failf("a redirect with %d was followed", code)
		case last.Err != nil || last.Status != http.StatusOK:
			v.doubtf("a redirect with %d: %s", code, last)
		case len(request.Attempts) == 0:
			v.doubtf("a redirect with %d: no try within %v", code, t.cfg.Patience)
		case len(first.seen()) == 0:
			v.doubtf("a redirect with %d: the callback did not arrive (%s); is --callback-url right?", code, oneLine(string(request.Attempts[0].Outcome)))
		case request.Attempts[0].Outcome != tandem.OutcomeRedirect:
			v.failf("a redirect with %d counts as %s", code, oneLine(string(request.Attempts[0].Outcome)))
		default:
			v.passf("a redirect with %d was not followed", code)
		}
	}
	return v.finding()
}

// checkArrival submits addresses of the audit's own receiver that nobody opted in: its host in other
// spellings and under other names of the same machine, and another port. Only what arrives counts.
// Two callbacks that may arrive, one before and one after them, show that the deployment has reached them.
func checkArrival(ctx context.Context, t *Target) Finding {
	var v verdict
	control := func(when string) bool {
		h := t.cfg.Receiver.hook(http.StatusOK, "")
		a := t.submit(ctx, t.callback(h))
		if !t.taken(&v, a) {
			return false
		}
		if h.wait(ctx.Done(), t.cfg.Patience) == 0 {
			v.doubtf("%s: the callback %s did not arrive within %v; is --callback-url right?", a, when, t.cfg.Patience)
			return false
		}
		return true
	}
	if !control("before") {
		return v.finding()
	}
	type attempt struct {
		*hook
		Answer
	}
	var tried []attempt
	for _, base := range t.otherAddresses() {
		h := t.cfg.Receiver.hook(http.StatusOK, "")
		tried = append(tried, attempt{h, t.submit(ctx, base+"/"+h.path)})
	}
	if !control("behind") || pause(ctx, t.cfg.Settle) != nil {
		return v.finding()
	}
	for _, a := range tried {
		v.expect(a.Answer, len(a.seen()) == 0, "and it arrived")
	}
	return v.finding()
}

// otherAddresses are bases under which the receiver might be reached that the operator has not opted in.
func (t *Target) otherAddresses() []string {
	base, err := url.Parse(t.cfg.CallbackURL)
	if err != nil {
		return nil
	}
	port := cmp.Or(base.Port(), map[string]string{"http": "80", "https": "443"}[base.Scheme])
	at := func(host string) string { return base.Scheme + "://" + host + ":" + port }
	all := []string{
		at("127.0.0.1"), at("localhost"), at("LOCALHOST."), at("[::1]"), at("0.0.0.0"), at("[::]"), at("127.1"),
		at("2130706433"),
	}
	if t.cfg.OtherURL != "" {
		all = append(all, strings.TrimSuffix(t.cfg.OtherURL, "/"))
	}
	addr, err := netip.ParseAddr(base.Hostname())
	if err == nil && addr.Unmap().Is4() {
		a := addr.Unmap().As4()
		number := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
		all = append(all,
			at(fmt.Sprint(number)), at(fmt.Sprintf("0x%08x", number)),
			at(fmt.Sprintf("0%o.%d.%d.%d", a[0], a[1], a[2], a[3])),
			at(fmt.Sprintf("0x%x.0x%x.0x%x.0x%x", a[0], a[1], a[2], a[3])),
			at(fmt.Sprintf("%d.%d", a[0], number&0xffffff)),
			at(fmt.Sprintf("%d.%d.%d.%03d", a[0], a[1], a[2], a[3])),
		)
		for _, e := range embeddings(a) {
			// A mapped address is the address itself, and ISATAP stands in somebody's public prefix.
			if t.cfg.Level == LevelFull && e.name != "mapped" && !strings.HasPrefix(e.name, "isatap") {
				all = append(all, at(bracketed(e.address)))
			}
		}
		all = append(all, at("[::ffff:"+addr.Unmap().String()+"%25lo]"),
			base.Scheme+"://user@"+net.JoinHostPort(addr.String(), port))
	}
	return slices.DeleteFunc(all, func(address string) bool {
		other, err := url.Parse(address)
		own := err == nil && other.Port() == port && other.User == nil &&
			canonicalHost(address) == canonicalHost(t.cfg.CallbackURL)
		return own && !strings.Contains(address, "%25")
	})
}

// callback is the public address of a hook.
func (t *Target) callback(h *hook) string {
	return strings.TrimSuffix(t.cfg.CallbackURL, "/") + "/" + h.path
}

// taken reports whether a callback to our receiver was accepted; a deployment that refuses our
// address leaves a check undecided.
func (t *Target) taken(v *verdict, a Answer) bool {
	switch {
	case a.Err != nil:
		v.expect(a, false, "")
	case a.refused():
		v.doubtf("%s: the deployment may not call the receiver (--allow-callback-host, --allow-callback-port)", a)
	case a.Status != http.StatusAccepted:
		v.doubtf("%s: no 202", a)
	default:
		return true
	}
	return false
}

func checkOwnAddress(ctx context.Context, t *Target) Finding {
	var v verdict
	a := t.submit(ctx, t.base.String()+"/healthz")
	if a.Err != nil || a.refused() {
		v.expect(a, a.refused(), "")
		return v.finding()
	}
	if a.Status != http.StatusAccepted {
		v.doubtf("%s is neither a refusal nor a 202", a)
		return v.finding()
	}
	request, last := t.await(ctx, a, t.cfg.Patience, func(r tandem.Request) bool { return len(r.Attempts) > 0 })
	switch {
	case last.Err != nil || last.Status != http.StatusOK || len(request.Attempts) == 0:
		v.doubtf("%s; what became of it is not known: %s", a, last)
	case request.Attempts[0].Outcome == tandem.OutcomeBlocked:
		v.passf("%s, and blocked at the dial", a)
	case request.Attempts[0].StatusCode == 0:
		v.doubtf("%s, but it did not get through (%s)", a, oneLine(string(request.Attempts[0].Outcome)))
	case publicHost(t.base.Hostname()):
		v.doubtf("%s, and answered with %d: the public address leads back here; that of the listener may still be refused", a, request.Attempts[0].StatusCode)
	default:
		v.failf("%s, and answered with %d", a, request.Attempts[0].StatusCode)
	}
	return v.finding()
}

// checkOracle compares the refusals of addresses that differ in everything.
func checkOracle(ctx context.Context, t *Target) Finding {
	var v verdict
	var first Answer
	var words string
	for _, address := range []string{"http://169.254.169.254/", "http://metadata.google.internal/", "http://224.0.0.1/", "http://127.0.0.1/", "http://10.255.255.1/"} {
		a := t.submit(ctx, address)
		if a.Err != nil {
			v.expect(a, false, "")
			break
		}
		if a.Code() == "" { // accepted here: ssrf-private tells
			continue
		}
		text := refusalText(a)
		switch {
		case first.Sent == "":
			first, words = a, text
		case text != words:
			v.failf("%s says %q, %s says %q", first, oneLine(words), a, oneLine(text))
		default:
			v.passf("%s, in the same words as before", a)
		}
	}
	return v.finding()
}

// refusalText is what a caller learns from a refusal.
func refusalText(a Answer) string {
	var problem struct {
		Code   string `json:"code"`
		Title  string `json:"title"`
		Detail string `json:"detail"`
	}
	if json.Unmarshal(a.Body, &problem) != nil {
		return string(a.Body)
	}
	return problem.Code + ": " + problem.Title + ": " + problem.Detail
}
