package load

// What tests of a report need from inside.
var (
	Insights    = insights
	Compare     = compare
	MetricNames = metricNames
	DescribeRun = describeRun
	Starved     = starved
)

// Show writes a figure as the sentences do.
func Show(m Metric) string { return m.show() }
