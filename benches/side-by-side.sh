#!/usr/bin/env bash
# Backs up, restores and verifies the same disks with restic, rustic, borg and Kedge, side by side
# in one run, and prints one table of medians with the goals beside them.
#
#   benches/side-by-side.sh [install|image|run|huge|stages|table|all]
#
# What it needs is installed by package name (restic's newest Debian package, borgbackup, rustic
# by cargo); the disks are made from Debian packages and seeded random data. Nothing outside WORK
# is written. About 60 GB of free space and, at 5 repetitions, three quarters of an hour.
#
# Environment: WORK  scratch directory                            [target/side-by-side]
#              REPS  repetitions, interleaved across the tools    [5]
#              TOOLS what to run, in this order                   [all below]
#              RESTIC_SUITE  the Debian suite restic is from      [trixie]
#              APT_MIRROR    Debian mirror                        [this machine's first]
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
WORK=${WORK:-$ROOT/target/side-by-side}; mkdir -p "$WORK"; WORK=$(cd "$WORK" && pwd)
REPS=${REPS:-5}
TOOLS=${TOOLS:-"limit restic kedge kedge-nv kedge-3 kedge-3-nv kedge-fast kedge-fast-nv kedge-1 rustic borg"}
APT_MIRROR=${APT_MIRROR:-$(grep -ohE 'https?://[^ ]+/debian/?( |$)' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1 | tr -d ' ' || true)}
RESTIC_SUITE=${RESTIC_SUITE:-trixie}
RUSTIC_VERSION=${RUSTIC_VERSION:-0.11.4}
OUT=${OUT:-$WORK/results.jsonl}
T=$WORK/tools; IMG=$WORK/img; REPO=$WORK/repo; RST=$WORK/restore
mkdir -p "$T" "$IMG"
RESTIC=$T/restic-$RESTIC_SUITE/usr/bin/restic
RUSTIC=$T/rustic/bin/rustic
KEDGE=${CARGO_TARGET_DIR:-$ROOT/target}/release/examples/anchor
export LC_ALL=C RESTIC_PASSWORD=anchor RUSTIC_PASSWORD=anchor BORG_PASSPHRASE=anchor \
  BORG_RELOCATED_REPO_ACCESS_IS_OK=yes BORG_BASE_DIR=$WORK/borgbase \
  RESTIC_CACHE_DIR=$WORK/cache-restic RUSTIC_CACHE_DIR=$WORK/cache-rustic

EPOCH=1767225600                       # 2026-01-01, used for every time stamp
SIZE=${SIZE:-8G}
# package closures of the two "machines"; A and D share most, not all
PKG_COMMON="systemd systemd-sysv linux-image-amd64 openssh-server nginx-full redis-server python3 perl gcc g++ git vim openjdk-17-jre-headless man-db locales"
PKG_A="$PKG_COMMON postgresql-15 python3-numpy samba nodejs"
PKG_D="$PKG_COMMON mariadb-server php8.2-fpm ruby"

# ---------------------------------------------------------------- install
install_tools() {
  local need=()
  for p in borgbackup e2fsprogs python3 debian-archive-keyring pkg-config; do
    dpkg -s $p >/dev/null 2>&1 || need+=($p)
  done
  if [ ${#need[@]} -gt 0 ]; then apt-get update -qq; apt-get install -y -qq --no-install-recommends "${need[@]}"; fi
  if [ ! -x "$RESTIC" ]; then                     # a Go binary: a newer suite's package unpacks and runs anywhere
    mkapt "$T/apt-restic" "$RESTIC_SUITE"
    (cd "$T" && APT_CONFIG=$T/apt-restic/apt.conf apt-get download -qq restic && dpkg -x restic_*.deb "restic-$RESTIC_SUITE")
  fi
  case " $TOOLS " in *" rustic "*) [ -x "$RUSTIC" ] || cargo install rustic-rs --version "$RUSTIC_VERSION" --locked --root "$T/rustic" --target-dir "$T/rustic-target";; esac
  (cd "$ROOT" && cargo build --locked --release --package kedge-engine --example anchor --example stages)
}
mkapt() { # dir suite: a private apt root with an empty dpkg status (so closures are complete)
  local d=$1 s=$2; mkdir -p "$d"/{lists/partial,archives/partial,etc/parts,etc/prefs,dpkg}; : >"$d/dpkg/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $APT_MIRROR $s main" >"$d/sources.list"
  cat >"$d/apt.conf" <<E
Dir::State "$d"; Dir::State::status "$d/dpkg/status"; Dir::State::lists "$d/lists"; Dir::Cache "$d"; Dir::Cache::archives "$d/archives";
Dir::Etc::sourcelist "$d/sources.list"; Dir::Etc::sourceparts "-"; Dir::Etc::preferencesparts "$d/etc/prefs"; Dir::Etc::parts "$d/etc/parts";
APT::Install-Recommends "false"; APT::Architecture "amd64"; APT::Sandbox::User "root";
E
  APT_CONFIG=$d/apt.conf apt-get update -qq
}

# ---------------------------------------------------------------- the disks
mkrootfs() { # name pkgs seed
  local n=$1 pkgs=$2 seed=$3 d=$IMG/apt-$1 r=$IMG/root-$1
  mkapt "$d" bookworm
  APT_CONFIG=$d/apt.conf apt-get -y -qq --download-only install $pkgs >/dev/null
  rm -rf "$r"; mkdir -p "$r/var/cache/apt/archives"
  for f in $(ls "$d"/archives/*.deb | sort); do dpkg-deb --fsys-tarfile "$f" | tar -x -C "$r" --no-same-owner --keep-directory-symlink 2>/dev/null || true; done
  cp "$d"/archives/*.deb "$r/var/cache/apt/archives/"
  python3 - "$r" "$seed" <<'PY'
# seeded application data: a database file (8 KiB pages, partly compressible), text logs, incompressible media
import os, random, sys
root, seed = sys.argv[1], int(sys.argv[2]); R = random.Random(seed)
os.makedirs(root+'/var/lib/postgresql/15/main/base/16384', exist_ok=True)
words = [bytes(R.choices(b'abcdefghijklmnopqrstuvwxyz', k=R.randint(3,11))) for _ in range(5000)]
for t in range(6):                                            # ~400 MiB of tables
    with open(f'{root}/var/lib/postgresql/15/main/base/16384/{16400+t}', 'wb') as f:
        for pg in range(8500):
            hdr = pg.to_bytes(8,'little')+R.randbytes(16)
            rows = b''
            while len(rows) < 6200 - t*300:
                rows += R.randbytes(24) + b' '.join(R.choices(words, k=8)) + b'\0'
            f.write((hdr+rows).ljust(8192, b'\0')[:8192])
os.makedirs(root+'/var/log', exist_ok=True)
for l in range(3):                                            # ~180 MiB of logs
    with open(f'{root}/var/log/app{l}.log', 'wb') as f:
        tm = 1767225600
        while f.tell() < 60<<20:
            tm += R.randint(0,3)
            f.write(b'%d web%02d nginx[%d]: 10.%d.%d.%d "GET /%s/%s?id=%d" %d %d\n' % (tm, l, R.randint(100,32000), R.randint(0,255), R.randint(0,255), R.randint(0,255), R.choice(words), R.choice(words), R.randint(0,10**9), R.choice([200,200,200,304,404,500]), R.randint(100,99999)))
os.makedirs(root+'/srv/media', exist_ok=True)
for m in range(30):                                           # 300 MiB incompressible
    with open(f'{root}/srv/media/{m:03}.bin', 'wb') as f:
        for _ in range(10): f.write(R.randbytes(1<<20))
PY
  find "$r" -print0 | xargs -0 touch -h -d @$EPOCH
}
mkfsimg() { # name uuid
  local i=$IMG/$1.raw r=$IMG/root-$1
  rm -f "$i"; truncate -s "$SIZE" "$i"
  SOURCE_DATE_EPOCH=$EPOCH E2FSPROGS_FAKE_TIME=$EPOCH mke2fs -q -F -t ext4 -O ^metadata_csum -b 4096 -U "$2" -E hash_seed="$2",lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0 -d "$r" "$i"
  # "apt clean": delete half of the cached packages inside the image; their blocks stay behind, as on a lived-in disk
  ls "$r/var/cache/apt/archives" | sort | awk 'NR%2{print "rm /var/cache/apt/archives/" $0}' | E2FSPROGS_FAKE_TIME=$EPOCH debugfs -w -f - "$i" >/dev/null 2>&1
  # mke2fs -d copies the change times of the source tree, which cannot be set: overwrite them in the inode tables
  python3 - "$i" $EPOCH <<'PY'
import struct, sys
f = open(sys.argv[1], 'r+b'); t = struct.pack('<I', int(sys.argv[2])); z = b'\0'*4
f.seek(1024); sb = f.read(1024); u32 = lambda o: struct.unpack_from('<I', sb, o)[0]; u16 = lambda o: struct.unpack_from('<H', sb, o)[0]
bs = 1024 << u32(24); ipg = u32(40); isz = u16(88); dsz = u16(254) if u32(96) & 0x80 else 32; groups = -(-u32(4)//u32(32))
f.seek(bs if bs > 1024 else 2048); gd = f.read(groups*dsz)
for g in range(groups):
    tab = struct.unpack_from('<I', gd, g*dsz+8)[0]*bs; f.seek(tab); b = bytearray(f.read(ipg*isz)); dirty = False
    for n in range(ipg):
        o = n*isz
        if b[o:o+2] != b'\0\0' or b[o+20:o+24] != z:            # mode or dtime set: in use, or deleted
            b[o+12:o+16] = t; b[o+0x84:o+0x88] = z; b[o+0x90:o+0x94] = t; b[o+0x94:o+0x98] = z; dirty = True
    if dirty: f.seek(tab); f.write(b)
PY
  rm -rf "$r"
}
mkimages() {
  [ -f "$IMG/A.raw" ] || { mkrootfs A "$PKG_A" 1; mkfsimg A 11111111-1111-4111-8111-111111111111; }
  [ -f "$IMG/D.raw" ] || { mkrootfs D "$PKG_D" 2; mkfsimg D 22222222-2222-4222-8222-222222222222; }
  if [ ! -f "$IMG/B.raw" ]; then  # A with 1 % of its 64 KiB blocks rewritten, half random, half compressible
    cp --sparse=always "$IMG/A.raw" "$IMG/B.raw.tmp"
    python3 - "$IMG/B.raw.tmp" "$IMG/B.extents" <<'PY'
import os, random, sys
R = random.Random(3); p = sys.argv[1]; n = os.path.getsize(p)>>16
fd = os.open(p, os.O_RDWR); bl = sorted(R.sample(range(n), n//100))
for b in bl:
    d = R.randbytes(65536) if b & 1 else (b'row %08d ' % b + R.randbytes(500).hex().encode())*64
    os.pwrite(fd, d[:65536].ljust(65536, b'\0'), b<<16)
os.close(fd); open(sys.argv[2],'w').writelines(f'{b<<16} 65536\n' for b in bl)
PY
    mv "$IMG/B.raw.tmp" "$IMG/B.raw"
  fi
  [ -f "$IMG/sha256" ] || (cd "$IMG" && sha256sum A.raw B.raw D.raw | tee sha256)
  du -m --apparent-size "$IMG"/*.raw; du -m "$IMG"/*.raw
}

# ---------------------------------------------------------------- measuring
m() { REP=$REP python3 "$ROOT/benches/measure.py" run "$OUT" "$1" "$2" "$REPO" "$3"; }
warm() { cat "$1" >/dev/null; }                       # every measured read finds the page cache warm
place() { ln -f "$IMG/$1.raw" "$WORK/src/disk.raw"; touch "$WORK/src/disk.raw"; warm "$WORK/src/disk.raw"; }
same() { cmp "$1" "$2" || { echo "RESTORE DIFFERS ($1)" | tee -a "$OUT.bad"; exit 1; }; }
fresh() { rm -rf "$REPO" "$RST" "$WORK/cache-restic" "$WORK/cache-rustic" "$WORK/borgbase"
  mkdir -p "$REPO" "$RST" "$WORK/src" "$WORK/src2"; ln -f "$IMG/D.raw" "$WORK/src2/disk.raw"; sync; }
SRC=$WORK/src/disk.raw; SRC2=$WORK/src2/disk.raw

run_limit() { fresh; warm "$IMG/A.raw"
  m limit cp-sparse   "exec cp --sparse=always $IMG/A.raw $RST/x.raw"; sync; rm -f "$RST"/*
  m limit cp-synced   "cp --sparse=always $IMG/A.raw $RST/x.raw && sync $RST/x.raw"; rm -f "$RST"/*
  m limit dd-direct   "exec dd if=$IMG/A.raw of=$RST/x.raw bs=512K oflag=direct conv=sparse status=none"; rm -f "$RST"/*
  m limit read-cached "exec dd if=$IMG/A.raw of=/dev/null bs=4M status=none"; }
run_restic() { local R="exec $RESTIC -q -r $REPO"
  fresh; $RESTIC -q -r "$REPO" init; place A
  m restic first     "$R backup --host vm $SRC"
  m restic unchanged "$R backup --host vm --force $SRC"
  place B; m restic changed "$R backup --host vm $SRC"
  warm $SRC2; m restic sibling "$R backup --host vm $SRC2"
  m restic restore   "$R restore latest --path $SRC --target $RST --sparse"; same "$RST$SRC" "$IMG/B.raw"; rm -rf "$RST"/*
  m restic verify    "$R check --read-data"; }
run_rustic() { local R="exec $RUSTIC --no-progress --log-level warn -r $REPO"
  fresh; $RUSTIC --no-progress --log-level warn -r "$REPO" init --set-chunker fixed_size --set-chunk-size 1MiB >/dev/null 2>&1; place A
  m rustic first     "$R backup --host vm $SRC"
  m rustic unchanged "$R backup --host vm --force $SRC"
  place B; m rustic changed "$R backup --host vm $SRC"
  warm $SRC2; m rustic sibling "$R backup --host vm $SRC2"
  m rustic restore   "$R restore --sparse by-content latest:$SRC $RST/out.raw --filter-paths $SRC"
  same "$RST/out.raw" "$IMG/B.raw"; rm -rf "$RST"/*
  m rustic verify    "$R check --read-data"; }
run_borg() { local B="exec borg" o="--compression zstd,3 --chunker-params fixed,1048576 --files-cache disabled"
  fresh; rm -rf "$REPO"; borg init -e repokey "$REPO"; place A
  m borg first     "$B create $o $REPO::a $SRC"
  m borg unchanged "$B create $o $REPO::b $SRC"
  place B; m borg changed "$B create $o $REPO::c $SRC"
  warm $SRC2; m borg sibling "$B create $o $REPO::d $SRC2"
  (cd "$RST" && m borg restore "$B extract --sparse $REPO::c"); same "$RST$SRC" "$IMG/B.raw"; rm -rf "$RST"/*
  m borg verify    "$B check --verify-data $REPO"; }
run_kedge() { local K="exec $KEDGE"
  fresh; $KEDGE init "$REPO"; place A
  m kedge first           "$K backup $REPO $SRC disk"
  m kedge unchanged       "$K backup $REPO $SRC disk"
  m kedge unchanged-known "$K cbt $REPO $SRC disk /dev/null"
  rm -rf "$REPO.known"; cp -r "$REPO" "$REPO.known"
  place B; m kedge changed "$K backup $REPO $SRC disk"
  REPO=$REPO.known m kedge changed-known "$K cbt $REPO.known $SRC disk $IMG/B.extents"; rm -rf "$REPO.known"
  warm $SRC2; m kedge sibling "$K backup $REPO $SRC2 disk2"
  m kedge restore          "$K restore $REPO disk $RST/x.raw"; same "$RST/x.raw" "$IMG/B.raw"; rm -rf "$RST"/*
  OWN_READBACK=1 m kedge restore-readback "$K restore $REPO disk $RST/x.raw"; same "$RST/x.raw" "$IMG/B.raw"; rm -rf "$RST"/*
  m kedge verify           "$K check $REPO"
  OWN_KEYLESS=1 m kedge verify-keyless "$K check $REPO"
  # The judge: whatever was measured above is what stock restic reads.
  $RESTIC -q -r "$REPO" --no-cache check; }
first_only() { local n=$1 before=$2; fresh; $KEDGE init "$REPO"; place A; m "$n" first "exec env $before $KEDGE backup $REPO $SRC disk"; }
run_kedge-nv() { first_only kedge-nv "OWN_VERIFY=0"; }
run_kedge-3() { first_only kedge-3 "OWN_LEVEL=3"; }
run_kedge-3-nv() { first_only kedge-3-nv "OWN_LEVEL=3 OWN_VERIFY=0"; }
run_kedge-fast() { first_only kedge-fast "OWN_LEVEL=${FAST_LEVEL:-1}"; }
run_kedge-fast-nv() { first_only kedge-fast-nv "OWN_LEVEL=${FAST_LEVEL:-1} OWN_VERIFY=0"; }
run_kedge-1() { first_only kedge-1 "OWN_THREADS=1 taskset -c 0"; }

# A volume of 1 TiB that holds 20 GiB: what it reads, what it writes, what it takes.
run_huge() { REP=1; fresh; local V=$WORK/huge.raw
  [ -f "$V" ] || python3 "$ROOT/benches/measure.py" huge "$V"
  $KEDGE init "$REPO"
  m kedge-huge first           "exec $KEDGE backup $REPO $V huge"
  m kedge-huge unchanged-known "exec $KEDGE cbt $REPO $V huge /dev/null"
  echo "0 65536" >"$WORK/huge.extents"; python3 "$ROOT/benches/measure.py" touch "$V"
  m kedge-huge changed-known   "exec $KEDGE cbt $REPO $V huge $WORK/huge.extents"
  rm -rf "$REPO"; }
# Fifteen restores at once: memory of all together.
run_many() { REP=1; fresh; $KEDGE init "$REPO"; place A; $KEDGE backup "$REPO" "$SRC" disk
  m kedge-many restore-15 "OWN_COPIES=15 exec $KEDGE restore $REPO disk $RST/x.raw"; for c in 0 7 14; do same "$RST/x.raw.$c" "$IMG/A.raw"; done; rm -rf "$RST" "$REPO"; }

# What the stages cost on this machine, whatever program runs them.
run_stages() { local S; S=$(dirname "$KEDGE")/stages; warm "$IMG/A.raw"; warm "$IMG/B.raw"
  { "$S" "$IMG/A.raw" "$IMG/B.raw"; taskset -c 0 "$S" "$IMG/A.raw" "$IMG/B.raw"; } | tee "$OUT.stages"; }

run_all() { rm -f "$OUT" "$OUT.log" "$OUT.bad"
  for REP in $(seq 1 "$REPS"); do for t in $TOOLS; do echo "== $REP/$REPS $t"; "run_$t"; done; done; rm -rf "$REPO" "$RST"; }
table() { python3 "$ROOT/benches/measure.py" table "$OUT"; }

case ${1:-all} in
  install) install_tools;; image) mkimages;; run) run_all;; huge) run_huge; run_many;; stages) run_stages;; table) table;;
  all) install_tools; mkimages; run_all; run_huge; run_many; run_stages; table;;
  *) echo "install|image|run|huge|stages|table|all"; exit 2;;
esac
