package load

// What tests of a report need from inside.
var (
	Insights    = insights
	Compare     = compare
	MetricNames = metricNames
)
