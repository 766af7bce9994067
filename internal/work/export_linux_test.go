package work

// CPUQuota is what only Linux has.
var CPUQuota = cpuQuota

// How a compute process is scheduled.
const (
	ComputeNice  = computeNice
	ComputeSlice = computeSlice
)
