#!/usr/bin/env bash
# A one-node Ceph with its S3 gateway for the long form of the tests, on loopback, by an
# ordinary user, all of it below one folder. Runs until its input ends, so that it dies
# with whoever started it; `target/lab/s3` tells the tests where it is.
#
# usage: lab/ceph/start.sh    (needs ceph-mon, ceph-mgr, ceph-osd, ceph-common, radosgw, curl, restic)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH=$PATH:/usr/sbin:/sbin
LAB=$PWD/target/lab
# Short, since the path of a Unix socket is bounded and the repository may lie deep.
RUN=$(mktemp -d /tmp/kedge-ceph.XXXXXX)
IP=127.0.0.1 BUCKET=kedge-test KEY=kedgelab
SECRET=$(tr -d - </proc/sys/kernel/random/uuid)
PIDS=()

die() { echo "ceph: $*" >&2; exit 1; }

stop() {
  trap - EXIT
  rm -f "$LAB/s3"
  for pid in "${PIDS[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
  for pid in "${PIDS[@]}"; do
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
  rm -rf "$RUN"
}
trap stop EXIT
trap 'exit 1' INT TERM HUP

# A port nobody uses now, from a range below the kernel's own.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/$IP/$port") 2>/dev/null || { echo "$port"; return; }
  done
  die "no free port"
}

spawn() {   # NAME CMD...
  local name=$1; shift
  "$@" >"$LAB/log/$name.log" 2>&1 </dev/null &
  PIDS+=($!)
}

wait_for() {   # NAME SECONDS CMD...: polls; gives up when the program last spawned has died
  local name=$1 end=$((SECONDS + $2)); shift 2
  until "$@" >"$LAB/log/wait.log" 2>&1; do
    kill -0 "${PIDS[-1]}" 2>/dev/null || { tail -n 20 "$LAB/log/$name.log" >&2; die "$name died"; }
    [ $SECONDS -lt "$end" ] || { cat "$LAB/log/wait.log" >&2; die "$name is not ready"; }
    sleep 0.2
  done
}

rm -rf "$LAB"; mkdir -p "$LAB/log" "$RUN/mgr" "$RUN/osd" "$RUN/rgw"
PORT_MON=$(free_port) PORT_MON1=$(free_port) PORT_RGW=$(free_port)
FSID=$(cat /proc/sys/kernel/random/uuid)
export CEPH_CONF=$RUN/ceph.conf
cat >"$CEPH_CONF" <<X
[global]
fsid = $FSID
mon host = [v2:$IP:$PORT_MON/0,v1:$IP:$PORT_MON1/0]
# Without authentication the gateway hangs.
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = $RUN/\$name.keyring
log file =
log to stderr = true
err to stderr = true
admin socket = $RUN/\$name.\$pid.asok
run dir = $RUN
crash dir = $RUN
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
mon warn on insecure global id reclaim allowed = false
mon data avail warn = 2
mon data avail crit = 1
mon max pg per osd = 500
[mon.a]
host = localhost
mon data = $RUN/mon
[mgr]
mgr data = $RUN/mgr
mgr initial modules =
[osd]
osd data = $RUN/osd
osd objectstore = bluestore
bluestore block create = true
bluestore block size = 10737418240
osd memory target = 939524096
bluestore cache size = 134217728
bluestore cache autotune = false
osd op num shards = 2
osd class update on start = false
osd crush update on start = false
[client]
admin socket =
[client.rgw]
rgw data = $RUN/rgw
rgw frontends = beast endpoint=$IP:$PORT_RGW
X

{
  ceph-authtool --create-keyring "$RUN/first.keyring" --gen-key -n mon. --cap mon 'allow *'
  ceph-authtool --create-keyring "$RUN/client.admin.keyring" --gen-key -n client.admin \
    --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  ceph-authtool "$RUN/first.keyring" --import-keyring "$RUN/client.admin.keyring"
  monmaptool --create --clobber --fsid "$FSID" \
    --addv a "[v2:$IP:$PORT_MON,v1:$IP:$PORT_MON1]" "$RUN/monmap"
  ceph-mon --mkfs -i a --monmap "$RUN/monmap" --keyring "$RUN/first.keyring"
} >"$LAB/log/bootstrap.log" 2>&1
spawn mon ceph-mon -f -i a
wait_for mon 60 ceph --connect-timeout 2 -s

ceph auth get-or-create mgr.a mon 'allow profile mgr' osd 'allow *' \
  -o "$RUN/mgr.a.keyring" >>"$LAB/log/bootstrap.log" 2>&1
spawn mgr ceph-mgr -f -i a

{
  uuid=$(cat /proc/sys/kernel/random/uuid)
  ceph osd create "$uuid" 0
  ceph auth get-or-create osd.0 mon 'allow profile osd' mgr 'allow profile osd' osd 'allow *' \
    -o "$RUN/osd.0.keyring"
  ceph osd crush add 0 1.0 root=default host=host0
  ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
} >>"$LAB/log/bootstrap.log" 2>&1
spawn osd ceph-osd -f -i 0
wait_for osd 60 sh -c "ceph osd dump | grep -q '^osd\.0 up'"

ceph auth get-or-create client.rgw mon 'allow rw' osd 'allow rwx' \
  -o "$RUN/client.rgw.keyring" >>"$LAB/log/bootstrap.log" 2>&1
spawn rgw radosgw -f -n client.rgw
wait_for rgw 180 curl -s -o /dev/null --max-time 5 "http://$IP:$PORT_RGW/"
radosgw-admin -n client.rgw user create --uid=kedge --display-name=kedge \
  --access-key="$KEY" --secret-key="$SECRET" >>"$LAB/log/bootstrap.log" 2>&1
# restic makes the bucket; what else it makes there is a repository nobody asks for.
RESTIC_PASSWORD=$SECRET AWS_ACCESS_KEY_ID=$KEY AWS_SECRET_ACCESS_KEY=$SECRET \
  restic --no-cache -r "s3:http://$IP:$PORT_RGW/$BUCKET/made-by-restic" init \
  >>"$LAB/log/bootstrap.log" 2>&1 || { tail -n 5 "$LAB/log/bootstrap.log" >&2; die "no bucket"; }

(umask 077; printf '%s\n' "http://$IP:$PORT_RGW" "$BUCKET" "$KEY" "$SECRET" >"$LAB/s3.new")
mv "$LAB/s3.new" "$LAB/s3"
echo ready
# Serves until nobody holds the other end.
cat >/dev/null
