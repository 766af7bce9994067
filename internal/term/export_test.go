package term

// Wrap opens wrap.
var Wrap = wrap

// Draw opens draw.
func (p *Progress) Draw(s Step, columns int) string { return p.draw(s, columns) }
