package audit

import (
	_ "embed" // checks.txt
	"net/http"
	"strconv"
	"strings"
)

// checkText is the table of all checks; it begins with a description of its form.
//
//go:embed checks.txt
var checkText string

// needWords are the needs in checkText.
// :: word → need
var needWords = map[string]Need{
	"caller": NeedCaller, "key": NeedKey, "second": NeedSecondKey, "stats": NeedStats, "receiver": NeedReceiver,
	"tls": NeedTLS,
}

// runs are the functions behind checkText.
// :: id of a check → function
var runs = map[string]checkFunc{
	"rate-limit-announced":      sends(announced, probes(cheap)),
	"rate-limit-reads":          sends(announced, probes(glance)),
	"rate-limit-forwarded-for":  checkRateForwarded,
	"rate-limit-batch":          checkRateBatch,
	"rate-limit-wrong-key":      checkRateWrongKey,
	"rate-limit-enforced":       checkEnforced(cheap, (*target).otherPosts),
	"rate-limit-reads-enforced": checkEnforced(glance, (*target).otherReads),
	"ssrf-metadata":             submits(kindMetadata),
	"ssrf-private":              submits(kindPrivate),
	"ssrf-notation":             submits(kindNotation),
	"ssrf-port":                 submits(kindPort),
	"ssrf-arrival":              checkArrival,
	"ssrf-redirect":             checkRedirect,
	"ssrf-own-address":          checkOwnAddress,
	"ssrf-oracle":               checkOracle,
	"input-json": refuses(``, `{"data":{"a":1}`, `{"data":{"a":1}}}`, `{"data":{"a":NaN},"task":"echo"}`,
		"{\"data\":{\"a\":\"\xff\"},\"task\":\"echo\"}"),
	"input-duplicate-names": refuses(`{"data":{"a":1,"a":2},"task":"echo"}`,
		`{"data":{"a":1},"task":"echo","task":"compute"}`),
	"input-depth": refuses(`{"task":"echo","data":` + nested(1_100) + `}`),
	"input-types": refuses(`[]`, `{"data":{},"task":"echo"}`, `{"data":"x","task":"echo"}`,
		`{"data":{"a":1},"complexity":11,"task":"echo"}`, `{"data":{"a":1},"complexity":1e400,"task":"echo"}`,
		`{"data":{"a":1},"task":"rm -rf"}`),
	"input-media-type": sends(must(func(a answer) bool {
		return a.Status == http.StatusUnsupportedMediaType || a.Status == http.StatusForbidden
	}, "want 415"), formPosts),
	"input-query": sends(isRefused, badQueries),
	"input-path": sends(must(func(a answer) bool {
		return a.Status >= 300 && a.Status < 500 && a.Header.Get("Set-Cookie") == ""
	}, "want a 4xx without details"), strangePaths),
	"input-injection":  checkInjection,
	"error-problems":   checkProblems,
	"error-markup":     checkMarkup,
	"error-request-id": checkRequestID,
	"error-5xx":        looksBack(func(t *target) []string { return t.crashes }, hardRequests),
	"error-internals": looksBack(func(t *target) []string { return t.leaks },
		probes(append([]probe{{Path: "/requests/%27%22%3C%00"}}, failing...)...)),
	"error-addresses":      checkAddresses,
	"error-secrets":        checkSecrets,
	"auth-required":        checkAuthRequired,
	"auth-wrong-key":       checkWrongKeys,
	"auth-headers":         checkHeadersForKeys,
	"auth-challenge":       checkChallenge,
	"auth-key-in-url":      checkKeyInURL,
	"auth-scopes":          checkScopes,
	"callback-signed":      checkSigned,
	"tenant-request":       checkForeignRequest,
	"tenant-list":          checkForeignLists(isHistory),
	"tenant-submissions":   checkForeignLists(isSubmissions),
	"tenant-fairness":      checkFairness,
	"headers-nosniff":      everywhere(nosniff),
	"headers-no-store":     checkNoStore,
	"headers-pages":        checkPages,
	"headers-banner":       everywhere(noBanner),
	"headers-security-txt": checkSecurityTxt,
	"cors-origin":          checkOrigins,
	"cors-preflight":       sends(unshared, preflights),
	"cors-cross-site-post": sends(status(http.StatusForbidden), crossSite),
	"cors-rebinding":       checkRebinding,
	"tls-in-use":           checkTLSInUse,
	"tls-versions":         checkTLSVersions,
	"tls-certificate":      checkCertificate,
	"tls-hsts": sends(strictTransport, probes(
		probe{Path: "/livez"}, probe{Path: "/docs"}, probe{Path: "/requests?limit=1"},
		probe{Path: "/audit-no-such-path"},
	)),
	"limit-announced-body": checkAnnouncedBody,
	"limit-streamed-body":  checkStreamedBody,
	"limit-header":         checkHugeHeader,
	"limit-page":           sends(isRefused, hugePages),
	"limit-methods": sends(must(func(a answer) bool {
		return a.blamed() || a.Status == http.StatusNotImplemented
	}, "want 405"), strangeMethods),
	"limit-slow-client": checkSlowClient,
	"breaker-opens":     checkBreaker,
	"health-open":       sends(status(http.StatusOK), health),
	"health-details":    sends(fewDetails, health),
	"stats-restricted":  sends(isDenied, operations),
	"stats-count":       checkStatsCount,
	"stats-secrets":     checkStatsSecrets,
	"api-document":      checkDocument,
}

// Checks returns the table, in the order of the report.
func Checks() []Check {
	var all []Check
	for section := range strings.SplitSeq(checkText, "\n== ") {
		group, _, _ := strings.Cut(section, "\n")
		for _, row := range rows(checkText, group) {
			all = append(all, Group(group).check(row))
		}
	}
	return all
}

// check makes a check of a row of checkText.
func (g Group) check(row []string) Check {
	c := Check{ID: row[0], Group: g, Title: row[2], Remediation: row[3], run: runs[row[0]]}
	for word := range strings.FieldsSeq(row[1]) {
		if stage, found := strings.CutPrefix(word, "stage"); found {
			c.stage, _ = strconv.Atoi(stage) // digits: the table is ours
		} else if need, found := needWords[word]; found {
			c.Needs = append(c.Needs, need)
		} else {
			c.Level = Level(word)
		}
	}
	return c
}
