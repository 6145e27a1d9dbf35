"""Measures one command, makes the huge volume, prints the table. Called by side-by-side.sh.

measure.py run OUT TOOL STEP REPOSITORY SCRIPT   runs a shell script, appends a JSON line
measure.py huge FILE                             makes a sparse 1 TiB volume with 20 GiB of data
measure.py touch FILE                            changes its first 64 KiB
measure.py table OUT                             prints medians, ratios and goals
"""
import json, os, random, statistics, subprocess, sys, time


def stored(path):
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                pass
    return total


def run(out, tool, step, repository, script):
    before = stored(repository)
    started = time.monotonic()
    child = subprocess.Popen(["bash", "-c", script], stdout=open(out + ".log", "ab"), stderr=subprocess.STDOUT)
    # Waits without reaping: the counters are gone with the process.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    try:
        io = dict((k.strip(), int(v)) for k, v in (l.split(":") for l in open(f"/proc/{child.pid}/io")))
    except OSError:
        io = {}
    _, status, used = os.wait4(child.pid, 0)
    wall = time.monotonic() - started
    after = stored(repository)
    row = dict(tool=tool, step=step, rep=int(os.environ["REP"]), rc=os.waitstatus_to_exitcode(status),
               wall=wall, cpu=used.ru_utime + used.ru_stime, sys=used.ru_stime, rss_mib=used.ru_maxrss / 1024,
               read_mb=io.get("rchar", 0) / 1e6, repo_mb=after / 1e6, new_mb=(after - before) / 1e6)
    with open(out, "a") as log:
        log.write(json.dumps(row) + "\n")
    print(f"{tool:14} {step:17} wall {wall:7.2f} cpu {row['cpu']:7.2f} rss {row['rss_mib']:6.0f} new {row['new_mb']:8.1f}", flush=True)
    if row["rc"] != 0:
        sys.exit(f"{tool} {step} failed with {row['rc']}; see {out}.log")


def huge(path):
    seeded, mib = random.Random(7), 1 << 20
    with open(path + ".tmp", "wb") as file:
        file.truncate(1 << 40)
        # 1280 runs of 16 MiB at random places of their own, half of it compressible.
        for slot in sorted(seeded.sample(range((1 << 40) // (16 * mib)), 1280)):
            for piece in range(16):
                file.seek(slot * 16 * mib + piece * mib)
                half = seeded.randbytes(mib // 2)
                file.write(half + half[:64] * (mib // 128))
    os.rename(path + ".tmp", path)


def touch(path):
    with open(path, "r+b") as file:
        file.write(os.urandom(65536))


GOALS = [  # text, tool, step, figure, compared with (tool, step), at most
    ("first backup, verified before stored: CPU", "kedge", "first", "cpu", ("restic", "first"), 0.46),
    ("first backup, not verified: CPU", "kedge-nv", "first", "cpu", ("restic", "first"), 0.38),
    ("first backup: repository", "kedge", "first", "repo_mb", ("restic", "first"), 1.02),
    ("first backup, zstd 3, verified before stored: CPU", "kedge-3", "first", "cpu", ("restic", "first"), 0.46),
    ("first backup, zstd 3, not verified: CPU", "kedge-3-nv", "first", "cpu", ("restic", "first"), 0.38),
    ("first backup, zstd 3: repository", "kedge-3", "first", "repo_mb", ("restic", "first"), 1.02),
    ("first backup, fast, verified before stored: CPU", "kedge-fast", "first", "cpu", ("restic", "first"), 0.38),
    ("first backup, fast, not verified: CPU", "kedge-fast-nv", "first", "cpu", ("restic", "first"), 0.31),
    ("first backup, fast: repository", "kedge-fast", "first", "repo_mb", ("restic", "first"), 1.08),
    ("first backup, verified before stored: wall", "kedge", "first", "wall", ("restic", "first"), 0.45),
    ("first backup: wall on two cores by wall on one", "kedge", "first", "wall", ("kedge-1", "first"), 0.5 / 0.9),
    ("nothing changed, changes known: CPU", "kedge", "unchanged-known", "cpu", ("restic", "unchanged"), 0.05),
    ("nothing changed, changes unknown: CPU", "kedge", "unchanged", "cpu", ("restic", "unchanged"), 0.20),
    ("1 % changed, changes known: CPU", "kedge", "changed-known", "cpu", ("restic", "changed"), 0.08),
    ("1 % changed, changes unknown: CPU", "kedge", "changed", "cpu", ("restic", "changed"), 0.20),
    ("1 % changed: new bytes", "kedge", "changed", "new_mb", ("restic", "changed"), 0.35),
    ("restore, not read back: CPU", "kedge", "restore", "cpu", ("restic", "restore"), 0.65),
    ("restore, read back: CPU", "kedge", "restore-readback", "cpu", ("restic", "restore"), 1.1),
    ("restore, not read back: wall, by cp --sparse", "kedge", "restore", "wall", ("limit", "cp-sparse"), 1.6),
    ("verify with keys: CPU", "kedge", "verify", "cpu", ("restic", "verify"), 0.75),
    ("verify without keys: CPU", "kedge", "verify-keyless", "cpu", ("restic", "verify"), 0.25),
]


def table(out):
    groups = {}
    for line in open(out):
        row = json.loads(line)
        groups.setdefault((row["tool"], row["step"]), []).append(row)
    median = lambda key, figure: statistics.median(row[figure] for row in groups[key])
    print("| work | Kedge | compared with | ratio | at most | |\n|---|---|---|---|---|---|")
    for text, tool, step, figure, other, most in GOALS:
        if (tool, step) not in groups or other not in groups:
            continue
        ours, theirs = median((tool, step), figure), median(other, figure)
        verdict = "met" if ours / theirs <= most else "**missed**"
        print(f"| {text} | {ours:.2f} | {other[0]} {theirs:.2f} | {ours / theirs:.3f} | {most:.3f} | {verdict} |")
    ours = [row["rss_mib"] for (tool, step), rows in groups.items() if tool.startswith("kedge") and tool != "kedge-many" for row in rows]
    if ours:
        print(f"| peak memory of any of the above, MiB | {max(ours):.0f} | | | 128 | {'met' if max(ours) <= 128 else '**missed**'} |")
    if ("kedge-many", "restore-15") in groups:
        peak = median(("kedge-many", "restore-15"), "rss_mib")
        print(f"| peak memory of 15 restores at once, MiB | {peak:.0f} | | | 1024 | {'met' if peak <= 1024 else '**missed**'} |")
    print("\n| tool | step | n | wall s | min..max | CPU s | of it system | peak MiB | read MB | repository MB | new MB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for (tool, step), rows in groups.items():
        of = lambda figure: statistics.median(row[figure] for row in rows)
        walls = [row["wall"] for row in rows]
        print(f"| {tool} | {step} | {len(rows)} | {of('wall'):.2f} | {min(walls):.2f}..{max(walls):.2f} | {of('cpu'):.2f} | {of('sys'):.2f} "
              f"| {of('rss_mib'):.0f} | {of('read_mb'):.0f} | {of('repo_mb'):.0f} | {of('new_mb'):.1f} |")


if __name__ == "__main__":
    dict(run=run, huge=huge, touch=touch, table=table)[sys.argv[1]](*sys.argv[2:])
