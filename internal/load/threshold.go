package load

// Threshold is a bound on one metric of a report, such as async.accept.p99<10ms.
type Threshold struct {
	Expression string  // as given
	Metric     string  // see Metrics
	Operator   string  // <, <=, >, >=, ==
	Value      float64 // in the unit of the metric
}
