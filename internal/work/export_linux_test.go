package work

// CPUQuota is what only Linux has.
var CPUQuota = cpuQuota

// How a compute process is scheduled.
const (
	ComputeNice  = computeNice
	ComputeSlice = computeSlice
)

// Delegated is the folder in which commands get their cgroups; "": they get none.
func Delegated() string { return delegated() }

// WithoutCgroups runs a function as if none were delegated. No command may be running.
func WithoutCgroups(run func()) {
	before := delegated
	defer func() { delegated = before }()
	delegated = func() string { return "" }
	run()
}
