#!/usr/bin/env bash
# Asks a service about the backups of a large site, and prints one table: questions in batches,
# single ones, lists, and the service's memory, at three sizes of the catalogue.
#
#   benches/verdicts.sh [ITEMS...]          [10000 100000 1000000]
#
# The service, its catalogue in SQLite, repositories in a directory and the load generator share
# this machine. Ports 18798 and 18799 of loopback must be free. About 4 GB of space beneath WORK and,
# for a million, ten minutes, most of them to lay the site.
#
# Environment: WORK  scratch directory   [target/verdicts]
#              SECS  length of each load [10]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK=${WORK:-$ROOT/target/verdicts}
SECS=${SECS:-10}
BIN=${CARGO_TARGET_DIR:-$ROOT/target}/release
KEDGE=$BIN/kedge FLEET=$BIN/examples/fleet
SIZES=("$@"); [ ${#SIZES[@]} -gt 0 ] || SIZES=(10000 100000 1000000)

cd "$ROOT"
cargo build --quiet --locked --release --package kedge
cargo build --quiet --locked --release --package kedge-testkit --example fleet
service=
trap '[ -z "$service" ] || kill "$service" 2>/dev/null || true' EXIT

lay() { # site items
  local site=$1 items=$2 project
  [ -e "$site/filled" ] && return
  rm -rf "$site"; mkdir -p "$site"
  "$FLEET" lay "$site" "$items"
  for project in $("$FLEET" projects); do
    "$KEDGE" repo init --config "$site/kedge.toml" --project "$project" >/dev/null
  done
  "$FLEET" fill "$site" "$items"
  touch "$site/filled"
}
settle() { # until the service has done nothing for three seconds, after it has for eight
  local before now
  sleep 8
  while :; do
    before=$(cut -d' ' -f14,15 "/proc/$service/stat" | tr ' ' '+'); sleep 3
    now=$(cut -d' ' -f14,15 "/proc/$service/stat" | tr ' ' '+')
    [ $(($now - ($before))) -gt 10 ] || return 0
  done
}
ask() { # site name how connections [rate]
  local line
  line=$("$FLEET" ask "$1" "$3" "$SECS" "$4" ${5:+"$5"})
  printf '| %s | %s | %s | %s | %s |\n' "$items" "$2" \
    "$(field requests_per_s "$line")" "$(field p50_ms "$line")" "$(field p99_ms "$line")"
}
field() { sed -nE "s/.*\"$1\":([0-9.]+).*/\1/p" <<<"$2"; }

echo "| backups | load | requests/s | p50 ms | p99 ms |"
echo "|---|---|---|---|---|"
for items in "${SIZES[@]}"; do
  site=$WORK/$items
  lay "$site" "$items"
  "$KEDGE" serve --config "$site/kedge.toml" >"$site/log" 2>&1 & service=$!
  for _ in $(seq 150); do (: </dev/tcp/127.0.0.1/18799) 2>/dev/null && break; sleep 0.2; done
  settle                           # what a start brings with it is not what is measured
  ask "$site" "100 questions about 100 servers, 8 connections" batches 8
  ask "$site" "1 question, 32 connections" single 32
  ask "$site" "1 question, 300 requests/s" single 32 300
  ask "$site" "list, first 100 of two filters" list 1
  ask "$site" "the same, deep, by marker" deep 1
  ask "$site" "every one of 100 servers, streamed" fleet 1
  printf '| %s | peak memory of the service: %s MiB | | | |\n' "$items" \
    "$(($(sed -nE 's/^VmHWM:[[:space:]]+([0-9]+) kB/\1/p' "/proc/$service/status") >> 10))"
  kill "$service"; wait "$service" || true; service=
done
