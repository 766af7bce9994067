//go:build !unix

package tandemtest

import (
	"errors"
	"os/exec"
)

// unprivileged is for systems where nobody is root.
func unprivileged(*exec.Cmd, string) error {
	return errors.New("a throwaway PostgreSQL needs a Unix")
}
