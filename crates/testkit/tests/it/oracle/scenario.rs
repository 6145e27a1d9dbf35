//! Worlds and questions for the oracle, in plain words of their own: nothing here is a
//! type of the code under judgement.
//!
//! A generated case starts whole, then has a few rules broken. Rules are dealt evenly, so
//! each is met alone often, and every two rules meet so that their order shows. What no
//! rule speaks of (disks that are no destination) is made odd on purpose: an answer that
//! minds it is wrong too.
//!
//! Invariant: a case is a function of its seed, and no mapping names a backup or a volume
//! twice (that is a malformed request, not a question).

/// The chunk of the repository for small disks; sizes fall on and off its multiples.
pub(crate) const CHUNK_BYTES: u64 = 512 << 10;

/// The one type that is a server's.
pub(crate) const SERVER_TYPE: &str = "OS::Nova::Server";

const OTHER_TYPES: [&str; 4] =
    ["OS::Ironic::BareMetalServer", "OS::Cinder::Volume", "os::nova::server", "server"];
const ZONES: [&str; 2] = ["az-01", "az-02"];
const DISKS_MAX: usize = 3;

/// A backup, a server to restore it to, and the repository between them.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// `None`: no backup was ever made.
    pub(crate) backup: Option<BackupDesc>,
    pub(crate) target: ServerDesc,
    pub(crate) repository: Repository,
    pub(crate) demand: Demand,
}

/// What must be known of a backup before it is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Demand {
    Nothing,
    /// No more than is known.
    Met,
    /// More than is known, or fresher.
    Unmet,
}

#[derive(Clone, Debug)]
pub(crate) struct BackupDesc {
    pub(crate) owner: Owner,
    pub(crate) status: BackupStatus,
    /// Kind of the server it was made of.
    pub(crate) kind: Kind,
    /// Zone of that server when it was made.
    pub(crate) zone: &'static str,
    pub(crate) disks: Vec<DiskDesc>,
    pub(crate) snapshot: Snapshot,
}

/// A disk as it was when backed up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskDesc {
    pub(crate) size_bytes: u64,
    pub(crate) system: bool,
    pub(crate) encrypted: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ServerDesc {
    pub(crate) exists: Exists,
    pub(crate) kind: Kind,
    pub(crate) status: ServerStatus,
    pub(crate) zone: &'static str,
    pub(crate) disks: Vec<TargetDisk>,
    pub(crate) held: Held,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct TargetDisk {
    pub(crate) size_bytes: u64,
    pub(crate) system: bool,
    pub(crate) shared: bool,
    pub(crate) status: DiskStatus,
    pub(crate) encrypted: bool,
    /// Another job has claimed this disk, the server being free.
    pub(crate) held: bool,
    /// A restore that failed left it so.
    pub(crate) half_written: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Mine,
    Foreign,
}

/// What the asker can learn of a server. The described server stands in every case; this
/// says who owns it, or that the question reaches past it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exists {
    Mine,
    Foreign,
    /// The question names an id no server has.
    Nowhere,
    /// The cloud does not answer for it.
    CloudSilent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Kvm,
    Xen,
    BareMetal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerStatus {
    Active,
    Shutoff,
    Error,
    Resizing,
    VerifyResize,
    InTransition,
    Deleted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackupStatus {
    WaitingProtect,
    Protecting,
    Available,
    WaitingRestore,
    Restoring,
    Error,
    WaitingDelete,
    Deleting,
    /// A tombstone: gone for every caller.
    Deleted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Snapshot {
    Present,
    Missing,
    /// There, but some of the data it names was found damaged.
    Damaged,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repository {
    Up,
    Unreachable,
    KeyGone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskStatus {
    Healthy,
    Error,
    Busy,
}

/// Which job holds a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    None,
    Backup(Trigger),
    Restore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    Manual,
    Automatic,
}

/// "Can this backup be restored to that target?"
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) resource_type: &'static str,
    pub(crate) pairs: Vec<(BackupRef, VolumeRef)>,
    pub(crate) item: ItemRef,
}

/// How the question names the backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ItemRef {
    /// By the id of the world's backup, or one that was never given if there is none.
    Known,
    RandomUuid,
    NotAUuid,
}

/// How a mapping names a disk backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackupRef {
    /// Disk of the world's backup, by position.
    Own(usize),
    /// Anything else, each time another.
    Stranger,
}

/// How a mapping names a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeRef {
    /// Disk of the target, by position.
    Attached(usize),
    /// Anything else, each time another.
    Elsewhere,
}

/// A server to back up and the settings that bear on it.
#[derive(Clone, Debug)]
pub(crate) struct ProtectWorld {
    pub(crate) server: ProtectServer,
    /// The operator's word on shared disks.
    pub(crate) shared_disks: SharedDisks,
}

#[derive(Clone, Debug)]
pub(crate) struct ProtectServer {
    pub(crate) exists: Exists,
    pub(crate) kind: Kind,
    pub(crate) status: ServerStatus,
    pub(crate) zone: ZoneStorage,
    pub(crate) disks: Vec<ProtectDisk>,
    pub(crate) held: Held,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ProtectDisk {
    pub(crate) size_bytes: u64,
    pub(crate) system: bool,
    pub(crate) shared: bool,
    pub(crate) storage: Storage,
    pub(crate) half_written: bool,
}

/// Whether backups can be kept in the server's zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZoneStorage {
    Present,
    Missing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    Ordinary,
    Dedicated,
    Unsupported,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SharedDisks {
    Allowed,
    Refused,
}

/// "Can this server be backed up?"
#[derive(Clone, Debug)]
pub(crate) struct ProtectAsk {
    pub(crate) resource_type: &'static str,
}

/// Every condition of a restore that can be broken, in the order in which breaks are
/// made: details first, then what hides them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestoreBreak {
    DataOntoSystem,
    EvidenceTooWeak,
    DataDamaged,
    KeyGone,
    SnapshotMissing,
    RepositoryUnreachable,
    HalfWrittenLeftOut,
    DestinationHeld,
    EncryptedOntoPlain,
    DestinationUnhealthy,
    DestinationTooSmall,
    DestinationShared,
    VolumeElsewhere,
    DiskLeftOut,
    BackupOfAnother,
    TargetWithoutDisks,
    OtherZone,
    BackupHoldsTarget,
    RestoreHoldsTarget,
    TargetUnsettled,
    OtherKind,
    KindUnsupported,
    TargetTerminated,
    CloudSilent,
    TargetUnknown,
    BackupNotAvailable,
    NotAServer,
    BackupUnknown,
}

impl RestoreBreak {
    pub(crate) const ALL: [Self; 28] = [
        Self::DataOntoSystem,
        Self::EvidenceTooWeak,
        Self::DataDamaged,
        Self::KeyGone,
        Self::SnapshotMissing,
        Self::RepositoryUnreachable,
        Self::HalfWrittenLeftOut,
        Self::DestinationHeld,
        Self::EncryptedOntoPlain,
        Self::DestinationUnhealthy,
        Self::DestinationTooSmall,
        Self::DestinationShared,
        Self::VolumeElsewhere,
        Self::DiskLeftOut,
        Self::BackupOfAnother,
        Self::TargetWithoutDisks,
        Self::OtherZone,
        Self::BackupHoldsTarget,
        Self::RestoreHoldsTarget,
        Self::TargetUnsettled,
        Self::OtherKind,
        Self::KindUnsupported,
        Self::TargetTerminated,
        Self::CloudSilent,
        Self::TargetUnknown,
        Self::BackupNotAvailable,
        Self::NotAServer,
        Self::BackupUnknown,
    ];
}

/// Every condition of a backup that can be broken, details first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProtectBreak {
    HalfWritten,
    RestoreRunning,
    AutomaticBackupRunning,
    ManualBackupRunning,
    SharedRefused,
    UnsupportedStorage,
    DedicatedStorage,
    NoDisk,
    ZoneWithoutStorage,
    Unsettled,
    KindUnsupported,
    Terminated,
    CloudSilent,
    Unknown,
    NotAServer,
}

impl ProtectBreak {
    pub(crate) const ALL: [Self; 15] = [
        Self::HalfWritten,
        Self::RestoreRunning,
        Self::AutomaticBackupRunning,
        Self::ManualBackupRunning,
        Self::SharedRefused,
        Self::UnsupportedStorage,
        Self::DedicatedStorage,
        Self::NoDisk,
        Self::ZoneWithoutStorage,
        Self::Unsettled,
        Self::KindUnsupported,
        Self::Terminated,
        Self::CloudSilent,
        Self::Unknown,
        Self::NotAServer,
    ];
}

/// A case with up to three rules broken.
pub(crate) fn random(seed: u64) -> (World, Ask) {
    broken(seed, &breaks_of(seed))
}

/// The rules that [`random`] breaks.
pub(crate) fn breaks_of(seed: u64) -> Vec<RestoreBreak> {
    deal(seed, &RestoreBreak::ALL)
}

/// A case with exactly these rules broken.
pub(crate) fn broken(seed: u64, breaks: &[RestoreBreak]) -> (World, Ask) {
    restore_case(&mut Dice::new(seed), breaks)
}

/// A backup case with up to three rules broken.
pub(crate) fn random_protect(seed: u64) -> (ProtectWorld, ProtectAsk) {
    broken_protect(seed, &deal(seed, &ProtectBreak::ALL))
}

/// A backup case with exactly these rules broken.
pub(crate) fn broken_protect(seed: u64, breaks: &[ProtectBreak]) -> (ProtectWorld, ProtectAsk) {
    protect_case(&mut Dice::new(seed), breaks)
}

/// A small pseudo-random generator (an additive counter, mixed): the same seed tells the
/// same story on every machine.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        remainder(self.next(), limit)
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }

    /// Up to a few chunks, often with a tail that fills none.
    fn size_bytes(&mut self) -> u64 {
        let chunks = self.pick(&[1, 1, 2, 2, 3, 4, 8]);
        let tail = self.pick(&[0, 0, 0, 512, 1234, 4096, CHUNK_BYTES - 1]);
        chunks * CHUNK_BYTES + tail
    }

    /// What a destination may hold beyond the disk that goes there; most often nothing.
    fn spare_bytes(&mut self) -> u64 {
        self.pick(&[0, 0, 0, 1, 512, CHUNK_BYTES, CHUNK_BYTES + 7])
    }
}

pub(super) fn remainder(number: u64, limit: usize) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "a remainder is below its usize")]
    let below = (number % limit as u64) as usize;
    below
}

/// What one seed breaks: of ten seeds two break nothing, three a rule each, five two or
/// three. Rules and pairs are dealt in turn, so that soon each has been met as often as any
/// other; when all pairs have been met alone, they are dealt again beside a third.
fn deal<T: Copy>(seed: u64, all: &[T]) -> Vec<T> {
    let (round, place) = (seed / 10, seed % 10);
    match place {
        0 | 1 => Vec::new(),
        2..=4 => vec![all[remainder(round * 3 + place - 2, all.len())]],
        _ => {
            let pairs = pairs_of(all);
            let turn = round * 5 + place - 5;
            let with_third = remainder(turn, 2 * pairs.len()) >= pairs.len();
            let third = with_third.then(|| Dice::new(!seed).pick(all));
            pairs[remainder(turn, pairs.len())].into_iter().chain(third).collect()
        }
    }
}

fn pairs_of<T: Copy>(all: &[T]) -> Vec<[T; 2]> {
    let with_later = |at: usize| all[at + 1..].iter().map(move |later| [all[at], *later]);
    (0..all.len()).flat_map(with_later).collect()
}

/// A restore case in the making.
struct Case<'a> {
    dice: &'a mut Dice,
    backup: BackupDesc,
    backup_was_made: bool,
    target: ServerDesc,
    repository: Repository,
    demand: Demand,
    ask: Ask,
}

fn restore_case(dice: &mut Dice, breaks: &[RestoreBreak]) -> (World, Ask) {
    let mut case = Case::whole(dice);
    for one in RestoreBreak::ALL {
        if breaks.contains(&one) {
            case.break_rule(one);
        }
    }
    case.make_bystanders_odd();
    case.leave_destinations_half_written();
    case.finish()
}

impl<'a> Case<'a> {
    /// Every rule is met, by room to spare or by none.
    fn whole(dice: &'a mut Dice) -> Self {
        let kind = dice.pick(&[Kind::Kvm, Kind::Xen]);
        let zone = dice.pick(&ZONES);
        let disks = backed_up_disks(dice);
        let (target_disks, pairs) = fitting_target(dice, &disks);
        let backup = BackupDesc {
            owner: Owner::Mine,
            status: BackupStatus::Available,
            kind,
            zone,
            disks,
            snapshot: Snapshot::Present,
        };
        let target = ServerDesc {
            exists: Exists::Mine,
            kind,
            status: dice.pick(&[ServerStatus::Active, ServerStatus::Shutoff]),
            zone,
            disks: target_disks,
            held: Held::None,
        };
        let ask = Ask { resource_type: SERVER_TYPE, pairs, item: ItemRef::Known };
        let demand = dice.pick(&[Demand::Nothing, Demand::Met]);
        let repository = Repository::Up;
        Self { dice, backup, backup_was_made: true, target, repository, demand, ask }
    }

    fn break_rule(&mut self, rule: RestoreBreak) {
        use RestoreBreak as B;
        match rule {
            B::DataOntoSystem => self.send_data_to_the_system_disk(),
            B::EvidenceTooWeak => self.demand = Demand::Unmet,
            B::DataDamaged => self.backup.snapshot = Snapshot::Damaged,
            B::KeyGone => self.repository = Repository::KeyGone,
            B::SnapshotMissing => self.backup.snapshot = Snapshot::Missing,
            B::RepositoryUnreachable => self.repository = Repository::Unreachable,
            B::HalfWrittenLeftOut => self.leave_a_bystander_half_written(),
            B::DestinationHeld => self.change_a_destination(|_, disk| disk.held = true),
            B::EncryptedOntoPlain => self.lay_an_encrypted_disk_open(),
            B::DestinationUnhealthy => self.change_a_destination(|dice, disk| {
                disk.status = dice.pick(&[DiskStatus::Error, DiskStatus::Busy]);
            }),
            B::DestinationTooSmall => self.shrink_a_destination(),
            B::DestinationShared => self.change_a_destination(|_, disk| disk.shared = true),
            B::VolumeElsewhere => self.send_a_disk_elsewhere(),
            B::DiskLeftOut => self.leave_a_disk_out(),
            B::BackupOfAnother => self.name_a_stranger(),
            B::TargetWithoutDisks => self.detach_every_disk(),
            B::OtherZone => {
                let other = if self.backup.zone == ZONES[0] { ZONES[1] } else { ZONES[0] };
                self.target.zone = other;
            }
            B::BackupHoldsTarget => {
                let trigger = self.dice.pick(&[Trigger::Manual, Trigger::Automatic]);
                self.target.held = Held::Backup(trigger);
            }
            B::RestoreHoldsTarget => self.target.held = Held::Restore,
            B::TargetUnsettled => self.target.status = unsettled(self.dice),
            B::OtherKind => {
                let other = if self.backup.kind == Kind::Kvm { Kind::Xen } else { Kind::Kvm };
                self.target.kind = other;
            }
            B::KindUnsupported => self.target.kind = Kind::BareMetal,
            B::TargetTerminated => self.target.status = ServerStatus::Deleted,
            B::CloudSilent => self.target.exists = Exists::CloudSilent,
            B::TargetUnknown => {
                self.target.exists = self.dice.pick(&[Exists::Foreign, Exists::Nowhere]);
            }
            B::BackupNotAvailable => self.backup.status = not_available(self.dice),
            B::NotAServer => self.ask.resource_type = self.dice.pick(&OTHER_TYPES),
            B::BackupUnknown => self.hide_the_backup(),
        }
    }

    /// A disk backup and the disk it goes to, if any pair has both ends in this world.
    fn some_real_pair(&mut self) -> Option<(usize, usize)> {
        let real: Vec<_> = self
            .ask
            .pairs
            .iter()
            .filter_map(|pair| match *pair {
                (BackupRef::Own(disk), VolumeRef::Attached(volume)) => Some((disk, volume)),
                (BackupRef::Stranger, _) | (_, VolumeRef::Elsewhere) => None,
            })
            .collect();
        (!real.is_empty()).then(|| self.dice.pick(&real))
    }

    fn change_a_destination(&mut self, change: fn(&mut Dice, &mut TargetDisk)) {
        if let Some((_, volume)) = self.some_real_pair() {
            change(self.dice, &mut self.target.disks[volume]);
        }
    }

    /// By half, a sector or a single byte.
    fn shrink_a_destination(&mut self) {
        if let Some((disk, volume)) = self.some_real_pair() {
            let needed_bytes = self.backup.disks[disk].size_bytes;
            let missing_bytes = self.dice.pick(&[1, 1, 512, needed_bytes / 2]);
            self.target.disks[volume].size_bytes = needed_bytes - missing_bytes;
        }
    }

    fn lay_an_encrypted_disk_open(&mut self) {
        if let Some((disk, volume)) = self.some_real_pair() {
            self.backup.disks[disk].encrypted = true;
            self.target.disks[volume].encrypted = false;
        }
    }

    /// Comes before all other breaks, because it makes what it moved fit again.
    fn send_data_to_the_system_disk(&mut self) {
        let data = self.a_data_pair();
        let system = self.target.disks.iter().position(|disk| disk.system).map(VolumeRef::Attached);
        let Some(system) = system else { return };
        let freed = self.ask.pairs[data].1;
        if let Some(holder) = self.ask.pairs.iter().position(|pair| pair.1 == system) {
            self.ask.pairs[holder].1 = freed;
        }
        self.ask.pairs[data].1 = system;
        self.make_destinations_fit();
    }

    /// A disk to spare; a target without one gets one.
    fn leave_a_bystander_half_written(&mut self) {
        let mut spare: Vec<_> = (0..self.target.disks.len())
            .filter(|volume| !is_destination(&self.ask, *volume))
            .collect();
        if spare.is_empty() {
            spare.push(self.target.disks.len());
            self.target.disks.push(bystander(self.dice));
        }
        let volume = self.dice.pick(&spare);
        self.target.disks[volume].half_written = true;
    }

    /// Position in the mapping of a data disk; a server of one disk gets a second.
    fn a_data_pair(&mut self) -> usize {
        if self.backup.disks.len() == 1 {
            let added = self.add_a_data_disk();
            let volume = self.a_spare_disk_of_the_target(self.backup.disks[added]);
            self.ask.pairs.push((BackupRef::Own(added), VolumeRef::Attached(volume)));
        }
        let disks = &self.backup.disks;
        let is_data = |of: &BackupRef| matches!(of, BackupRef::Own(disk) if !disks[*disk].system);
        let data: Vec<_> =
            (0..self.ask.pairs.len()).filter(|at| is_data(&self.ask.pairs[*at].0)).collect();
        self.dice.pick(&data)
    }

    fn a_spare_disk_of_the_target(&mut self, like: DiskDesc) -> usize {
        let spare = (0..self.target.disks.len()).find(|volume| {
            !is_destination(&self.ask, *volume) && !self.target.disks[*volume].system
        });
        spare.unwrap_or_else(|| {
            self.target.disks.push(destination(like, 0));
            self.target.disks.len() - 1
        })
    }

    fn make_destinations_fit(&mut self) {
        for pair in &self.ask.pairs {
            if let (BackupRef::Own(disk), VolumeRef::Attached(volume)) = *pair {
                let (source, onto) = (self.backup.disks[disk], &mut self.target.disks[volume]);
                onto.size_bytes = onto.size_bytes.max(source.size_bytes);
                onto.encrypted |= source.encrypted;
            }
        }
    }

    /// A disk of the mapping, or one more than the rest of the case speaks of.
    fn send_a_disk_elsewhere(&mut self) {
        let room = self.backup.disks.len() < DISKS_MAX;
        if self.ask.pairs.is_empty() || room && self.dice.one_in(2) {
            let added = self.add_a_data_disk();
            self.ask.pairs.push((BackupRef::Own(added), VolumeRef::Elsewhere));
        } else {
            let at = self.dice.below(self.ask.pairs.len());
            self.ask.pairs[at].1 = VolumeRef::Elsewhere;
        }
    }

    fn add_a_data_disk(&mut self) -> usize {
        let size_bytes = self.dice.size_bytes();
        self.backup.disks.push(DiskDesc { size_bytes, system: false, encrypted: false });
        self.backup.disks.len() - 1
    }

    /// Every disk, one of several, or one more than is mapped.
    fn leave_a_disk_out(&mut self) {
        if self.dice.one_in(6) {
            self.ask.pairs.clear();
        } else if self.ask.pairs.len() > 1 {
            let at = self.dice.below(self.ask.pairs.len());
            self.ask.pairs.remove(at);
        } else {
            self.add_a_data_disk();
        }
    }

    /// In the place of one of several disks of this backup, or beside all of them.
    fn name_a_stranger(&mut self) {
        if self.ask.pairs.len() < 2 || self.dice.one_in(2) {
            self.ask.pairs.push((BackupRef::Stranger, VolumeRef::Elsewhere));
        } else {
            let at = self.dice.below(self.ask.pairs.len());
            self.ask.pairs[at].0 = BackupRef::Stranger;
        }
    }

    fn detach_every_disk(&mut self) {
        self.target.disks.clear();
        for pair in &mut self.ask.pairs {
            pair.1 = VolumeRef::Elsewhere;
        }
    }

    fn hide_the_backup(&mut self) {
        match self.dice.below(5) {
            0 => self.backup.owner = Owner::Foreign,
            1 => self.backup.status = BackupStatus::Deleted,
            2 => self.backup_was_made = false,
            3 => self.ask.item = ItemRef::RandomUuid,
            _ => self.ask.item = ItemRef::NotAUuid,
        }
    }

    /// Disks that nothing is restored to: their state is nobody's business, unless they are
    /// half written.
    fn make_bystanders_odd(&mut self) {
        for volume in 0..self.target.disks.len() {
            if !is_destination(&self.ask, volume) {
                let disk = &mut self.target.disks[volume];
                disk.shared = self.dice.one_in(3);
                disk.held = self.dice.one_in(3);
                disk.status =
                    self.dice.pick(&[DiskStatus::Healthy, DiskStatus::Error, DiskStatus::Busy]);
            }
        }
    }

    /// Destinations that a failed restore left half written: writing them again is the cure.
    fn leave_destinations_half_written(&mut self) {
        for volume in 0..self.target.disks.len() {
            if is_destination(&self.ask, volume) {
                self.target.disks[volume].half_written = self.dice.one_in(4);
            }
        }
    }

    fn finish(mut self) -> (World, Ask) {
        self.dice.shuffle(&mut self.ask.pairs);
        if !self.backup_was_made {
            self.ask.pairs.iter_mut().for_each(|pair| pair.0 = BackupRef::Stranger);
        }
        let backup = self.backup_was_made.then_some(self.backup);
        let Self { target, repository, demand, ask, .. } = self;
        (World { backup, target, repository, demand }, ask)
    }
}

fn is_destination(ask: &Ask, volume: usize) -> bool {
    ask.pairs.iter().any(|pair| pair.1 == VolumeRef::Attached(volume))
}

/// One to three disks, one of them the system's, not always the first.
fn backed_up_disks(dice: &mut Dice) -> Vec<DiskDesc> {
    let count = 1 + dice.below(DISKS_MAX);
    let system = if dice.one_in(4) { dice.below(count) } else { 0 };
    (0..count)
        .map(|at| DiskDesc {
            size_bytes: dice.size_bytes(),
            system: at == system,
            encrypted: dice.one_in(4),
        })
        .collect()
}

/// A target with a destination for every disk, and sometimes disks to spare; then the
/// system disk's backup may go to a data disk, which no rule forbids.
fn fitting_target(
    dice: &mut Dice,
    disks: &[DiskDesc],
) -> (Vec<TargetDisk>, Vec<(BackupRef, VolumeRef)>) {
    let mut placed: Vec<(Option<usize>, TargetDisk)> = disks
        .iter()
        .enumerate()
        .map(|(at, disk)| (Some(at), destination(*disk, dice.spare_bytes())))
        .collect();
    for disk in &mut placed {
        disk.1.encrypted |= dice.one_in(4);
    }
    while placed.len() < DISKS_MAX && dice.one_in(2) {
        placed.push((None, bystander(dice)));
    }
    let spare = placed.iter().position(|disk| disk.0.is_none());
    if let Some(spare) = spare.filter(|_| dice.one_in(3)) {
        placed.iter_mut().for_each(|disk| disk.1.system = false);
        placed[spare].1.system = true;
    }
    dice.shuffle(&mut placed);
    let pairs = placed
        .iter()
        .enumerate()
        .filter_map(|(volume, disk)| Some((BackupRef::Own(disk.0?), VolumeRef::Attached(volume))));
    let pairs = pairs.collect();
    (placed.into_iter().map(|disk| disk.1).collect(), pairs)
}

fn destination(of: DiskDesc, spare_bytes: u64) -> TargetDisk {
    TargetDisk {
        size_bytes: of.size_bytes + spare_bytes,
        system: of.system,
        shared: false,
        status: DiskStatus::Healthy,
        encrypted: of.encrypted,
        held: false,
        half_written: false,
    }
}

fn bystander(dice: &mut Dice) -> TargetDisk {
    let like = DiskDesc { size_bytes: dice.size_bytes(), system: false, encrypted: dice.one_in(3) };
    destination(like, 0)
}

fn unsettled(dice: &mut Dice) -> ServerStatus {
    dice.pick(&[
        ServerStatus::Error,
        ServerStatus::Resizing,
        ServerStatus::VerifyResize,
        ServerStatus::InTransition,
    ])
}

fn not_available(dice: &mut Dice) -> BackupStatus {
    dice.pick(&[
        BackupStatus::WaitingProtect,
        BackupStatus::Protecting,
        BackupStatus::WaitingRestore,
        BackupStatus::Restoring,
        BackupStatus::Error,
        BackupStatus::WaitingDelete,
        BackupStatus::Deleting,
    ])
}

fn protect_case(dice: &mut Dice, breaks: &[ProtectBreak]) -> (ProtectWorld, ProtectAsk) {
    let (mut world, mut ask) = protectable_case(dice);
    for one in ProtectBreak::ALL {
        if breaks.contains(&one) {
            break_protect_rule(dice, one, &mut world, &mut ask);
        }
    }
    (world, ask)
}

/// Every rule is met; where the operator allows shared disks, some are shared.
fn protectable_case(dice: &mut Dice) -> (ProtectWorld, ProtectAsk) {
    let shared_disks = dice.pick(&[SharedDisks::Allowed, SharedDisks::Refused]);
    let mut disks = Vec::new();
    for disk in backed_up_disks(dice) {
        disks.push(ProtectDisk {
            size_bytes: disk.size_bytes,
            system: disk.system,
            shared: shared_disks == SharedDisks::Allowed && dice.one_in(3),
            storage: Storage::Ordinary,
            half_written: false,
        });
    }
    let server = ProtectServer {
        exists: Exists::Mine,
        kind: dice.pick(&[Kind::Kvm, Kind::Xen]),
        status: dice.pick(&[ServerStatus::Active, ServerStatus::Shutoff]),
        zone: ZoneStorage::Present,
        disks,
        held: Held::None,
    };
    (ProtectWorld { server, shared_disks }, ProtectAsk { resource_type: SERVER_TYPE })
}

fn break_protect_rule(
    dice: &mut Dice,
    rule: ProtectBreak,
    world: &mut ProtectWorld,
    ask: &mut ProtectAsk,
) {
    use ProtectBreak as B;
    let server = &mut world.server;
    match rule {
        B::HalfWritten => a_disk(dice, server).half_written = true,
        B::RestoreRunning => server.held = Held::Restore,
        B::AutomaticBackupRunning => server.held = Held::Backup(Trigger::Automatic),
        B::ManualBackupRunning => server.held = Held::Backup(Trigger::Manual),
        B::SharedRefused => {
            world.shared_disks = SharedDisks::Refused;
            a_disk(dice, server).shared = true;
        }
        B::UnsupportedStorage => move_a_disk(dice, server, Storage::Unsupported),
        B::DedicatedStorage => move_a_disk(dice, server, Storage::Dedicated),
        B::NoDisk => server.disks.clear(),
        B::ZoneWithoutStorage => server.zone = ZoneStorage::Missing,
        B::Unsettled => server.status = unsettled(dice),
        B::KindUnsupported => server.kind = Kind::BareMetal,
        B::Terminated => server.status = ServerStatus::Deleted,
        B::CloudSilent => server.exists = Exists::CloudSilent,
        B::Unknown => server.exists = dice.pick(&[Exists::Foreign, Exists::Nowhere]),
        B::NotAServer => ask.resource_type = dice.pick(&OTHER_TYPES),
    }
}

/// Moves a disk that was not moved before, if there is one.
fn move_a_disk(dice: &mut Dice, server: &mut ProtectServer, to: Storage) {
    let unmoved: Vec<_> = (0..server.disks.len())
        .filter(|disk| server.disks[*disk].storage == Storage::Ordinary)
        .collect();
    let disk = if unmoved.is_empty() { 0 } else { dice.pick(&unmoved) };
    server.disks[disk].storage = to;
}

fn a_disk<'a>(dice: &mut Dice, server: &'a mut ProtectServer) -> &'a mut ProtectDisk {
    let at = dice.below(server.disks.len());
    &mut server.disks[at]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: u64 = 2_000;

    #[test]
    fn a_seed_always_tells_the_same_story() {
        for seed in [0, 1, u64::MAX] {
            assert_eq!(format!("{:?}", random(seed)), format!("{:?}", random(seed)));
            assert_eq!(
                format!("{:?}", random_protect(seed)),
                format!("{:?}", random_protect(seed))
            );
        }
        assert_ne!(format!("{:?}", random(1)), format!("{:?}", random(2)));
    }

    #[test]
    fn a_mapping_names_only_what_is_there_and_nothing_twice() {
        for seed in 0..SEEDS {
            let (world, ask) = random(seed);
            let disks = world.backup.map_or(0, |backup| backup.disks.len());
            for (at, (disk, volume)) in ask.pairs.iter().enumerate() {
                let later = &ask.pairs[at + 1..];
                if let BackupRef::Own(own) = disk {
                    assert!(*own < disks, "seed {seed}: {ask:?}");
                    assert!(later.iter().all(|pair| pair.0 != *disk), "seed {seed}: {ask:?}");
                }
                if let VolumeRef::Attached(attached) = volume {
                    assert!(*attached < world.target.disks.len(), "seed {seed}: {ask:?}");
                    assert!(later.iter().all(|pair| pair.1 != *volume), "seed {seed}: {ask:?}");
                }
            }
        }
    }

    #[test]
    fn worlds_hold_one_to_three_disks_on_and_off_the_chunks() {
        let (mut on, mut off, mut counts) = (0, 0, [0; DISKS_MAX + 1]);
        for seed in 0..SEEDS {
            let (world, _) = broken(seed, &[]);
            let disks = world.backup.unwrap().disks;
            assert_eq!(disks.iter().filter(|disk| disk.system).count(), 1, "seed {seed}");
            let targets = &world.target.disks;
            assert_eq!(targets.iter().filter(|disk| disk.system).count(), 1, "seed {seed}");
            counts[disks.len()] += 1;
            for disk in disks {
                let part = if disk.size_bytes % CHUNK_BYTES == 0 { &mut on } else { &mut off };
                *part += 1;
            }
        }
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| *count > 300), "{counts:?}");
        assert!(on > 500 && off > 500, "{on} on, {off} off");
    }

    #[test]
    fn a_server_to_back_up_boots_from_one_of_its_disks() {
        for seed in 0..SEEDS {
            let disks = broken_protect(seed, &[]).0.server.disks;
            assert_eq!(disks.iter().filter(|disk| disk.system).count(), 1, "seed {seed}");
            assert!(disks.iter().all(|disk| disk.size_bytes >= CHUNK_BYTES), "seed {seed}");
        }
    }
}
