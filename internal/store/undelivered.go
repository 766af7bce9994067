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

// UndeliveredLimits bound the cost of looking for undelivered callbacks.
type UndeliveredLimits struct {
	Heads   int // entries of the index that begin a group; further ones are not seen
	Sites   int
	Counted int // callbacks counted, of all sites together
}

// DefaultUndeliveredLimits are those of Undelivered.
var DefaultUndeliveredLimits = UndeliveredLimits{Heads: 4096, Sites: 1000, Counted: 50_000}

// UndeliveredHead is the first callback that is parked for a destination.
type UndeliveredHead struct {
	Destination string
	Oldest      time.Time
}

// UndeliveredCount is how many callbacks are parked for a destination.
type UndeliveredCount struct {
	Destination string
	Count       int64
}

// SitesOf groups destinations by their site. names are the destinations of the sites that are returned.
func SitesOf(heads []UndeliveredHead, limit int) (sites []UndeliveredSite, names []string) {
	index := map[string]int{}
	for _, head := range heads {
		site := siteOf(head.Destination)
		i, known := index[site]
		if !known {
			i = len(sites)
			index[site] = i
			sites = append(sites, UndeliveredSite{Site: site})
		}
		sites[i].Oldest = Sooner(sites[i].Oldest, head.Oldest)
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
		if _, kept := index[siteOf(head.Destination)]; kept {
			names = append(names, head.Destination)
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

// Share is how many callbacks are counted at most for each of n destinations.
func (l UndeliveredLimits) Share(n int) int { return max(l.Counted/max(n, 1), 1) }

// CountSites adds the counts of destinations, each of which stopped at most, to those of their sites.
func CountSites(sites []UndeliveredSite, counts []UndeliveredCount, most int) {
	index := make(map[string]int, len(sites))
	for i := range sites {
		index[sites[i].Site] = i
	}
	for _, c := range counts {
		i, listed := index[siteOf(c.Destination)]
		if !listed {
			continue
		}
		site := &sites[i]
		site.Count += c.Count
		site.More = site.More || c.Count >= int64(most)
	}
}
