package work

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/bits"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	opsPerComplexity = 3
	roundsPerLook    = 1 << 21 // between two looks at ctx: about 1 ms
	looksPerOp       = 24      // an operation is looksPerOp × roundsPerLook rounds: about 25 ms of one core

	micro = 1_000_000         // fixed point: 1.0 in micro-units
	pico  = 1_000_000_000_000 // 1.0 in pico-units
)

// computeResult is what the task "compute" returns.
type computeResult struct {
	Sum        float64 `json:"sum"`        // of one value in [0, 1) for each operation, 6 decimals
	Product    float64 `json:"product"`    // of the same values + 0.5, 6 decimals
	Operations int     `json:"operations"` // 3 × complexity
	Checksum   string  `json:"checksum"`   // SHA-256 of the final state, hex
}

// runCompute is deterministic work for one core, linear in complexity. It depends
// on what data means, not on how it is written, and is done in uint64 up to the
// last division, so that every architecture and release gives the same answer.
func runCompute(ctx context.Context, data json.RawMessage, complexity int) (json.RawMessage, error) {
	state, err := seed(data)
	if err != nil {
		return nil, err
	}
	operations := opsPerComplexity * complexity
	sum, product := uint64(0), uint64(pico) // micro-units and pico-units: 1.5^30 still fits
	for range operations {
		for range looksPerOp {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			state.advance(roundsPerLook)
		}
		value := (state[0] >> 32) * micro >> 32 // [0, 1) in micro-units
		sum += value
		high, low := bits.Mul64(product, value+micro/2)
		product, _ = bits.Div64(high, low, micro)
	}
	return json.Marshal(computeResult{
		Sum:        float64(sum) / micro,
		Product:    float64((product+pico/micro/2)/(pico/micro)) / micro,
		Operations: operations,
		Checksum:   state.checksum(),
	})
}

// canonical is data as RFC 8785 writes it: equal data is equal bytes.
func canonical(data json.RawMessage) ([]byte, error) {
	text := jsontext.Value(slices.Clone(data)) // Canonicalize works in place
	if err := text.Canonicalize(); err != nil {
		return nil, fmt.Errorf("canonicalize data: %w", err)
	}
	return text, nil
}

// seed makes the first state from the SHA-256 of the canonical form of data.
func seed(data json.RawMessage) (xoshiro, error) {
	text, err := canonical(data)
	if err != nil {
		return xoshiro{}, err
	}
	sum := sha256.Sum256(text)
	var state xoshiro
	for i := range state {
		state[i] = binary.BigEndian.Uint64(sum[8*i:])
	}
	state[3] |= 1 // the generator must not start at zero
	return state, nil
}

// xoshiro is the state of the generator xoshiro256++ (Blackman and Vigna), whose
// rounds depend on each other: nothing to parallelise and nothing to skip.
type xoshiro [4]uint64

// advance does n rounds. It neither allocates, locks nor calls anything.
func (x *xoshiro) advance(n int) {
	s0, s1, s2, s3 := x[0], x[1], x[2], x[3]
	for range n {
		t := s1 << 17
		s2 ^= s0
		s3 ^= s1
		s1 ^= s2
		s0 ^= s3
		s2 ^= t
		s3 = bits.RotateLeft64(s3, 45)
	}
	x[0], x[1], x[2], x[3] = s0, s1, s2, s3
}

func (x *xoshiro) checksum() string {
	var state []byte
	for _, word := range x {
		state = binary.BigEndian.AppendUint64(state, word)
	}
	sum := sha256.Sum256(state)
	return hex.EncodeToString(sum[:])
}
