package tandemtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certificate is for a server on 127.0.0.1, and its own authority.
type Certificate struct {
	tls.Certificate

	Pool *x509.CertPool // trusts it, and nobody else
}

// NewCertificate makes a certificate that is valid from an hour ago until the given time.
func NewCertificate(t testing.TB, serial int64, until time.Time) Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "tandem"}, IPAddresses: []net.IP{net.IPv4(127, 0,
			0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	c := Certificate{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, x509.NewCertPool()}
	c.Pool.AddCert(leaf)
	return c
}

// Write puts cert.pem and key.pem into a folder, over those that are there: renamed, as those do who
// renew certificates.
func (c Certificate) Write(t testing.TB, dir string) (certFile, keyFile string) {
	t.Helper()
	secret, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: c.Leaf.Raw},
		keyFile: {Type: "PRIVATE KEY", Bytes: secret}} {
		fresh := name + ".new"
		if err := errors.Join(os.WriteFile(fresh, pem.EncodeToMemory(block), 0o600), os.Rename(fresh, name)); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}
