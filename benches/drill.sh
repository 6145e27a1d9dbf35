#!/usr/bin/env bash
# Drills two servers of 2 GiB by the real service, in software emulation, and prints one table: how
# long the whole of it took and what came of it. One server boots Debian's kernel to a line on its
# serial console, from a partition beside an ext4 file system and a gigabyte of noise; the other's disk
# has noise and nothing to boot.
#
#   benches/drill.sh
#
# Needs root on Debian, or the packages named below and a Debian kernel package to download. Port 18800 of
# loopback must be free. About 6 GB beneath WORK.
#
# Environment: WORK  scratch directory   [target/drill]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK=${WORK:-$ROOT/target/drill}; rm -rf "$WORK"; mkdir -p "$WORK"; WORK=$(cd "$WORK" && pwd)
KEDGE=${CARGO_TARGET_DIR:-$ROOT/target}/release/kedge
URL=http://127.0.0.1:18800
PROJECT=3f2b9c1d7a6e4c58b0d1e2f3a4b5c6d7
PROVIDER=fc4d5750-22e7-4798-8a46-f48f62c4c1da

missing=
for pair in busybox:busybox-static cpio:cpio mke2fs:e2fsprogs mcopy:mtools sfdisk:fdisk syslinux:syslinux \
  qemu-system-x86_64:qemu-system-x86 curl:curl; do
  command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -e /usr/lib/syslinux/mbr/mbr.bin ] || missing="$missing syslinux-common"
if [ -n "$missing" ]; then
  apt-get update -q >&2
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2
fi
(cd "$ROOT" && cargo build --quiet --locked --release --package kedge)

# ---------------------------------------------------------------- a disk that boots
guest() { # image
  local dir=$WORK/guest kernel version part
  mkdir -p "$dir/deb" "$dir/root"/{bin,proc,sys,dev,mnt,modules}
  kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -nE 's/^ *Depends: (linux-image-[0-9].*)$/\1/p' | head -n 1)
  (cd "$dir/deb" && apt-get download -q "$kernel" >&2 2>/dev/null && dpkg-deb -x ./*.deb x)
  version=$(ls "$dir/deb/x/lib/modules")
  cp "$(command -v busybox)" "$dir/root/bin/busybox"
  for m in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do
    f=$(find "$dir/deb/x/lib/modules/$version" -name "$m.ko" | head -n 1)
    if [ -n "$f" ]; then cp "$f" "$dir/root/modules/"; echo "$m.ko" >>"$dir/root/modules/order"; fi
  done
  cat >"$dir/root/init" <<'I'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for m in $(cat /modules/order 2>/dev/null); do insmod "/modules/$m"; done
for i in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda2 ] && break; sleep 0.2; done
mount -t ext4 /dev/vda2 /mnt && grep -q alive /mnt/state && echo "GUEST-READY kernel=$(uname -r)"
while :; do sleep 3600; done
I
  chmod 755 "$dir/root/init"
  (cd "$dir/root" && find . | cpio --quiet -o -H newc | gzip -6) >"$dir/initrd.gz"
  truncate -s 2G "$1"
  printf 'label: dos\nstart=1MiB, size=39MiB, type=0e, bootable\nstart=64MiB, size=256MiB, type=83\n' | sfdisk -q "$1"
  part="$1@@1M"
  export MTOOLS_SKIP_CHECK=1
  mformat -i "$part" -T $((39 << 11)) -h 16 -s 63 -H $((1 << 11)) ::
  printf 'SERIAL 0 115200\nPROMPT 0\nDEFAULT g\nLABEL g\n KERNEL vmlinuz\n INITRD initrd.gz\n APPEND console=ttyS0 panic=-1 quiet\n' >"$dir/syslinux.cfg"
  cp "$dir/deb/x/boot/vmlinuz-$version" "$dir/vmlinuz"
  mcopy -i "$part" "$dir/syslinux.cfg" "$dir/vmlinuz" "$dir/initrd.gz" ::
  syslinux --offset $((1 << 20)) --install "$1"
  dd if=/usr/lib/syslinux/mbr/mbr.bin of="$1" bs=440 count=1 conv=notrunc status=none
  mkdir -p "$dir/files"; echo alive >"$dir/files/state"
  mke2fs -q -F -t ext4 -d "$dir/files" -E offset=$((64 << 20)) "$1" 256M
  dd if=/dev/urandom of="$1" bs=1M seek=400 count=1000 conv=notrunc status=none
}

server() { # name number
  mkdir -p "$WORK/servers/$1"
  cat >"$WORK/servers/$1/server.toml" <<T
id = "5aa119a8-d25b-45a7-8d1b-88e12788563$2"
project = "$PROJECT"
name = "$1"
kind = "kvm"
zone = "z"
ram_mb = 512
vcpus = 1

[[disk]]
id = "45baf976-c20a-4894-a7c3-c94b7376bf5$2"
name = "system"
file = "system.raw"
format = "raw"
role = "system"
T
}
server boots 1; guest "$WORK/servers/boots/system.raw"
server dead 2; truncate -s 2G "$WORK/servers/dead/system.raw"
dd if=/dev/urandom of="$WORK/servers/dead/system.raw" bs=1M seek=10 count=1000 conv=notrunc status=none

# ---------------------------------------------------------------- the service
cat >"$WORK/kedge.toml" <<T
state_dir = "$WORK/state"
users = "$WORK/users.toml"
listen = "${URL#http://}"
[cloud]
kind = "local"
servers_dir = "$WORK/servers"
[drill]
boot = true
qemu = "$(command -v qemu-system-x86_64)"
markers = ["GUEST-READY"]
[log]
filter = "warn"
T
install -m 600 /dev/null "$WORK/users.toml"
printf '[[project]]\nid = "%s"\nname = "shop"\n[[user]]\nname = "ann"\npassword_hash = "%s"\n[[user.grant]]\nproject = "%s"\nrole = "member"\n' \
  "$PROJECT" "$(printf 'a password' | "$KEDGE" user hash)" "$PROJECT" >"$WORK/users.toml"
"$KEDGE" serve --config "$WORK/kedge.toml" >"$WORK/log" 2>&1 & service=$!
trap 'kill "$service" 2>/dev/null || true' EXIT
for _ in $(seq 150); do (: </dev/tcp/127.0.0.1/18800) 2>/dev/null && break; sleep 0.2; done
TOKEN=$(curl -si "$URL/v3/auth/tokens" -H 'Content-Type: application/json' -d '{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"ann","domain":{"id":"default"},"password":"a password"}}},"scope":{"project":{"id":"'"$PROJECT"'"}}}}' | tr -d '\r' | sed -n 's/^x-subject-token: //pI')
call() { curl -s -H "X-Auth-Token: $TOKEN" -H 'Content-Type: application/json' "$@"; }
word() { sed -nE "s/.*\"$1\":\"([^\"]*)\".*/\1/p" <<<"$2"; }

echo "| server | verdict | what was seen | seconds, all of it | seconds, booting |"
echo "|---|---|---|---|---|"
for number in 1 2; do
  id=5aa119a8-d25b-45a7-8d1b-88e12788563$number
  call "$URL/v1/$PROJECT/providers/$PROVIDER/resources/$id/action" -d '{"protect":{}}' >/dev/null
  until item=$(call "$URL/v1/$PROJECT/checkpoint_items?resource_id=$id&status=available") && grep -q '"id"' <<<"$item"; do sleep 0.5; done
  item=$(sed -nE 's/.*"checkpoint_items":\[\{"id":"([^"]*)".*/\1/p' <<<"$item")
  proofs=$URL/v1/$PROJECT/checkpoint_items/$item/proofs
  began=$(date +%s%N)
  call "$proofs" -d '{"proof":{"kind":"drill"}}' >/dev/null
  until proof=$(call "$proofs") && grep -q '"status":"done"' <<<"$proof"; do sleep 0.1; done
  took=$((($(date +%s%N) - began) / 10000000))
  after=$(sed -nE 's/.*"after_ms":([0-9]+).*/\1/p' <<<"$proof")
  printf '| %s | %s | %s | %d.%02d | %d.%02d |\n' "$([ $number = 1 ] && echo boots || echo dead)" \
    "$(word verdict "$proof")" "$(word said "$proof")" $((took / 100)) $((took % 100)) $((after / 1000)) $((after % 1000 / 10))
done
