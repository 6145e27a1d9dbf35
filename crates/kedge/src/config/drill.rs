//! How backups are tried out: the table `drill`.

use std::path::PathBuf;
use std::time::Duration;

use kedge_drill::Accelerator;
use kedge_service::settings::Drill as Settings;
use serde::{Deserialize, Serialize};

use super::{DAY_SECS, Problems};

/// A machine with less cannot hold a kernel and its first file system.
const MEMORY_MIB_MIN: u32 = 64;
const MEMORY_MIB_MAX: u32 = 1 << 20;
/// A day: what takes longer is not coming.
const BOOT_SECS_MAX: u64 = DAY_SECS;
/// Texts that mean success.
const MARKERS_MAX: usize = 16;
const MARKER_BYTES_MAX: usize = 200;

/// The table as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Drill {
    pub(crate) boot: bool,
    pub(crate) qemu: PathBuf,
    pub(crate) accelerator: Accel,
    pub(crate) memory_mib: u32,
    pub(crate) boot_secs: u64,
    pub(crate) markers: Vec<String>,
    pub(crate) every_days: Option<u64>,
    pub(crate) time_percent: u8,
    pub(crate) work_dir: PathBuf,
}

/// What runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Accel {
    Tcg,
    Kvm,
}

impl Default for Drill {
    fn default() -> Self {
        let settings = Settings::default();
        Self {
            boot: settings.boots,
            qemu: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            accelerator: Accel::Tcg,
            memory_mib: 1024,
            boot_secs: settings.boot_time.as_secs(),
            markers: vec!["login:".to_owned()],
            every_days: None,
            time_percent: settings.time_percent,
            work_dir: PathBuf::from("/var/tmp"),
        }
    }
}

impl Drill {
    pub(super) fn check(&self, problems: &mut Problems) {
        for (field, path) in [("drill.qemu", &self.qemu), ("drill.work_dir", &self.work_dir)] {
            if !path.is_absolute() {
                problems.add(field, "expected an absolute path");
            }
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&self.memory_mib) {
            problems
                .add("drill.memory_mib", format!("expected {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX}"));
        }
        if !(1..=BOOT_SECS_MAX).contains(&self.boot_secs) {
            problems.add("drill.boot_secs", format!("expected 1 to {BOOT_SECS_MAX}"));
        }
        if self.every_days.is_some_and(|days| !(1..=3650).contains(&days)) {
            problems.add("drill.every_days", "expected 1 to 3650");
        }
        if !(1..=100).contains(&self.time_percent) {
            problems.add("drill.time_percent", "expected 1 to 100");
        }
        let is_marker = |text: &String| (1..=MARKER_BYTES_MAX).contains(&text.len());
        if !(1..=MARKERS_MAX).contains(&self.markers.len()) || !self.markers.iter().all(is_marker) {
            problems.add(
                "drill.markers",
                format!("expected 1 to {MARKERS_MAX} texts of 1 to {MARKER_BYTES_MAX} bytes"),
            );
        }
    }

    pub(super) fn check_machine(&self, problems: &mut Problems) {
        if self.boot && !self.qemu.is_file() {
            let text = format!("expected QEMU's program at {}", self.qemu.display());
            problems.add("drill.qemu", text);
        }
        if !self.work_dir.is_dir() {
            let text = format!("expected a directory at {}", self.work_dir.display());
            problems.add("drill.work_dir", text);
        }
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            every: self.every_days.map(|days| Duration::from_secs(days * DAY_SECS)),
            time_percent: self.time_percent,
            boots: self.boot,
            boot_time: Duration::from_secs(self.boot_secs),
        }
    }

    /// What the stage is told, but for who inspects.
    pub(crate) fn accelerator(&self) -> Accelerator {
        match self.accelerator {
            Accel::Tcg => Accelerator::Tcg,
            Accel::Kvm => Accelerator::Kvm,
        }
    }
}
