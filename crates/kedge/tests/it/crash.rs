//! Power cuts, pauses and other bad luck, on the real program: it is killed at every named
//! point of its jobs and at random moments, and afterwards every byte, lock, snapshot and
//! claim is where it belongs.
//!
//! Invariant looked for after every single kill: a server whose disks are half written is
//! stopped and marked, and its restore is not called a success.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Backup, Disks, LEASE_SECS, Random, Site, Start, message};

/// Set, the tests of kills go on until there were a thousand.
const LONG: &str = "KEDGE_TEST_LONG";

/// Together more than 200, or 1000.
fn kills_wanted(usually: u32) -> u32 {
    if std::env::var_os(LONG).is_some() { usually * 5 } else { usually }
}

/// Points of a backup before its data is durable: a freeze that lives by locks ends with
/// the process, and the backup begins again. One in each round.
const BEFORE_STORED: [&str; 4] = [
    "protect.volume_stored#2",
    "protect.tree_finished",
    "protect.frozen_saved",
    "protect.volume_stored",
];

const AFTER_STORED: [&str; 6] = [
    "protect.stored_saved",
    "protect.snapshot_written",
    "protect.snapshot_written",
    "protect.recorded",
    "protect.released",
    "protect.released",
];

/// From the seventh on the first disk, from the eleventh on the second.
const RESTORE: [&str; 20] = [
    "restore.locked",
    "restore.locked",
    "restore.stopped",
    "restore.stopped",
    "restore.marked",
    "restore.marked",
    "restore.written",
    "restore.finished",
    "restore.read_back",
    "restore.read_back",
    "restore.written#2",
    "restore.written",
    "restore.finished",
    "restore.read_back",
    "restore.read_back",
    "restore.unmarked",
    "restore.unmarked",
    "restore.unlocked",
    "restore.started",
    "restore.started",
];

const DELETE: [&str; 3] =
    ["delete.snapshot_removed", "delete.snapshot_removed", "delete.removed_saved"];

#[test]
fn a_kill_at_any_named_point_costs_nothing_but_time() {
    let mut site = Site::new();
    site.start(Start::Plain);
    let base = site.protect();
    site.wait_until_available(&base);
    site.stop();
    let mut kept = vec![base];
    for round in 0.. {
        if site.kills >= kills_wanted(150) {
            break;
        }
        let seed = u64::from(site.kills) + 2;
        site.put_disks(&Disks::of(seed));
        let backup = protect_through_kills(&mut site, round, kept.len());
        let noise = Disks::of_noise(seed);
        site.put_disks(&noise);
        restore_through_kills(&mut site, &backup, &noise);
        kept.push(backup);
        let old = kept.remove(0);
        delete_through_kills(&mut site, &old, kept.len());
        site.assert_clean(&kept.iter().collect::<Vec<_>>());
        site.assert_sound();
        site.stop();
    }
    assert_eq!(site.takeovers(), site.kills, "every kill struck a job at work");
    site.start(Start::Plain);
    assert_that_all_restore(&mut site, &kept);
    site.assert_sound_to_the_last_byte();
}

fn protect_through_kills(site: &mut Site, round: usize, snapshots_before: usize) -> Backup {
    let twice_frozen = ["protect.frozen", "protect.frozen"];
    let before_stored = BEFORE_STORED[round % BEFORE_STORED.len()];
    let points = twice_frozen.into_iter().chain([before_stored]).chain(AFTER_STORED);
    let points: Vec<_> = points.collect();
    site.start(Start::HaltAt(points[0]));
    let backup = site.protect();
    kill_at_each(site, &points, |site, point| {
        let is_written = ["snapshot_written", "recorded", "released"]
            .iter()
            .any(|written| point.ends_with(written));
        let snapshots = snapshots_before + usize::from(is_written);
        assert_eq!(site.objects("snapshots").len(), snapshots, "{point}");
    });
    site.wait_until_available(&backup);
    site.stop();
    backup
}

fn restore_through_kills(site: &mut Site, backup: &Backup, noise: &Disks) {
    site.start(Start::HaltAt(RESTORE[0]));
    let restore = site.restore(backup);
    kill_at_each(site, &RESTORE, |site, point| {
        let point = point.split('#').next().unwrap();
        let disks = match point {
            "restore.locked" | "restore.stopped" => Some(noise),
            "restore.unmarked" | "restore.unlocked" | "restore.started" => Some(&backup.holds),
            _ => None,
        };
        let power = match point {
            "restore.locked" | "restore.started" => "active",
            _ => "shutoff",
        };
        assert_eq!(site.cloud_state()["power"], power, "{point}");
        assert_eq!(site.marks(), if disks.is_none() { 2 } else { 0 }, "{point}");
        if let Some(disks) = disks {
            assert!(site.disks() == *disks, "{point}: other bytes");
        }
        assert_eq!(site.restore_status(&restore), "in_progress", "{point}");
        assert_eq!(site.item(backup).status, "restoring", "{point}");
    });
    site.wait_until_restored(backup, &restore);
    site.stop();
}

fn delete_through_kills(site: &mut Site, backup: &Backup, snapshots_after: usize) {
    site.start(Start::HaltAt(DELETE[0]));
    site.delete(backup);
    kill_at_each(site, &DELETE, |site, point| {
        assert_eq!(site.objects("snapshots").len(), snapshots_after, "{point}");
    });
    site.wait_until_deleted(backup);
}

/// The program runs and will halt at the first point. Looks at the world at each point,
/// and kills it there; it runs on without a halt after the last.
fn kill_at_each(site: &mut Site, points: &[&str], look: impl Fn(&mut Site, &str)) {
    for (number, point) in points.iter().enumerate() {
        site.wait_until_halted();
        look(site, point);
        site.kill();
        match points.get(number + 1) {
            Some(next) => site.start(Start::HaltAt(next)),
            None => site.start(Start::Plain),
        }
    }
}

/// The repository is being made meanwhile.
#[test]
fn a_kill_at_any_point_of_the_very_first_backup_costs_nothing_but_time() {
    let points = ["protect.frozen"].into_iter().chain(BEFORE_STORED).chain(AFTER_STORED);
    for point in points.collect::<BTreeSet<_>>() {
        judge_first_backup(Start::HaltAt(point), |site| {
            site.wait_until_halted();
        });
    }
}

#[test]
fn a_kill_at_any_moment_of_the_very_first_backup_costs_nothing_but_time() {
    let mut random = Random(3);
    for _ in 0..FIRST_BACKUPS {
        let wait = Duration::from_micros(random.below(FIRST_WAIT_MICROS_MAX));
        judge_first_backup(Start::Plain, |_| std::thread::sleep(wait));
    }
}

const FIRST_BACKUPS: u32 = 8;
/// A whole backup takes about as long.
const FIRST_WAIT_MICROS_MAX: u64 = 60_000;

fn judge_first_backup(start: Start<'_>, wait: impl FnOnce(&mut Site)) {
    let mut site = Site::new();
    site.start(start);
    let backup = site.protect();
    wait(&mut site);
    site.kill();
    site.start(Start::Plain);
    site.wait_until_available(&backup);
    site.assert_clean(&[&backup]);
    assert_that_all_restore(&mut site, &[backup]);
    site.assert_sound_to_the_last_byte();
}

#[test]
fn a_kill_while_a_failed_job_is_undone_costs_nothing_but_time() {
    let mut site = Site::new();
    site.start(Start::Plain);
    let kept = site.protect();
    site.wait_until_available(&kept);
    undo_a_backup_through_kills(&mut site);
    undo_a_restore_through_kills(&mut site, &kept);
    site.assert_clean(&[&kept]);
    undo_a_deletion_through_kills(&mut site, &kept);
    site.delete(&kept);
    site.wait_until_deleted(&kept);
    site.assert_clean(&[]);
    site.assert_sound_to_the_last_byte();
}

fn undo_a_backup_through_kills(site: &mut Site) {
    let point = "protect.undone";
    site.put_disks(&Disks::of_noise(10));
    site.restart(Start::FileBytesMaxAndHaltAt(2 << 20, point));
    let failed = site.protect();
    kill_at_each(site, &[point; 3], |site, _| {
        assert_eq!(site.item(&failed).status, "protecting");
        assert_eq!(site.objects("snapshots").len(), 1);
    });
    assert_failed_backup(site, &failed);
    site.delete(&failed);
    site.wait_until_deleted(&failed);
}

/// It fails before anything is written, so it leaves the server as it was.
fn undo_a_restore_through_kills(site: &mut Site, backup: &Backup) {
    let point = "restore.undone";
    let here = site.system_disk();
    let away = here.with_extension("away");
    site.restart(Start::HaltAt("restore.locked"));
    let restore = site.restore(backup);
    site.wait_until_halted();
    fs::rename(&here, &away).unwrap();
    site.kill();
    site.start(Start::HaltAt(point));
    kill_at_each(site, &[point; 3], |site, _| {
        assert_eq!(site.restore_status(&restore), "in_progress");
        assert_eq!(site.item(backup).status, "restoring");
    });
    site.wait_until_available(backup);
    assert_eq!(site.restore_status(&restore), "fail");
    assert_eq!((site.marks(), &site.cloud_state()["lock_holder"]), (0, &Value::Null));
    fs::rename(away, here).unwrap();
}

/// What lies where its snapshot was cannot be removed.
fn undo_a_deletion_through_kills(site: &mut Site, backup: &Backup) {
    let point = "delete.undone";
    let snapshots = site.objects("snapshots");
    assert_eq!(snapshots.len(), 1);
    let here = site.repository().join("snapshots").join(snapshots.iter().next().unwrap());
    let away = site.repository().join("away");
    site.restart(Start::HaltAt(point));
    fs::rename(&here, &away).unwrap();
    fs::create_dir(&here).unwrap();
    site.delete(backup);
    kill_at_each(site, &[point; 3], |site, _| {
        assert_eq!(site.item(backup).status, "deleting");
    });
    let item = site.settled(backup);
    assert_eq!(item.extend_info.fail_op, "delete", "{item:?}");
    assert_eq!(item.status, "error");
    fs::remove_dir(&here).unwrap();
    fs::rename(away, here).unwrap();
}

#[test]
fn a_kill_at_any_moment_costs_nothing_but_time() {
    let mut site = Site::new();
    let mut random = Random(2);
    site.start(Start::Plain);
    let base = site.protect();
    site.wait_until_available(&base);
    let mut kept = vec![base];
    for seed in 1000.. {
        if site.kills >= kills_wanted(100) {
            break;
        }
        site.put_disks(&Disks::of(seed));
        let backup = site.protect();
        let protect = format!("protect of {}", backup.item);
        kill_now_and_then(&mut site, &mut random, &protect, 3, |_| {});
        site.wait_until_available(&backup);

        let noise = Disks::of_noise(seed);
        site.put_disks(&noise);
        let restore = site.restore(&backup);
        kill_now_and_then(
            &mut site,
            &mut random,
            &format!("restore of {}", backup.item),
            12,
            |site| {
                assert_whole_or_marked(site, &backup, &noise);
            },
        );
        site.wait_until_restored(&backup, &restore);

        kept.push(backup);
        let old = kept.remove(0);
        site.delete(&old);
        kill_now_and_then(&mut site, &mut random, &format!("delete of {}", old.item), 3, |_| {});
        site.wait_until_deleted(&old);
        site.assert_clean(&kept.iter().collect::<Vec<_>>());
        site.assert_sound();
    }
    let (struck, kills) = (site.takeovers(), site.kills);
    assert!(struck >= kills / 3, "only {struck} of {kills} kills struck a job at work");
    assert_that_all_restore(&mut site, &kept);
    site.assert_sound_to_the_last_byte();
}

/// Starting and a whole job take about as long as the longest of these waits.
const WAIT_MICROS_MAX: u64 = 110_000;

/// Kills the program while a job is at work, at most so often, until the job has ended.
fn kill_now_and_then(
    site: &mut Site,
    random: &mut Random,
    work: &str,
    kills_max: u32,
    look: impl Fn(&Site),
) {
    for _ in 0..kills_max {
        std::thread::sleep(Duration::from_micros(random.below(WAIT_MICROS_MAX)));
        if site.has_logged(&format!("{work} ended")) {
            return;
        }
        site.kill();
        look(site);
        site.start(Start::Plain);
    }
}

/// What a restore that was cut off leaves behind.
fn assert_whole_or_marked(site: &Site, backup: &Backup, noise: &Disks) {
    let state = site.cloud_state();
    if site.marks() > 0 {
        assert_eq!(state["power"], "shutoff");
        return;
    }
    let disks = site.disks();
    assert!(disks == *noise || disks == backup.holds, "half written and not marked");
}

fn assert_that_all_restore(site: &mut Site, backups: &[Backup]) {
    for backup in backups {
        site.put_disks(&Disks::of_noise(99));
        let restore = site.restore(backup);
        site.wait_until_restored(backup, &restore);
    }
}

/// A process that owns its state directory is its own successor: while it was paused its
/// lease ran out, and another attempt takes the job from the first. A beat and the look for
/// such jobs are due at once when it wakes, and whichever comes first is right; so this is
/// tried until it was the look.
#[test]
fn a_mover_paused_past_its_lease_writes_nothing_after_its_successor_began() {
    let mut site = Site::new();
    site.start(Start::Plain);
    let backup = site.protect();
    site.wait_until_available(&backup);
    let was_taken_over = (0..PAUSES_MAX).any(|_| {
        site.put_disks(&Disks::of_noise(3));
        restore_with_a_pause(&mut site, &backup) == Woken::TakenOver
    });
    assert!(was_taken_over, "the lease never ran out");
    site.assert_clean(&[&backup]);
    site.assert_sound_to_the_last_byte();
}

/// Each takes about as long as a lease; the first one is usually enough.
const PAUSES_MAX: u32 = 4;

/// What a paused attempt met when it woke.
#[derive(Debug, PartialEq, Eq)]
enum Woken {
    /// Its beat was heard in time, and it went on.
    InTime,
    /// Its job had been taken over.
    TakenOver,
}

fn restore_with_a_pause(site: &mut Site, backup: &Backup) -> Woken {
    let disk_files =
        |site: &Site| [site.system_disk(), site.data_disk()].map(|path| fs::read(path).unwrap());
    let before = disk_files(site);
    site.restart(Start::HaltAt("restore.marked"));
    let restore = site.restore(backup);
    site.wait_until_halted();
    let first = fences(site)[0];

    site.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(LEASE_SECS));
    site.signal(Signal::SIGCONT);
    // It is awake.
    assert_eq!(site.item(backup).status, "restoring");
    // The first attempt moves again. Its successor will halt before it writes.
    site.release();
    let woken = site.wait_for("the first attempt has ended", |site| {
        if site.is_halted() {
            return Some(Woken::TakenOver);
        }
        (site.item(backup).status == "available").then_some(Woken::InTime)
    });
    if woken == Woken::TakenOver {
        assert_eq!(site.log_line("let go of a job")["job.fence"], first);
        assert!(fences(site).last().is_some_and(|last| *last > first));
        assert!(disk_files(site) == before, "the paused mover wrote on");
        assert_eq!(site.restore_status(&restore), "in_progress");
        site.release();
    }
    site.wait_until_restored(backup, &restore);
    woken
}

/// The fences of the attempts that began in the running process.
fn fences(site: &Site) -> Vec<u64> {
    let log = site.log();
    let began = log.iter().filter(|event| message(event).contains("begins or goes on"));
    began.map(|event| event["job.fence"].as_u64().unwrap()).collect()
}

#[test]
fn a_repository_that_is_away_is_waited_for_and_harms_nothing() {
    let mut site = Site::new();
    site.start(Start::Plain);
    let earlier = site.protect();
    site.wait_until_available(&earlier);
    site.put_disks(&Disks::of(5));
    site.restart(Start::HaltAt("protect.volume_stored#1"));
    let (here, away) = (site.repository(), site.repository().with_extension("away"));
    fs::rename(&here, &away).unwrap();
    let answer = site.check_restorable(&earlier);
    assert!(!answer.result && answer.error_code.starts_with("KEDGE."), "{answer:?}");
    fs::rename(&away, &here).unwrap();
    assert!(site.check_restorable(&earlier).result);

    let backup = site.protect();
    site.wait_until_halted();
    fs::rename(&here, &away).unwrap();
    site.release();
    site.log_line("will try again");
    assert_eq!(site.item(&backup).status, "protecting");
    assert_eq!(site.item(&earlier).status, "available");
    assert!(!here.exists(), "nothing is made where a repository was");

    fs::rename(&away, &here).unwrap();
    site.wait_until_available(&backup);
    site.assert_clean(&[&earlier, &backup]);
    assert_that_all_restore(&mut site, &[earlier, backup]);
    site.assert_sound_to_the_last_byte();
}

/// A file that may not grow so large is a failure that lasts, unlike a full disk, which is
/// waited for.
#[test]
fn a_backup_that_cannot_be_written_ends_in_error_and_the_next_one_works() {
    let mut site = Site::new();
    site.start(Start::Plain);
    let earlier = site.protect();
    site.wait_until_available(&earlier);
    let noise = Disks::of_noise(8);
    site.put_disks(&noise);
    site.restart(Start::FileBytesMax(2 << 20));
    let failed = site.protect();
    assert_failed_backup(&mut site, &failed);
    assert_eq!(site.item(&earlier).status, "available");

    site.restart(Start::Plain);
    let next = site.protect();
    site.wait_until_available(&next);
    site.delete(&failed);
    site.wait_until_deleted(&failed);
    site.assert_clean(&[&earlier, &next]);
    assert_that_all_restore(&mut site, &[earlier, next]);
    site.assert_sound_to_the_last_byte();
}

fn assert_failed_backup(site: &mut Site, backup: &Backup) {
    let item = site.settled(backup);
    assert_eq!(item.status, "error", "{item:?}");
    assert_eq!(item.extend_info.fail_op, "backup");
    assert!(item.extend_info.fail_code.code.is_some(), "{item:?}");
    assert!(!item.extend_info.fail_reason.is_empty());
}

#[test]
fn a_disk_written_during_its_backup_is_backed_up_at_one_moment() {
    let mut site = Site::new();
    site.start(Start::HaltAt("protect.volume_stored#1"));
    let mut backup = site.protect();
    site.wait_until_halted();
    let is_cloned = site.cloud_state()["snapshots"].to_string().contains("cloned");
    let disk = OpenOptions::new().write(true).open(site.data_disk()).unwrap();
    disk.write_all_at(b"written meanwhile", 5 << 20).unwrap();
    disk.sync_all().unwrap();
    site.release();
    site.wait_until_available(&backup);
    if !is_cloned {
        backup.holds = site.disks();
    }
    site.put_disks(&Disks::of_noise(6));
    let restore = site.restore(&backup);
    site.wait_until_restored(&backup, &restore);
    site.assert_clean(&[&backup]);
    site.assert_sound();
}

#[test]
fn a_disk_cut_short_or_deleted_during_its_backup_fails_it_and_the_next_one_works() {
    let mut site = Site::new();
    let whole = Disks::of(9);
    site.put_disks(&whole);
    let cut_short = |site: &Site| {
        let disk = OpenOptions::new().write(true).open(site.data_disk()).unwrap();
        disk.set_len(3 << 20).unwrap();
    };
    let remove = |site: &Site| fs::remove_file(site.system_disk()).unwrap();
    let mishaps: [&dyn Fn(&Site); 2] = [&cut_short, &remove];
    for mishap in mishaps {
        site.start(Start::HaltAt("protect.frozen_saved#1"));
        let backup = site.protect();
        site.wait_until_halted();
        let is_cloned = site.cloud_state()["snapshots"].to_string().contains("cloned");
        mishap(&site);
        site.release();
        if is_cloned {
            site.wait_until_available(&backup);
        } else {
            assert_failed_backup(&mut site, &backup);
        }
        site.put_disks(&whole);
        site.delete(&backup);
        site.wait_until_deleted(&backup);
        site.stop();
    }
    site.start(Start::Plain);
    let next = site.protect();
    site.wait_until_available(&next);
    site.assert_clean(&[&next]);
    assert_that_all_restore(&mut site, &[next]);
    site.assert_sound_to_the_last_byte();
}

#[test]
fn a_half_written_server_stays_stopped_and_marked_until_it_is_restored_again() {
    let mut site = Site::new();
    site.start(Start::Plain);
    let backup = site.protect();
    site.wait_until_available(&backup);
    site.put_disks(&Disks::of_noise(4));
    site.restart(Start::HaltAt("restore.written#1"));
    let restore = site.restore(&backup);
    site.wait_until_halted();
    let (here, away) = (site.repository().join("data"), site.repository().join("away"));
    fs::rename(&here, &away).unwrap();
    site.release();

    let item = site.settled(&backup);
    assert_eq!(item.status, "available", "a failed restore does not harm the backup");
    assert_eq!(item.extend_info.fail_op, "restore");
    let reason = &item.extend_info.fail_reason;
    assert!(reason.contains("half written") && reason.contains("POST /restores"), "{reason}");
    assert_eq!(site.restore_status(&restore), "fail");
    assert_eq!(site.cloud_state()["power"], "shutoff");
    assert!(site.marks() > 0);

    fs::rename(&away, &here).unwrap();
    let again = site.restore(&backup);
    site.wait_until_restored(&backup, &again);
    site.assert_clean(&[&backup]);
    site.assert_sound_to_the_last_byte();
}
