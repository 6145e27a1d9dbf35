//! The judge: what the published table answers, read straight from it.
//!
//! Each row of docs/csbs-v1.md is a question about a whole world; the first that is
//! answered "yes, broken" gives the code, and nothing else is looked at. Rows of this
//! service (`KEDGE`) stand between the published ones where the design puts them.
//!
//! Invariant: this file shares no code and no type with the planner it judges.

use super::scenario::{
    Ask, BackupDesc, BackupRef, BackupStatus, Demand, DiskDesc, DiskStatus, Exists, Held, ItemRef,
    Kind, Owner, ProtectAsk, ProtectWorld, Repository, SERVER_TYPE, ServerStatus, SharedDisks,
    Snapshot, Storage, TargetDisk, Trigger, VolumeRef, World, ZoneStorage,
};

/// The table's answer to "can this backup be restored to that target?".
pub(crate) fn restorable(world: &World, ask: &Ask) -> Result<(), &'static str> {
    first_broken(&RESTORE_ROWS, world, ask)
}

/// The table's answer to "can this server be backed up?".
pub(crate) fn protectable(world: &ProtectWorld, ask: &ProtectAsk) -> Result<(), &'static str> {
    first_broken(&PROTECT_ROWS, world, ask)
}

/// One row: its number in the table and its condition, its code, and whether a world and a
/// question break it.
struct Row<W, A> {
    title: &'static str,
    code: &'static str,
    broken: fn(&W, &A) -> bool,
}

fn first_broken<W, A>(rows: &[Row<W, A>], world: &W, ask: &A) -> Result<(), &'static str> {
    match rows.iter().find(|row| (row.broken)(world, ask)) {
        Some(row) => Err(row.code),
        None => Ok(()),
    }
}

const fn row<W, A>(
    title: &'static str,
    code: &'static str,
    broken: fn(&W, &A) -> bool,
) -> Row<W, A> {
    Row { title, code, broken }
}

/// docs/csbs-v1.md, `check_restorable`. A row may rely on the rows above it being kept.
const RESTORE_ROWS: [Row<World, Ask>; 28] = [
    row("1 backup unknown or foreign", "CSBS.3001", |world, ask| {
        let seen = world.backup.as_ref().is_some_and(is_visible);
        !seen || ask.item != ItemRef::Known
    }),
    row("2 not a server type", "CSBS.6013", |_, ask| ask.resource_type != SERVER_TYPE),
    row("3 backup not available", "CSBS.4000", |world, _| {
        of_backup(world, |backup| backup.status != BackupStatus::Available)
    }),
    row("4 target unknown or foreign", "CSBS.6000", |world, _| is_absent(world.target.exists)),
    row("4 the cloud is silent", "KEDGE.0001", |world, _| {
        world.target.exists == Exists::CloudSilent
    }),
    row("5 target terminated", "CSBS.6001", |world, _| {
        world.target.status == ServerStatus::Deleted
    }),
    row("6 target kind cannot be restored", "CSBS.6016", |world, _| {
        world.target.kind == Kind::BareMetal
    }),
    row("7 kinds differ", "CSBS.6019", |world, _| {
        of_backup(world, |backup| backup.kind != world.target.kind)
    }),
    row("8 target's status forbids it", "CSBS.6015", |world, _| is_unsettled(world.target.status)),
    row("8 a restore holds the target", "CSBS.6015", |world, _| world.target.held == Held::Restore),
    row("9 a backup holds the target", "CSBS.6015", |world, _| {
        matches!(world.target.held, Held::Backup(Trigger::Manual | Trigger::Automatic))
    }),
    row("10 zones differ", "CSBS.6025", |world, _| {
        of_backup(world, |backup| backup.zone != world.target.zone)
    }),
    row("11 target without disks", "CSBS.6020", |world, _| world.target.disks.is_empty()),
    row("12 not of this backup", "CSBS.6017", |_, ask| {
        ask.pairs.iter().any(|pair| pair.0 == BackupRef::Stranger)
    }),
    row("13 a disk left out", "CSBS.6018", |world, ask| {
        let is_mapped = |disk| ask.pairs.iter().any(|pair| pair.0 == BackupRef::Own(disk));
        of_backup(world, |backup| !(0..backup.disks.len()).all(is_mapped))
    }),
    row("14 not attached", "CSBS.6014", |_, ask| {
        ask.pairs.iter().any(|pair| pair.1 == VolumeRef::Elsewhere)
    }),
    row("15 shared destination", "CSBS.6021", |world, ask| {
        any_write(world, ask, |_, to| to.shared)
    }),
    row("16 data onto system", "CSBS.6023", |world, ask| {
        any_write(world, ask, |from, to| to.system && !from.system)
    }),
    row("17 destination too small", "CSBS.6024", |world, ask| {
        any_write(world, ask, |from, to| to.size_bytes < from.size_bytes)
    }),
    row("18 destination not healthy", "KEDGE.0002", |world, ask| {
        any_write(world, ask, |_, to| to.status != DiskStatus::Healthy)
    }),
    row("18a encrypted onto plain", "KEDGE.0003", |world, ask| {
        any_write(world, ask, |from, to| from.encrypted && !to.encrypted)
    }),
    row("18b destination held", "KEDGE.0010", |world, ask| any_write(world, ask, |_, to| to.held)),
    row("18b' half-written disk left out", "KEDGE.0012", |world, ask| {
        let is_mapped = |disk| ask.pairs.iter().any(|pair| pair.1 == VolumeRef::Attached(disk));
        let mut disks = world.target.disks.iter().enumerate();
        disks.any(|(at, disk)| disk.half_written && !is_mapped(at))
    }),
    row("18c repository unreachable", "KEDGE.0005", |world, _| {
        world.repository == Repository::Unreachable
    }),
    row("18d snapshot missing", "KEDGE.0006", |world, _| {
        of_backup(world, |backup| backup.snapshot == Snapshot::Missing)
    }),
    row("18e key unavailable", "KEDGE.0008", |world, _| world.repository == Repository::KeyGone),
    row("18f data damaged", "KEDGE.0013", |world, _| {
        of_backup(world, |backup| backup.snapshot == Snapshot::Damaged)
    }),
    row("18g evidence as demanded", "KEDGE.0009", |world, _| {
        of_backup(world, |_| world.demand == Demand::Unmet)
    }),
];

/// docs/csbs-v1.md, `check_protectable`.
const PROTECT_ROWS: [Row<ProtectWorld, ProtectAsk>; 15] = [
    row("1 not a server type", "CSBS.6003", |_, ask| ask.resource_type != SERVER_TYPE),
    row("2 server unknown or foreign", "CSBS.6000", |world, _| is_absent(world.server.exists)),
    row("2 the cloud is silent", "KEDGE.0001", |world, _| {
        world.server.exists == Exists::CloudSilent
    }),
    row("3 server terminated", "CSBS.6001", |world, _| {
        world.server.status == ServerStatus::Deleted
    }),
    row("4 kind not supported", "CSBS.6006", |world, _| world.server.kind == Kind::BareMetal),
    row("5 neither running nor stopped", "CSBS.6005", |world, _| is_unsettled(world.server.status)),
    row("6 zone without backup storage", "CSBS.6027", |world, _| {
        world.server.zone == ZoneStorage::Missing
    }),
    row("7 no disk", "CSBS.6007", |world, _| world.server.disks.is_empty()),
    row("8 dedicated storage", "CSBS.6033", |world, _| is_any_on(world, Storage::Dedicated)),
    row("8 storage unsupported", "CSBS.6061", |world, _| is_any_on(world, Storage::Unsupported)),
    row("9 shared disk refused", "CSBS.6010", |world, _| {
        let refused = world.shared_disks == SharedDisks::Refused;
        refused && world.server.disks.iter().any(|disk| disk.shared)
    }),
    row("10 a manual backup runs", "CSBS.1001", |world, _| {
        world.server.held == Held::Backup(Trigger::Manual)
    }),
    row("10 an automatic backup runs", "CSBS.6030", |world, _| {
        world.server.held == Held::Backup(Trigger::Automatic)
    }),
    row("10 a restore runs", "CSBS.6005", |world, _| world.server.held == Held::Restore),
    row("11 half-written disk", "KEDGE.0012", |world, _| {
        world.server.disks.iter().any(|disk| disk.half_written)
    }),
];

/// Whether the asker's lists show it.
fn is_visible(backup: &BackupDesc) -> bool {
    backup.owner == Owner::Mine && backup.status != BackupStatus::Deleted
}

fn is_absent(exists: Exists) -> bool {
    match exists {
        Exists::Foreign | Exists::Nowhere => true,
        Exists::Mine | Exists::CloudSilent => false,
    }
}

fn is_unsettled(status: ServerStatus) -> bool {
    match status {
        ServerStatus::Active | ServerStatus::Shutoff => false,
        ServerStatus::Error
        | ServerStatus::Resizing
        | ServerStatus::VerifyResize
        | ServerStatus::InTransition
        | ServerStatus::Deleted => true,
    }
}

fn is_any_on(world: &ProtectWorld, storage: Storage) -> bool {
    world.server.disks.iter().any(|disk| disk.storage == storage)
}

fn of_backup(world: &World, broken: impl Fn(&BackupDesc) -> bool) -> bool {
    world.backup.as_ref().is_some_and(broken)
}

/// Whether any disk that would be written, with the disk backup that goes there, is so.
fn any_write(world: &World, ask: &Ask, broken: fn(&DiskDesc, &TargetDisk) -> bool) -> bool {
    let Some(backup) = &world.backup else { return false };
    ask.pairs.iter().any(|pair| match *pair {
        (BackupRef::Own(disk), VolumeRef::Attached(volume)) => {
            broken(&backup.disks[disk], &world.target.disks[volume])
        }
        (BackupRef::Stranger, _) | (_, VolumeRef::Elsewhere) => false,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::scenario::{
        ProtectBreak, ProtectDisk, ProtectServer, RestoreBreak, ServerDesc, broken, broken_protect,
        random, random_protect,
    };
    use super::*;

    const SEEDS: u64 = 4_000;
    const LEAST_PER_CODE: usize = 15;
    const DISK: DiskDesc = DiskDesc { size_bytes: 1 << 20, system: false, encrypted: false };
    const ONTO: TargetDisk = TargetDisk {
        size_bytes: 1 << 20,
        system: false,
        shared: false,
        status: DiskStatus::Healthy,
        encrypted: false,
        held: false,
        half_written: false,
    };

    /// A system and a data disk go back to where they came from; a third disk looks on.
    fn whole() -> (World, Ask) {
        let backup = BackupDesc {
            owner: Owner::Mine,
            status: BackupStatus::Available,
            kind: Kind::Kvm,
            zone: "here",
            disks: vec![DiskDesc { system: true, ..DISK }, DISK],
            snapshot: Snapshot::Present,
        };
        let target = ServerDesc {
            exists: Exists::Mine,
            kind: Kind::Kvm,
            status: ServerStatus::Active,
            zone: "here",
            disks: vec![TargetDisk { system: true, ..ONTO }, ONTO, ONTO],
            held: Held::None,
        };
        let pairs = vec![
            (BackupRef::Own(0), VolumeRef::Attached(0)),
            (BackupRef::Own(1), VolumeRef::Attached(1)),
        ];
        let ask = Ask { resource_type: SERVER_TYPE, pairs, item: ItemRef::Known };
        let (repository, demand) = (Repository::Up, Demand::Nothing);
        (World { backup: Some(backup), target, repository, demand }, ask)
    }

    fn whole_protect() -> (ProtectWorld, ProtectAsk) {
        let disk = ProtectDisk {
            size_bytes: 1 << 20,
            system: true,
            shared: false,
            storage: Storage::Ordinary,
            half_written: false,
        };
        let server = ProtectServer {
            exists: Exists::Mine,
            kind: Kind::Kvm,
            status: ServerStatus::Active,
            zone: ZoneStorage::Present,
            disks: vec![disk, ProtectDisk { system: false, ..disk }],
            held: Held::None,
        };
        let world = ProtectWorld { server, shared_disks: SharedDisks::Refused };
        (world, ProtectAsk { resource_type: SERVER_TYPE })
    }

    type Breaks<W, A> = Vec<(&'static str, &'static str, fn(&mut W, &mut A))>;

    fn backup(world: &mut World) -> &mut BackupDesc {
        world.backup.as_mut().unwrap()
    }

    /// One line per row of the table, in its order, and per way to break it.
    fn restore_breaks() -> Breaks<World, Ask> {
        vec![
            ("1", "CSBS.3001", |w, _| backup(w).owner = Owner::Foreign),
            ("1", "CSBS.3001", |w, _| backup(w).status = BackupStatus::Deleted),
            ("1", "CSBS.3001", |_, a| a.item = ItemRef::RandomUuid),
            ("1", "CSBS.3001", |_, a| a.item = ItemRef::NotAUuid),
            ("2", "CSBS.6013", |_, a| a.resource_type = "OS::Cinder::Volume"),
            ("3", "CSBS.4000", |w, _| backup(w).status = BackupStatus::Restoring),
            ("4", "CSBS.6000", |w, _| w.target.exists = Exists::Foreign),
            ("4", "CSBS.6000", |w, _| w.target.exists = Exists::Nowhere),
            ("4", "KEDGE.0001", |w, _| w.target.exists = Exists::CloudSilent),
            ("5", "CSBS.6001", |w, _| w.target.status = ServerStatus::Deleted),
            ("6", "CSBS.6016", |w, _| w.target.kind = Kind::BareMetal),
            ("7", "CSBS.6019", |w, _| w.target.kind = Kind::Xen),
            ("8", "CSBS.6015", |w, _| w.target.status = ServerStatus::Error),
            ("8", "CSBS.6015", |w, _| w.target.status = ServerStatus::Resizing),
            ("8", "CSBS.6015", |w, _| w.target.status = ServerStatus::VerifyResize),
            ("8", "CSBS.6015", |w, _| w.target.status = ServerStatus::InTransition),
            ("8", "CSBS.6015", |w, _| w.target.held = Held::Restore),
            ("9", "CSBS.6015", |w, _| w.target.held = Held::Backup(Trigger::Manual)),
            ("9", "CSBS.6015", |w, _| w.target.held = Held::Backup(Trigger::Automatic)),
            ("10", "CSBS.6025", |w, _| w.target.zone = "there"),
            ("11", "CSBS.6020", |w, a| {
                w.target.disks.clear();
                a.pairs.iter_mut().for_each(|pair| pair.1 = VolumeRef::Elsewhere);
            }),
            ("12", "CSBS.6017", |_, a| {
                a.pairs = vec![(BackupRef::Stranger, VolumeRef::Attached(0))];
            }),
            ("12", "CSBS.6017", |_, a| a.pairs.push((BackupRef::Stranger, VolumeRef::Elsewhere))),
            ("13", "CSBS.6018", |_, a| a.pairs.truncate(1)),
            ("13", "CSBS.6018", |_, a| a.pairs.clear()),
            ("14", "CSBS.6014", |_, a| a.pairs[0].1 = VolumeRef::Elsewhere),
            ("15", "CSBS.6021", |w, _| w.target.disks[1].shared = true),
            ("16", "CSBS.6023", |w, _| w.target.disks[1].system = true),
            ("17", "CSBS.6024", |w, _| w.target.disks[1].size_bytes -= 1),
            ("18", "KEDGE.0002", |w, _| w.target.disks[1].status = DiskStatus::Error),
            ("18", "KEDGE.0002", |w, _| w.target.disks[1].status = DiskStatus::Busy),
            ("18a", "KEDGE.0003", |w, _| backup(w).disks[1].encrypted = true),
            ("18b", "KEDGE.0010", |w, _| w.target.disks[1].held = true),
            ("18b'", "KEDGE.0012", |w, _| w.target.disks[2].half_written = true),
            ("18c", "KEDGE.0005", |w, _| w.repository = Repository::Unreachable),
            ("18d", "KEDGE.0006", |w, _| backup(w).snapshot = Snapshot::Missing),
            ("18e", "KEDGE.0008", |w, _| w.repository = Repository::KeyGone),
            ("18f", "KEDGE.0013", |w, _| backup(w).snapshot = Snapshot::Damaged),
            ("18g", "KEDGE.0009", |w, _| w.demand = Demand::Unmet),
        ]
    }

    fn protect_breaks() -> Breaks<ProtectWorld, ProtectAsk> {
        vec![
            ("1", "CSBS.6003", |_, a| a.resource_type = "OS::Cinder::Volume"),
            ("2", "CSBS.6000", |w, _| w.server.exists = Exists::Foreign),
            ("2", "CSBS.6000", |w, _| w.server.exists = Exists::Nowhere),
            ("2", "KEDGE.0001", |w, _| w.server.exists = Exists::CloudSilent),
            ("3", "CSBS.6001", |w, _| w.server.status = ServerStatus::Deleted),
            ("4", "CSBS.6006", |w, _| w.server.kind = Kind::BareMetal),
            ("5", "CSBS.6005", |w, _| w.server.status = ServerStatus::Error),
            ("5", "CSBS.6005", |w, _| w.server.status = ServerStatus::Resizing),
            ("5", "CSBS.6005", |w, _| w.server.status = ServerStatus::VerifyResize),
            ("5", "CSBS.6005", |w, _| w.server.status = ServerStatus::InTransition),
            ("6", "CSBS.6027", |w, _| w.server.zone = ZoneStorage::Missing),
            ("7", "CSBS.6007", |w, _| w.server.disks.clear()),
            ("8", "CSBS.6033", |w, _| w.server.disks[0].storage = Storage::Dedicated),
            ("8", "CSBS.6061", |w, _| w.server.disks[1].storage = Storage::Unsupported),
            ("9", "CSBS.6010", |w, _| w.server.disks[1].shared = true),
            ("10", "CSBS.1001", |w, _| w.server.held = Held::Backup(Trigger::Manual)),
            ("10", "CSBS.6030", |w, _| w.server.held = Held::Backup(Trigger::Automatic)),
            ("10", "CSBS.6005", |w, _| w.server.held = Held::Restore),
            ("11", "KEDGE.0012", |w, _| w.server.disks[1].half_written = true),
        ]
    }

    /// Breaks each line alone, then after each later line: the earlier one answers.
    fn judge_lines<W, A>(
        lines: &Breaks<W, A>,
        whole: fn() -> (W, A),
        judge: fn(&W, &A) -> Result<(), &'static str>,
    ) {
        for (at, (number, code, break_it)) in lines.iter().enumerate() {
            let (mut world, mut ask) = whole();
            break_it(&mut world, &mut ask);
            assert_eq!(judge(&world, &ask), Err(*code), "row {number} alone");
            for (later, _, break_first) in &lines[at + 1..] {
                let (mut world, mut ask) = whole();
                break_first(&mut world, &mut ask);
                break_it(&mut world, &mut ask);
                assert_eq!(judge(&world, &ask), Err(*code), "row {number} before {later}");
            }
        }
    }

    /// The number before each row's title, with its code.
    fn numbers<W, A>(rows: &[Row<W, A>]) -> Vec<(&'static str, &'static str)> {
        let number = |row: &Row<W, A>| row.title.split(' ').next().unwrap();
        let mut all: Vec<_> = rows.iter().map(|row| (number(row), row.code)).collect();
        all.dedup();
        all
    }

    fn numbers_of_lines<W, A>(lines: &Breaks<W, A>) -> Vec<(&'static str, &'static str)> {
        let mut all: Vec<_> = lines.iter().map(|line| (line.0, line.1)).collect();
        all.dedup();
        all
    }

    #[test]
    fn each_row_of_a_restore_answers_alone_and_before_all_later_rows() {
        assert_eq!(restorable(&whole().0, &whole().1), Ok(()));
        judge_lines(&restore_breaks(), whole, restorable);
        assert_eq!(numbers(&RESTORE_ROWS), numbers_of_lines(&restore_breaks()));
    }

    #[test]
    fn each_row_of_a_backup_answers_alone_and_before_all_later_rows() {
        let (world, ask) = whole_protect();
        assert_eq!(protectable(&world, &ask), Ok(()));
        judge_lines(&protect_breaks(), whole_protect, protectable);
        assert_eq!(numbers(&PROTECT_ROWS), numbers_of_lines(&protect_breaks()));
    }

    #[test]
    fn what_no_rule_forbids_is_allowed() {
        let rows: Breaks<World, Ask> = vec![
            ("a stopped server", "", |w, _| w.target.status = ServerStatus::Shutoff),
            ("another disk than before", "", |_, a| a.pairs[1].1 = VolumeRef::Attached(2)),
            ("the system disk onto a data disk", "", |_, a| a.pairs[0].1 = VolumeRef::Attached(2)),
            ("plain onto encrypted", "", |w, _| w.target.disks[1].encrypted = true),
            ("a disk grown since", "", |w, _| w.target.disks[1].size_bytes += 1),
            ("a half-written destination", "", |w, _| w.target.disks[1].half_written = true),
            ("a bystander of any state but half written", "", |w, _| {
                w.target.disks[2] = TargetDisk {
                    size_bytes: 1,
                    system: true,
                    shared: true,
                    status: DiskStatus::Error,
                    encrypted: true,
                    held: true,
                    half_written: false,
                };
            }),
        ];
        for (what, _, change) in rows {
            let (mut world, mut ask) = whole();
            change(&mut world, &mut ask);
            assert_eq!(restorable(&world, &ask), Ok(()), "{what}");
        }
    }

    #[test]
    fn a_backup_never_made_is_unknown() {
        let (mut world, mut ask) = whole();
        world.backup = None;
        ask.pairs.iter_mut().for_each(|pair| pair.0 = BackupRef::Stranger);
        assert_eq!(restorable(&world, &ask), Err("CSBS.3001"));
    }

    #[test]
    fn shared_disks_are_backed_up_unless_the_operator_refuses_them() {
        let (mut world, ask) = whole_protect();
        world.server.disks[0].shared = true;
        world.shared_disks = SharedDisks::Allowed;
        assert_eq!(protectable(&world, &ask), Ok(()));
    }

    /// The code that the generator means by each of its breaks.
    fn code_of(rule: RestoreBreak) -> &'static str {
        use RestoreBreak as B;
        match rule {
            B::BackupUnknown => "CSBS.3001",
            B::NotAServer => "CSBS.6013",
            B::BackupNotAvailable => "CSBS.4000",
            B::TargetUnknown => "CSBS.6000",
            B::CloudSilent => "KEDGE.0001",
            B::TargetTerminated => "CSBS.6001",
            B::KindUnsupported => "CSBS.6016",
            B::OtherKind => "CSBS.6019",
            B::TargetUnsettled | B::RestoreHoldsTarget | B::BackupHoldsTarget => "CSBS.6015",
            B::OtherZone => "CSBS.6025",
            B::TargetWithoutDisks => "CSBS.6020",
            B::BackupOfAnother => "CSBS.6017",
            B::DiskLeftOut => "CSBS.6018",
            B::VolumeElsewhere => "CSBS.6014",
            B::DestinationShared => "CSBS.6021",
            B::DataOntoSystem => "CSBS.6023",
            B::DestinationTooSmall => "CSBS.6024",
            B::DestinationUnhealthy => "KEDGE.0002",
            B::EncryptedOntoPlain => "KEDGE.0003",
            B::DestinationHeld => "KEDGE.0010",
            B::HalfWrittenLeftOut => "KEDGE.0012",
            B::RepositoryUnreachable => "KEDGE.0005",
            B::SnapshotMissing => "KEDGE.0006",
            B::KeyGone => "KEDGE.0008",
            B::DataDamaged => "KEDGE.0013",
            B::EvidenceTooWeak => "KEDGE.0009",
        }
    }

    fn code_of_protect(rule: ProtectBreak) -> &'static str {
        use ProtectBreak as B;
        match rule {
            B::NotAServer => "CSBS.6003",
            B::Unknown => "CSBS.6000",
            B::CloudSilent => "KEDGE.0001",
            B::Terminated => "CSBS.6001",
            B::KindUnsupported => "CSBS.6006",
            B::Unsettled | B::RestoreRunning => "CSBS.6005",
            B::ZoneWithoutStorage => "CSBS.6027",
            B::NoDisk => "CSBS.6007",
            B::DedicatedStorage => "CSBS.6033",
            B::UnsupportedStorage => "CSBS.6061",
            B::SharedRefused => "CSBS.6010",
            B::ManualBackupRunning => "CSBS.1001",
            B::AutomaticBackupRunning => "CSBS.6030",
            B::HalfWritten => "KEDGE.0012",
        }
    }

    #[test]
    fn one_broken_rule_gives_its_own_code_in_every_world() {
        for seed in 0..200 {
            let (world, ask) = broken(seed, &[]);
            assert_eq!(restorable(&world, &ask), Ok(()), "seed {seed}: {world:?} {ask:?}");
            for rule in RestoreBreak::ALL {
                let (world, ask) = broken(seed, &[rule]);
                let expected = Err(code_of(rule));
                assert_eq!(
                    restorable(&world, &ask),
                    expected,
                    "{seed} {rule:?}: {world:?} {ask:?}"
                );
            }
            let (world, ask) = broken_protect(seed, &[]);
            assert_eq!(protectable(&world, &ask), Ok(()), "seed {seed}: {world:?}");
            for rule in ProtectBreak::ALL {
                let (world, ask) = broken_protect(seed, &[rule]);
                let expected = Err(code_of_protect(rule));
                assert_eq!(protectable(&world, &ask), expected, "{seed} {rule:?}: {world:?}");
            }
        }
    }

    /// Fails unless the answers hold every code of the rows often enough, and yes too.
    fn judge_spread<W, A>(
        rows: &[Row<W, A>],
        answers: impl Iterator<Item = Result<(), &'static str>>,
    ) {
        let mut counts = BTreeMap::new();
        for answer in answers {
            *counts.entry(answer.err().unwrap_or("yes")).or_insert(0_usize) += 1;
        }
        for row in rows {
            let count = counts.get(row.code).copied().unwrap_or(0);
            assert!(count >= LEAST_PER_CODE, "{}: {counts:?}", row.code);
        }
        assert!(counts["yes"] >= 300, "{counts:?}");
    }

    #[test]
    fn the_generator_meets_every_code_often() {
        let restore = (0..SEEDS).map(random).map(|(world, ask)| restorable(&world, &ask));
        judge_spread(&RESTORE_ROWS, restore);
        let protect = (0..SEEDS).map(random_protect).map(|(world, ask)| protectable(&world, &ask));
        judge_spread(&PROTECT_ROWS, protect);
    }

    /// How many cases answer otherwise once a row is struck from the table.
    fn answers_lost_without<W, A>(rows: &[Row<W, A>], struck: usize, cases: &[(W, A)]) -> usize {
        let differs = |(world, ask): &&(W, A)| {
            let mut left = rows.iter().enumerate().filter(|(at, _)| *at != struck);
            let without = left.find(|(_, row)| (row.broken)(world, ask)).map(|(_, row)| row.code);
            without != first_broken(rows, world, ask).err()
        };
        cases.iter().filter(differs).count()
    }

    #[test]
    fn a_missing_rule_would_be_noticed() {
        let cases: Vec<_> = (0..SEEDS).map(random).collect();
        for (at, row) in RESTORE_ROWS.iter().enumerate() {
            assert!(answers_lost_without(&RESTORE_ROWS, at, &cases) >= 10, "{}", row.title);
        }
        let cases: Vec<_> = (0..SEEDS).map(random_protect).collect();
        for (at, row) in PROTECT_ROWS.iter().enumerate() {
            assert!(answers_lost_without(&PROTECT_ROWS, at, &cases) >= 10, "{}", row.title);
        }
    }

    /// Pairs of rows that no case sets against each other: the earlier one answers, the
    /// later one is broken too and would have answered otherwise.
    fn pairs_never_met<W, A>(rows: &[Row<W, A>], cases: &[(W, A)]) -> Vec<[&'static str; 2]> {
        let mut never = Vec::new();
        for (at, first) in rows.iter().enumerate() {
            for later in rows[at + 1..].iter().filter(|later| later.code != first.code) {
                let meet = |(world, ask): &(W, A)| {
                    (later.broken)(world, ask)
                        && first_broken(&rows[..=at], world, ask) == Err(first.code)
                        && first_broken(&rows[..at], world, ask).is_ok()
                };
                if !cases.iter().any(meet) {
                    never.push([first.title, later.title]);
                }
            }
        }
        never
    }

    #[test]
    fn every_two_rules_of_a_restore_meet_unless_they_cannot() {
        let cases: Vec<_> = (0..SEEDS).map(random).collect();
        let no_disks = "11 target without disks";
        let cannot = [
            ["4 target unknown or foreign", "4 the cloud is silent"],
            [no_disks, "15 shared destination"],
            [no_disks, "16 data onto system"],
            [no_disks, "17 destination too small"],
            [no_disks, "18 destination not healthy"],
            [no_disks, "18a encrypted onto plain"],
            [no_disks, "18b destination held"],
            [no_disks, "18b' half-written disk left out"],
            ["18c repository unreachable", "18e key unavailable"],
            ["18d snapshot missing", "18f data damaged"],
        ];
        assert_eq!(pairs_never_met(&RESTORE_ROWS, &cases), cannot);
    }

    #[test]
    fn every_two_rules_of_a_backup_meet_unless_they_cannot() {
        let cases: Vec<_> = (0..SEEDS).map(random_protect).collect();
        let cannot = [
            ["2 server unknown or foreign", "2 the cloud is silent"],
            ["7 no disk", "8 dedicated storage"],
            ["7 no disk", "8 storage unsupported"],
            ["7 no disk", "9 shared disk refused"],
            ["7 no disk", "11 half-written disk"],
            ["10 a manual backup runs", "10 an automatic backup runs"],
            ["10 a manual backup runs", "10 a restore runs"],
            ["10 an automatic backup runs", "10 a restore runs"],
        ];
        assert_eq!(pairs_never_met(&PROTECT_ROWS, &cases), cannot);
    }
}
