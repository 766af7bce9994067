package server

// NamesTag reports whether the lines of an If-None-Match name a tag.
func NamesTag(lines []string, tag string) bool { return namesTag(lines, tag) }
