package store

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Undelivered are the callbacks that could not be delivered yet.
type Undelivered struct {
	// Oldest is when the longest wait began: the end of the work of a parked callback, or the moment
	// when another one became due. The zero time means that no callback waits.
	Oldest time.Time
	// Sites are where parked callbacks go, the longest wait first; at most 1,000.
	Sites []UndeliveredSite
}

// UndeliveredSite is what one site has not taken yet.
type UndeliveredSite struct {
	Site   string    // scheme://host:port
	Count  int64     // parked callbacks
	More   bool      // there may be more than Count: counting stops at a limit
	Oldest time.Time // when the work of the first of them ended
}

// undeliveredLimits bound the cost of looking for undelivered callbacks.
type undeliveredLimits struct {
	heads   int // entries of the index that begin a group; further ones are not seen
	sites   int
	counted int // callbacks counted, of all sites together
}

var defaultUndeliveredLimits = undeliveredLimits{heads: 4096, sites: 1000, counted: 50_000}

// undeliveredHead is the first callback that is parked for a destination.
type undeliveredHead struct {
	destination string
	oldest      time.Time
}

// undeliveredCount is how many callbacks are parked for a destination.
type undeliveredCount struct {
	destination string
	count       int64
}

// sitesOf groups destinations by their site. names are the destinations of the sites that are returned.
func sitesOf(heads []undeliveredHead, limit int) (sites []UndeliveredSite, names []string) {
	index := map[string]int{}
	for _, head := range heads {
		site := siteOf(head.destination)
		i, known := index[site]
		if !known {
			i = len(sites)
			index[site] = i
			sites = append(sites, UndeliveredSite{Site: site})
		}
		sites[i].Oldest = sooner(sites[i].Oldest, head.oldest)
	}
	slices.SortFunc(sites, func(a, b UndeliveredSite) int {
		return cmp.Or(a.Oldest.Compare(b.Oldest), strings.Compare(a.Site, b.Site))
	})
	sites = sites[:min(len(sites), limit)]
	clear(index)
	names = make([]string, 0, len(heads))
	for i := range sites {
		index[sites[i].Site] = i
	}
	for _, head := range heads {
		if _, kept := index[siteOf(head.destination)]; kept {
			names = append(names, head.destination)
		}
	}
	slices.Sort(names)
	return sites, slices.Compact(names)
}

// siteOf cuts the path off a destination.
func siteOf(destination string) string {
	scheme, rest, found := strings.Cut(destination, "://")
	if !found {
		return destination
	}
	host, _, _ := strings.Cut(rest, "/")
	return scheme + "://" + host
}

// share is how many callbacks are counted at most for each of n destinations.
func (l undeliveredLimits) share(n int) int { return max(l.counted/max(n, 1), 1) }

// countSites adds the counts of destinations, each of which stopped at most, to those of their sites.
func countSites(sites []UndeliveredSite, counts []undeliveredCount, most int) {
	index := make(map[string]int, len(sites))
	for i := range sites {
		index[sites[i].Site] = i
	}
	for _, c := range counts {
		i, listed := index[siteOf(c.destination)]
		if !listed {
			continue
		}
		site := &sites[i]
		site.Count += c.count
		site.More = site.More || c.count >= int64(most)
	}
}
