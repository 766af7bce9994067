package tandem_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"

	"tandem"
)

// A receiver needs these ten lines: read, verify, parse, and answer 2xx.
func ExampleSecret_Verify() {
	secret, _ := tandem.ParseSecret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw") // as `tandem serve` printed it

	receive := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 17<<20)) // the bytes as sent, before any parsing
		if err != nil || secret.Verify(r.Header, body, time.Now()) != nil {
			http.Error(w, "not from tandem", http.StatusUnauthorized)
			return
		}
		var callback tandem.Callback
		if err := json.Unmarshal(body, &callback); err != nil {
			http.Error(w, "not a callback", http.StatusBadRequest)
			return
		}
		fmt.Println(callback.Type, callback.RequestID, string(callback.Result)) // drop repeats by RequestID
	}

	// What tandem sends, and what somebody sends who does not know the secret.
	body := []byte(`{"type":"request.completed","request_id":"req_1","status":"completed","result":{"sum":42}}`)
	for _, sender := range []tandem.Secret{secret, tandem.NewSecret()} {
		now := time.Now()
		r := httptest.NewRequest(http.MethodPost, "/hook", bytes.NewReader(body))
		r.Header.Set(tandem.HeaderWebhookID, "req_1")
		r.Header.Set(tandem.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
		r.Header.Set(tandem.HeaderWebhookSignature, sender.Sign("req_1", now, body))
		w := httptest.NewRecorder()
		receive(w, r)
		fmt.Println(w.Code)
	}
	// Output:
	// request.completed req_1 {"sum":42}
	// 200
	// 401
}
