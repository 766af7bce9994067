package egress_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"

	"tandem"
)

// A whole exchange over loopback, 64 at a time, receiver included.
func BenchmarkPost(b *testing.B) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	quick := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	})}
	go func() { _ = quick.Serve(server) }()
	defer quick.Close()
	cfg := demo()
	cfg.HostConcurrency = 64
	client := newClient(b, cfg)
	target := "http://" + server.Addr().String() + "/"
	header := http.Header{"Content-Type": {"application/json"}, "User-Agent": {"tandem/test"}}
	body := make([]byte, 500)
	b.SetParallelism(32)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			permit, err := client.Reserve(context.Background(), target, "")
			if err != nil {
				b.Error(err)
				return
			}
			if got := permit.Post(context.Background(), header, body); got.Outcome != tandem.OutcomeDelivered {
				b.Errorf("Post = %+v", got)
				return
			}
		}
	})
}

// What Reserve and Release cost by themselves.
func BenchmarkReserve(b *testing.B) {
	client := newClient(b, demo())
	b.ReportAllocs()
	for b.Loop() {
		permit, err := client.Reserve(context.Background(), "https://hooks.example.com/callback", "")
		if err != nil {
			b.Fatal(err)
		}
		permit.Release()
	}
}

// Check of a URL that nobody has asked for before; BenchmarkCheck asks for one again and again.
func BenchmarkCheckNew(b *testing.B) {
	client := newClient(b, demo())
	b.ReportAllocs()
	for i := range b.N {
		if err := client.Check("https://hooks.example.com/callback/" + strconv.Itoa(i)); err != nil {
			b.Fatal(err)
		}
	}
}
