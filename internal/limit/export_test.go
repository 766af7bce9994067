package limit

// Runs counts the runs that are remembered, and the places for them.
func (r *Rate[K]) Runs() (runs, places int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for element := r.order.Front(); element != nil; element = element.Next() {
		runs += len(element.Value.(*client[K]).runs)
	}
	for _, h := range r.shared {
		runs += len(h.runs)
	}
	return runs, len(r.clients) + len(r.shared)
}
