package engine_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"tandem/internal/engine"
)

// Anyone who waits, waits as long as was said and at most a tenth longer, and few timers do for many.
func TestTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const length, pace, calls = 10 * time.Second, 30 * time.Millisecond, 1000
		p := engine.NewTimeout(length)
		different := map[context.Context]bool{}
		for range calls {
			arrived := time.Now()
			ctx := p.Context(arrived)
			different[ctx] = true
			deadline, _ := ctx.Deadline()
			if wait := deadline.Sub(arrived); wait < length || wait > length+length/10 || ctx.Err() != nil {
				t.Fatalf("after %s: waits %s, %v", arrived, wait, ctx.Err())
			}
			<-time.After(pace)
		}
		if most := int(calls*pace/(length/10)) + 1; len(different) > most {
			t.Errorf("%d contexts, want at most %d", len(different), most)
		}
		last := p.Context(time.Now())
		p.Release()
		if last.Err() == nil || p.Context(time.Now()).Err() != nil {
			t.Error("a release has to end the last context, and only that")
		}
		p.Release()
	})
}

// Between two calls that are further apart than a tenth, the first one's context may have ended.
func TestTimeoutAfterAPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := engine.NewTimeout(time.Second)
		first := p.Context(time.Now())
		<-first.Done()
		if second := p.Context(time.Now()); second.Err() != nil {
			t.Errorf("a new call begins with %v", second.Err())
		}
		p.Release()
	})
}
