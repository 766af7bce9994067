#!/bin/sh
# Three tandem nodes on one throwaway PostgreSQL, to see what several machines do; `make cluster` builds first.
# Ctrl-C ends all of it and removes its folder. start_cluster.sh [PORT]: the first of three ports, 8001.
case $0 in */*) cd "${0%/*}" || exit 1 ;; esac
port=${1:-8001}

fail() {
  echo "$*" >&2
  exit 1
}

programs=$(command -v initdb)
for found in /usr/lib/postgresql/*/bin/initdb; do # Debian's, the newest last
  [ -x "$found" ] && programs=$found
done
[ -n "$programs" ] || fail "PostgreSQL is not installed: there is no initdb. On Debian: apt-get install postgresql; on macOS: brew install postgresql."
programs=${programs%/*}

# PostgreSQL refuses to run as root, and lets another user do it.
account=
if [ "$(id -u)" = 0 ]; then
  account=postgres
  id "$account" >/dev/null 2>&1 || account=nobody
fi
unprivileged() {
  if [ -n "$account" ]; then
    su "$account" -s /bin/sh -c 'exec "$0" "$@"' -- "$@"
  else
    "$@"
  fi
}

folder=$(mktemp -d) || exit 1
base=$folder/postgres
nodes=

stop() {
  trap '' INT TERM HUP
  for pid in $nodes; do kill "$pid" 2>/dev/null; done
  wait
  [ -e "$base/data/postmaster.pid" ] && unprivileged "$programs/pg_ctl" -D "$base/data" -m immediate -s stop
  rm -rf "$folder"
}
trap stop EXIT
trap 'echo; echo "Stopping."; exit 0' INT TERM HUP

if [ -x ./tandem ]; then
  tandem=./tandem
elif [ -x bin/tandem ]; then
  tandem=bin/tandem
else
  command -v go >/dev/null || fail "There is neither a built tandem beside this file nor Go to build one."
  echo "Building tandem from source; the first time this takes a minute or two."
  tandem=$folder/tandem
  go build -o "$tandem" ./cmd/tandem || exit 1
fi

chmod 711 "$folder" && mkdir "$base" || exit 1
[ -z "$account" ] || chown "$account" "$base" || exit 1
{
  unprivileged "$programs/initdb" -D "$base/data" -U tandem -A trust -E UTF8 --locale=C &&
    unprivileged sh -c "printf \"listen_addresses = ''\nunix_socket_directories = '%s'\n\" '$base' >>'$base/data/postgresql.conf'" &&
    unprivileged "$programs/pg_ctl" -D "$base/data" -l "$base/log" -w start # in a session of its own: Ctrl-C is not for it
} >"$folder/postgres.log" 2>&1 </dev/null || {
  cat "$folder/postgres.log" "$base/log" 2>/dev/null >&2
  fail "PostgreSQL does not start."
}

db="postgres:///postgres?host=$base&user=tandem"
list=
for n in 1 2 3; do
  url=http://127.0.0.1:$((port + n - 1))
  "$tandem" serve --listen "${url#http://}" --db "$db" --drain-delay 1s >"$folder/node$n.log" 2>&1 &
  pid=$!
  nodes="$nodes $pid"
  until "$tandem" health --url "$url" >/dev/null 2>&1; do
    kill -0 "$pid" 2>/dev/null || {
      cat "$folder/node$n.log" >&2
      fail "Node $n does not start."
    }
    sleep 0.1
  done
  list="$list  node $n  $url  pid $pid
"
done

cat <<END
Three nodes share one PostgreSQL:

${list}
Ask one of them for work, and read from another what came of it:

curl -s http://127.0.0.1:$port/async -H 'Content-Type: application/json' \\
  -d '{"data": {"n": 1}, "callback_url": "http://127.0.0.1:$((port + 2))/test-callback"}'
curl -s 'http://127.0.0.1:$((port + 1))/requests?limit=1'

Kill one in the middle of its work (kill -9 and its pid): the others take over within 15 s. One more joins with

$tandem serve --listen 127.0.0.1:$((port + 3)) --db '$db'

Logs are in $folder. Ctrl-C ends everything and removes it.
END
wait
echo "Every node has ended."
