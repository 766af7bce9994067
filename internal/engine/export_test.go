package engine

// What the external tests reach into.
var (
	RunCompute = runCompute
)
