package engine

// What only Linux has.
var (
	HasCPUQuota        = hasCPUQuota
	CanYieldByPriority = canYieldByPriority
)
