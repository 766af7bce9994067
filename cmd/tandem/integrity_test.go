package main_test

import (
	"database/sql"
	"errors"
	"testing"
)

// checkIntegrity runs SQLite's own check and recounts what the counters claim.
func checkIntegrity(t *testing.T, db *sql.DB) {
	t.Helper()
	var verdict string
	if err := db.QueryRow(`PRAGMA integrity_check`).Scan(&verdict); err != nil || verdict != "ok" {
		t.Errorf("integrity_check: %q, %v", verdict, err)
	}
	for counter, recount := range map[string]string{
		"unfinished/all":      `SELECT count(*) FROM requests WHERE lane IS NOT NULL OR status IN ('pending', 'processing')`,
		"rows/all":            `SELECT count(*) FROM requests`,
		"accepted/sync":       `SELECT count(*) FROM requests WHERE mode = 'sync'`,
		"accepted/async":      `SELECT count(*) FROM requests WHERE mode = 'async'`,
		"now/pending":         `SELECT count(*) FROM requests WHERE status = 'pending'`,
		"now/processing":      `SELECT count(*) FROM requests WHERE status = 'processing'`,
		"ended/completed":     `SELECT count(*) FROM requests WHERE status IN ('completed', 'callback_sent', 'callback_failed')`,
		"ended/callback_sent": `SELECT count(*) FROM requests WHERE status = 'callback_sent'`,
		"ended/failed":        `SELECT count(*) FROM requests WHERE status = 'failed'`,
		"failure/interrupted": `SELECT count(*) FROM requests WHERE error_code = 'interrupted'`,
		"callback/sent":       `SELECT count(*) FROM requests WHERE callback_status = 'sent'`,
		"attempt/delivered":   `SELECT count(*) FROM attempts WHERE outcome = 'delivered'`,
	} {
		var counted, claimed int64
		if err := db.QueryRow(recount).Scan(&counted); err != nil {
			t.Errorf("recount %s: %v", counter, err)
		}
		err := db.QueryRow(`SELECT value FROM counters WHERE name = ?`, counter).Scan(&claimed)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("read counter %s: %v", counter, err)
		}
		if counted != claimed {
			t.Errorf("counter %s says %d, the table has %d", counter, claimed, counted)
		}
	}
}
