package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"tandem"
)

// versionCommand says which tandem this is.
type versionCommand struct {
	JSON bool `name:"json" help:"As JSON."`
}

// build is what a binary knows of its making.
type build struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
	Commit   string `json:"commit"`   // "unknown" when it was not built from a checkout
	Modified bool   `json:"modified"` // there were changes beside the commit
}

// thisBuild reads what the Go tool chain left in the binary.
func thisBuild() build {
	b := build{Version: tandem.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Commit: "unknown"}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, setting := range info.Settings {
		switch setting.Key {
		case "vcs.revision":
			b.Commit = setting.Value
		case "vcs.modified":
			b.Modified = setting.Value == "true"
		}
	}
	return b
}

// Run prints the version.
func (c *versionCommand) Run(t *terminal) error {
	b := thisBuild()
	if c.JSON {
		text, err := json.Marshal(b)
		if err != nil {
			return fmt.Errorf("encode version: %w", err)
		}
		t.printf("%s\n", text)
		return nil
	}
	modified := ""
	if b.Modified {
		modified = " (modified)"
	}
	t.printf("tandem %s\n%s %s/%s\ncommit %s%s\n", b.Version, b.Go, b.OS, b.Arch, b.Commit, modified)
	return nil
}
