//! What is known of a disk's changes since an earlier moment: whether its files are the
//! very ones that were read then.
//!
//! Nobody tells this driver of writes, so the file system is the witness. It sets a file's
//! change time with every write, and no call sets that back. Files that have all the device,
//! inode, birth, size and times of a moment hold the bytes of that moment.
//!
//! Invariant: a token is given only for a moment that its witness can speak for. All files
//! lie on file systems known to note every write, no page of theirs was dirty when the times
//! were read, and the times were [`SETTLED_SECS`] old. A token ends with the running of the
//! machine: after a loss of power, bytes may be there whose times are lost. Whatever else is
//! handed in as a token says nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use kedge_core::checkpoint::ChangeToken;
use kedge_core::ids::VolumeId;
use kedge_core::ports::{CloudError, DiskReader, Extent, ExtentKind};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::config::{Format, Image};
use super::hold::Identity;
use super::images::is_within;

/// Times younger than this may belong to a write that is still under way, or to a clock that
/// is set back right afterwards and shows the same time again.
const SETTLED_SECS: i64 = 2;
/// Begins every token; the number is that of what follows.
const TOKEN_PREFIX: &str = "local/1/";
/// A token of the longest chain has less than half of it.
const TOKEN_BYTES_MAX: usize = 2048;

/// Whether a file lies where every write to it shows in its times.
pub type NotesWrites = fn(&File) -> io::Result<bool>;

/// The file system's time in whole seconds, taken off a file that was just made.
pub type AskTime = fn(&File) -> io::Result<i64>;

/// What tells one running of the machine from the next.
pub type AskBoot = fn() -> io::Result<Uuid>;

/// Names file systems by their code: a write through a mapping reaches their times too, and
/// no other machine writes to them. Network and memory file systems are not among them.
pub(super) fn notes_writes(file: &File) -> io::Result<bool> {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    let code = u64::try_from(rustix::fs::fstatfs(file)?.f_type).unwrap_or(0);
    Ok([EXT, XFS, BTRFS, F2FS].contains(&code))
}

pub(super) fn ask_time(file: &File) -> io::Result<i64> {
    Ok(file.metadata()?.ctime())
}

/// The kernel's own name for it.
pub(super) fn ask_boot() -> io::Result<Uuid> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// What file systems say of a disk's files at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Witness {
    /// In which running of the machine it was, if that can be told.
    pub(super) boot: Option<Uuid>,
    /// The image first, then what is declared beneath it.
    pub(super) identities: Vec<Identity>,
    pub(super) standing: Standing,
}

/// Whether files with these identities later on are sure to hold the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    Sure,
    Unsure,
}

impl Witness {
    /// Counts as sure only what is old enough at a time of the file system.
    pub(super) fn settle(&mut self, now_secs: i64) {
        if !self.identities.iter().all(|identity| is_settled(identity.changed_secs(), now_secs)) {
            self.standing = Standing::Unsure;
        }
    }
}

/// Whole seconds: the part of a second that is cut off makes one more needed.
fn is_settled(changed_secs: i64, now_secs: i64) -> bool {
    now_secs.saturating_sub(changed_secs) > SETTLED_SECS
}

/// One moment of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Moment {
    volume: VolumeId,
    boot: Uuid,
    size_bytes: u64,
    /// The image first, then what is declared beneath it.
    files: Vec<FileThen>,
}

/// A file of a disk, and how it was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileThen {
    format: Format,
    identity: Identity,
}

/// What a disk still holds of an earlier moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unchanged {
    /// Not known.
    Nothing,
    /// Whatever its image takes from the file beneath.
    Beneath,
    /// Every byte.
    Everything,
}

impl Moment {
    /// The moment of a disk of this size; `None` if not all of it is known.
    pub(super) fn of(
        volume: &VolumeId,
        image: &Image,
        size_bytes: u64,
        witness: &Witness,
    ) -> Option<Self> {
        let formats = std::iter::once(image.format)
            .chain(image.backing.as_ref().map(|backing| backing.format));
        let files: Vec<FileThen> = formats
            .zip(&witness.identities)
            .map(|(format, identity)| FileThen { format, identity: *identity })
            .collect();
        let is_whole = files.len() == 1 + usize::from(image.backing.is_some())
            && files.len() == witness.identities.len();
        let boot = witness.boot.filter(|_| is_whole)?;
        Some(Self { volume: volume.clone(), boot, size_bytes, files })
    }

    pub(super) fn to_token(&self) -> Option<ChangeToken> {
        let text = serde_json::to_string(self).ok()?;
        Some(ChangeToken(format!("{TOKEN_PREFIX}{text}")))
    }

    /// What a token says; nothing if it is damaged, another driver's or another version's.
    pub(super) fn from_token(token: &ChangeToken) -> Option<Self> {
        if token.0.len() > TOKEN_BYTES_MAX {
            return None;
        }
        serde_json::from_str(token.0.strip_prefix(TOKEN_PREFIX)?).ok()
    }

    /// What of the disk is as it was at an earlier moment. The image of that moment may lie
    /// beneath a new one by now: then the new one's own clusters are all that can differ.
    pub(super) fn unchanged_since(&self, then: &Self) -> Unchanged {
        let is_comparable = (&self.volume, self.boot, self.size_bytes)
            == (&then.volume, then.boot, then.size_bytes);
        if !is_comparable || then.files.is_empty() {
            return Unchanged::Nothing;
        }
        if self.files == then.files {
            return Unchanged::Everything;
        }
        match self.files.split_first() {
            Some((_, beneath)) if beneath == then.files => Unchanged::Beneath,
            Some(_) | None => Unchanged::Nothing,
        }
    }
}

/// A disk of which nothing changed. Its bytes can be read all the same.
#[derive(Debug)]
pub(super) struct UnchangedReader {
    disk: Arc<dyn DiskReader>,
}

impl UnchangedReader {
    pub(super) fn new(disk: Arc<dyn DiskReader>) -> Self {
        Self { disk }
    }
}

impl DiskReader for UnchangedReader {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, CloudError> {
        is_within(offset, 1, self.size_bytes())?;
        let length_bytes = self.size_bytes() - offset;
        Ok(Extent { offset, length_bytes, kind: ExtentKind::Unchanged })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), CloudError> {
        self.disk.read_at(offset, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::Backing;
    use super::*;

    fn identity(text: &str) -> Identity {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Identity::of(file.as_file()).unwrap()
    }

    fn image(format: Format, beneath: Option<Format>) -> Image {
        let backing = beneath.map(|format| Backing { file: "base".to_owned(), format });
        Image { file: "disk".to_owned(), format, backing }
    }

    fn sure(identities: Vec<Identity>) -> Witness {
        Witness { boot: Some(Uuid::from_u128(1)), identities, standing: Standing::Sure }
    }

    fn moment(image: &Image, identities: &[Identity]) -> Moment {
        let volume = VolumeId::asked("5f0c2a1e-0000-4000-8000-0000000000d0");
        let witness = sure(identities.to_vec());
        Moment::of(&volume, image, 4096, &witness).unwrap()
    }

    #[test]
    fn times_are_settled_when_two_seconds_lie_between_whatever_their_fractions() {
        let rows = [(10, 9, false), (10, 10, false), (10, 12, false), (10, 13, true)];
        for (changed, now, settled) in rows {
            assert_eq!(is_settled(changed, now), settled, "{changed} at {now}");
        }
        assert!(!is_settled(i64::MAX, i64::MIN));
    }

    #[test]
    fn one_young_file_makes_a_witness_unsure() {
        let [old, young] = [identity("a"), identity("bc")];
        let now = old.changed_secs() + 10;
        let mut witness = sure(vec![old, young]);
        witness.settle(now);
        assert_eq!(witness.standing, Standing::Sure);
        witness.settle(young.changed_secs() + 1);
        assert_eq!(witness.standing, Standing::Unsure);
    }

    #[test]
    fn a_disk_is_unchanged_as_far_as_its_files_are_those_of_the_moment() {
        let [a, b, c] = [identity("a"), identity("bb"), identity("ccc")];
        let (raw, qcow2) = (image(Format::Raw, None), image(Format::Qcow2, None));
        let on_raw = image(Format::Qcow2, Some(Format::Raw));
        let on_qcow2 = image(Format::Qcow2, Some(Format::Qcow2));
        let rows = [
            (&raw, &[a][..], &raw, &[a][..], Unchanged::Everything),
            (&raw, &[a], &raw, &[b], Unchanged::Nothing),
            (&raw, &[a], &qcow2, &[a], Unchanged::Nothing),
            (&raw, &[a], &on_raw, &[b, a], Unchanged::Beneath),
            (&raw, &[a], &on_raw, &[a, b], Unchanged::Nothing),
            (&raw, &[a], &on_qcow2, &[b, a], Unchanged::Nothing),
            (&on_raw, &[b, a], &on_raw, &[b, a], Unchanged::Everything),
            (&on_raw, &[b, a], &on_raw, &[b, c], Unchanged::Nothing),
            (&on_raw, &[b, a], &on_raw, &[c, a], Unchanged::Nothing),
            (&on_raw, &[b, a], &raw, &[a], Unchanged::Nothing),
            (&on_raw, &[b, a], &qcow2, &[b], Unchanged::Nothing),
        ];
        for (index, (then_image, then, now_image, now, wanted)) in rows.into_iter().enumerate() {
            let (then, now) = (moment(then_image, then), moment(now_image, now));
            assert_eq!(now.unchanged_since(&then), wanted, "row {index}");
        }
        let now = moment(&raw, &[a]);
        let none = Moment { files: Vec::new(), ..now.clone() };
        let grown = Moment { size_bytes: 4097, ..now.clone() };
        let other = Moment { volume: VolumeId::asked("another"), ..now.clone() };
        let earlier = Moment { boot: Uuid::from_u128(2), ..now.clone() };
        for then in [none, grown, other, earlier] {
            assert_eq!(now.unchanged_since(&then), Unchanged::Nothing);
        }
    }

    #[test]
    fn a_moment_of_which_something_is_not_known_is_none() {
        let volume = VolumeId::asked("v");
        for (beneath, known) in [(None, 0), (None, 2), (Some(Format::Raw), 1)] {
            let image = image(Format::Qcow2, beneath);
            let witness = sure(vec![identity("a"); known]);
            assert_eq!(Moment::of(&volume, &image, 1, &witness), None);
        }
        let witness = Witness { boot: None, ..sure(vec![identity("a")]) };
        assert_eq!(Moment::of(&volume, &image(Format::Raw, None), 1, &witness), None);
    }

    #[test]
    fn a_token_says_what_was_told_and_is_short() {
        let longest = Identity::longest();
        let moment = moment(&image(Format::Qcow2, Some(Format::Qcow2)), &[longest, longest]);
        let token = moment.to_token().unwrap();
        assert!(token.0.len() <= TOKEN_BYTES_MAX / 2, "{} bytes", token.0.len());
        assert_eq!(Moment::from_token(&token), Some(moment));
    }

    #[test]
    fn what_is_no_token_of_this_version_says_nothing() {
        let good = moment(&image(Format::Raw, None), &[identity("a")]).to_token().unwrap().0;
        let rows = [
            String::new(),
            "sim/v/0/1".to_owned(),
            TOKEN_PREFIX.to_owned(),
            good.replacen("local/1/", "local/2/", 1),
            good.replacen("local/1/", "", 1),
            good.replacen('{', "{\"more\":1,", 1),
            good.replacen("raw", "vmdk", 1),
            format!("{good} {good}"),
            format!("{good}{}", " ".repeat(TOKEN_BYTES_MAX)),
            format!("{TOKEN_PREFIX}{}", "[".repeat(1500)),
        ];
        for text in rows {
            assert_eq!(Moment::from_token(&ChangeToken(text.clone())), None, "{text}");
        }
        for end in 0..good.len() {
            assert_eq!(Moment::from_token(&ChangeToken(good[..end].to_owned())), None);
        }
    }
}
