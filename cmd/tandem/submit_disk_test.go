//go:build linux

package main_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tandem"
)

// TestSubmissionsOnAFullDisk: what was answered is kept, whole batches of it, and nothing else; with room again all
// goes on by itself.
func TestSubmissionsOnAFullDisk(t *testing.T) {
	t.Parallel()
	const size, room = 3 << 20, 2 << 20
	dir := smallDisk(t, size)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, room), 0o600); err != nil {
		t.Fatal(err)
	}
	p := startServe(t, "--db", filepath.Join(dir, "full.db"), "--external-delay", "0s")
	name := strings.Repeat("\U0001F468\u200d\U0001F469\u200d\U0001F467\u200d\U0001F466", 50) // 50 characters of 25 bytes
	entry := fmt.Sprintf(`{"firstName":%q,"lastName":%q}`, name, name)
	batch := `{"submissions":[` + entry + strings.Repeat(","+entry, 9) + `]}`

	kept, refused := 0, 0
	var batches []string
	for refused < 20 {
		s := mustSubmit(t, p.url, batch)
		switch {
		case s.status == http.StatusOK && s.Total == 10:
			kept += 10
			batches = append(batches, s.Batch)
		case s.status == http.StatusServiceUnavailable && s.Code == tandem.CodeStoreUnavailable:
			refused++
		default:
			t.Fatalf("%d %s", s.status, s.body)
		}
		if one := mustSubmit(t, p.url, entry); one.status == http.StatusOK {
			kept++
		} else if one.status != http.StatusServiceUnavailable {
			t.Fatalf("%d %s", one.status, one.body)
		}
		if kept > 100_000 {
			t.Fatal("the disk is never full")
		}
	}
	if len(batches) == 0 {
		t.Fatal("nothing was accepted before the disk was full")
	}
	var list struct {
		Total int `json:"total"`
		Count int `json:"count"`
	}
	if err := fetchJSON(p.url+"/api/submissions?limit=1", &list); err != nil || list.Total != kept {
		t.Errorf("%d are kept and %d were answered; %v", list.Total, kept, err)
	}
	for _, id := range batches {
		if err := fetchJSON(p.url+"/api/submissions?batch_id="+id, &list); err != nil || list.Count != 10 {
			t.Errorf("%s has %d entries; %v", id, list.Count, err)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := poll("a submission with room again", func() error {
		if s := mustSubmit(t, p.url, batch); s.status != http.StatusOK || strings.Count(s.body, `"external":"confirmed"`) != 10 {
			return fmt.Errorf("answered %d %.300s", s.status, s.body)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d were kept until it was full", kept)
}
