#!/bin/sh
# Starts tandem in demo mode, for people who only want to click: the binary that lies beside this
# file or in bin, or else the source with Go. Arguments are passed on: start_server.sh --listen :9000
case $0 in */*) cd "${0%/*}" || exit 1 ;; esac

if [ -x ./tandem ]; then
  exec ./tandem serve "$@"
elif [ -x bin/tandem ]; then
  exec bin/tandem serve "$@"
elif command -v go >/dev/null 2>&1; then
  echo "Building tandem from source; the first time this takes a minute or two."
  exec go run ./cmd/tandem serve "$@"
fi

echo "There is neither a built tandem beside this file nor Go to build one." >&2
echo "Install Go 1.26 or later from https://go.dev/dl/ and start this again." >&2
exit 1
