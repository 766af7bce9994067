package load

import (
	"fmt"
	"math"
	"strconv"
)

// This file writes figures for people: three significant digits, in the shortest unit.

// show writes a metric's value with its unit; "" when there is no such metric.
func (m Metric) show() string {
	switch m.Unit {
	case "":
		return ""
	case UnitMilliseconds:
		return showMS(m.Value)
	case UnitPerSecond:
		return ShowNumber(m.Value) + "/s"
	case UnitPercent:
		return showPercent(m.Value)
	case UnitMegabytes:
		return ShowNumber(m.Value) + " MB"
	case UnitCores:
		return strconv.FormatFloat(m.Value, 'f', 2, 64)
	default:
		return showCount(int64(m.Value))
	}
}

// showMS writes a time given in milliseconds.
func showMS(ms float64) string {
	switch size := math.Abs(ms); {
	case size == 0:
		return "0 ms"
	case size < 0.0995:
		return ShowNumber(ms*1000) + " µs"
	case size < 999.5:
		return ShowNumber(ms) + " ms"
	case size < 99_950:
		return ShowNumber(ms/1000) + " s"
	default:
		return ShowNumber(ms/60_000) + " min"
	}
}

// ShowNumber writes a number with three digits, or with all before the point.
func ShowNumber(n float64) string {
	switch size := math.Abs(n); {
	case size == 0:
		return "0"
	case size < 0.995:
		return strconv.FormatFloat(n, 'f', min(9, 1-int(math.Floor(math.Log10(size/0.995)))), 64)
	case size < 9.995:
		return strconv.FormatFloat(n, 'f', 2, 64)
	case size < 99.95:
		return strconv.FormatFloat(n, 'f', 1, 64)
	default:
		return showCount(int64(math.Round(n)))
	}
}

// showCount writes a whole number with commas.
func showCount(n int64) string {
	digits := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, digits = "-", digits[1:]
	}
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return sign + digits
}

// showPercent never rounds other values to 0 % or 100 %.
func showPercent(percent float64) string {
	switch {
	case percent > 99.9 && percent < 100:
		return "> 99.9 %"
	case percent > 0 && percent < 0.1:
		return "< 0.1 %"
	case percent == math.Trunc(percent):
		return fmt.Sprintf("%.0f %%", percent)
	default:
		return fmt.Sprintf("%.1f %%", percent)
	}
}

// showTimes writes a factor, as in "as 3.2 times".
func showTimes(factor float64) string {
	if factor < 9.95 {
		return strconv.FormatFloat(factor, 'f', 1, 64) + "×"
	}
	return showCount(int64(math.Round(factor))) + "×"
}

// showBytes writes a size.
func showBytes(n int64) string {
	switch {
	case n < 1000:
		return showCount(n) + " B"
	case n < 1e6:
		return ShowNumber(float64(n)/1e3) + " kB"
	default:
		return ShowNumber(float64(n)/1e6) + " MB"
	}
}

// showSeconds writes a time given in seconds.
func showSeconds(seconds float64) string { return showMS(seconds * 1000) }
