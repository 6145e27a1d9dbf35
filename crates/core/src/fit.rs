//! Finds the disk for every disk backup: what a caller may ask for instead.

use crate::checkpoint::{Item, VolumeBackup};
use crate::ids::VolumeId;
use crate::resource::{Content, Encryption, Server, Sharing, Volume, VolumeRole, VolumeStatus};
use crate::restore::{Mapping, Pair};

/// What can go where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// A mapping that no rule about its disks refuses, as near as can be to the one asked
    /// for; backups that one says nothing of go to the disk they were made from, if that
    /// will do.
    pub mapping: Mapping,
    /// The disk backups, by position in the item, for which no disk is left.
    pub missing: Vec<usize>,
    /// Whether a half-written disk of the target is left out: it can hold none of them.
    pub leaves_half_written: bool,
}

impl Fitting {
    /// Whether the rules about disks refuse nothing.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && !self.leaves_half_written
    }
}

/// Finds a disk of the target for every disk backup, if there are enough that fit.
pub fn fit(item: &Item, target: &Server, held: &[VolumeId], asked: &Mapping) -> Fitting {
    let fit = Fit { backups: &item.volumes, volumes: &target.volumes, held, asked };
    let volume_of = fit.assign();
    let missing = (0..volume_of.len()).filter(|at| volume_of[*at].is_none()).collect();
    let is_left_out = |(at, volume): (usize, &Volume)| {
        volume.content == Content::HalfWritten && !volume_of.contains(&Some(at))
    };
    let leaves_half_written = target.volumes.iter().enumerate().any(is_left_out);
    let pairs = item.volumes.iter().zip(&volume_of).filter_map(|(backup, volume)| {
        let volume = target.volumes.get((*volume)?)?;
        Some(Pair { backup: backup.id.clone(), volume: volume.id.clone() })
    });
    // Positions are in it once each; ids are, unless a cloud lists a disk twice.
    let mapping = Mapping::new(pairs.collect()).unwrap_or_default();
    Fitting { mapping, missing, leaves_half_written }
}

struct Fit<'a> {
    backups: &'a [VolumeBackup],
    volumes: &'a [Volume],
    held: &'a [VolumeId],
    asked: &'a Mapping,
}

impl Fit<'_> {
    /// The volume of each backup: as many as possible, half-written volumes above all.
    fn assign(&self) -> Vec<Option<usize>> {
        let mut volume_of = vec![None; self.backups.len()];
        let half_written = (0..self.volumes.len())
            .filter(|volume| self.volumes[*volume].content == Content::HalfWritten);
        for volume in half_written {
            let backups = |volume: usize| self.backups_for(volume);
            augment(volume, &backups, &mut volume_of, &mut vec![false; self.backups.len()]);
        }
        let mut backup_of = vec![None; self.volumes.len()];
        for (backup, volume) in volume_of.iter().enumerate() {
            if let Some(volume) = *volume {
                backup_of[volume] = Some(backup);
            }
        }
        for wish in [Self::is_asked, Self::is_original] {
            self.grant(wish, &mut backup_of);
        }
        for backup in 0..self.backups.len() {
            if !backup_of.contains(&Some(backup)) {
                let volumes = |backup: usize| self.volumes_for(backup);
                augment(backup, &volumes, &mut backup_of, &mut vec![false; self.volumes.len()]);
            }
        }
        let mut volume_of = vec![None; self.backups.len()];
        for (volume, backup) in backup_of.iter().enumerate() {
            if let Some(backup) = *backup {
                volume_of[backup] = Some(volume);
            }
        }
        volume_of
    }

    /// Pairs what nobody else has, where the wish is for it.
    fn grant(&self, wish: fn(&Self, usize, usize) -> bool, backup_of: &mut [Option<usize>]) {
        for backup in 0..self.backups.len() {
            if backup_of.contains(&Some(backup)) {
                continue;
            }
            let wished = (0..self.volumes.len()).find(|volume| {
                backup_of[*volume].is_none()
                    && wish(self, backup, *volume)
                    && self.fits(backup, *volume)
            });
            if let Some(volume) = wished {
                backup_of[volume] = Some(backup);
            }
        }
    }

    fn is_asked(&self, backup: usize, volume: usize) -> bool {
        let (backup, volume) = (&self.backups[backup].id, &self.volumes[volume].id);
        self.asked.pairs().iter().any(|pair| pair.backup == *backup && pair.volume == *volume)
    }

    fn is_original(&self, backup: usize, volume: usize) -> bool {
        self.backups[backup].source_volume_id == self.volumes[volume].id
    }

    fn backups_for(&self, volume: usize) -> Vec<usize> {
        let mut fitting: Vec<_> =
            (0..self.backups.len()).filter(|backup| self.fits(*backup, volume)).collect();
        fitting.sort_by_key(|backup| {
            (!self.is_asked(*backup, volume), !self.is_original(*backup, volume))
        });
        fitting
    }

    /// Those of the same role first, the smallest before larger ones.
    fn volumes_for(&self, backup: usize) -> Vec<usize> {
        let mut fitting: Vec<_> =
            (0..self.volumes.len()).filter(|volume| self.fits(backup, *volume)).collect();
        fitting.sort_by_key(|volume| {
            let volume = &self.volumes[*volume];
            (volume.role != self.backups[backup].role, volume.size_bytes)
        });
        fitting
    }

    fn fits(&self, backup: usize, volume: usize) -> bool {
        let (backup, volume) = (&self.backups[backup], &self.volumes[volume]);
        volume.status == VolumeStatus::Healthy
            && volume.sharing == Sharing::Exclusive
            && volume.size_bytes >= backup.source_size_bytes
            && (backup.role, volume.role) != (VolumeRole::Data, VolumeRole::System)
            && (backup.encryption, volume.encryption) != (Encryption::Encrypted, Encryption::Plain)
            && !self.held.contains(&volume.id)
    }
}

/// Finds a partner for `at`, moving others to another one where that helps (Kuhn's
/// algorithm). Whoever had a partner has one afterwards.
fn augment(
    at: usize,
    partners: &dyn Fn(usize) -> Vec<usize>,
    taken_by: &mut [Option<usize>],
    seen: &mut [bool],
) -> bool {
    let partners_of = partners(at);
    // Nobody moves for what is to be had without.
    if let Some(free) = partners_of.iter().find(|partner| taken_by[**partner].is_none()) {
        taken_by[*free] = Some(at);
        return true;
    }
    for partner in partners_of {
        let Some(rival) = taken_by[partner] else { continue };
        if !std::mem::replace(&mut seen[partner], true) && augment(rival, partners, taken_by, seen)
        {
            taken_by[partner] = Some(at);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::item_of;
    use crate::resource::tests::server_of;

    const GIB: u64 = 1 << 30;

    fn pairs(mapping: &Mapping) -> Vec<(String, String)> {
        let names = |pair: &Pair| (pair.backup.to_string(), pair.volume.to_string());
        mapping.pairs().iter().map(names).collect()
    }

    fn named(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(backup, volume)| ((*backup).into(), (*volume).into())).collect()
    }

    #[test]
    fn what_was_asked_stays_then_the_disks_it_was_made_from_then_the_smallest() {
        // Backups b0 to b2 of v0 to v2, the first of a system disk.
        let item = item_of(&[GIB, GIB, GIB]);
        let target = server_of(&[GIB, GIB, GIB, 2 * GIB]);
        let none = Mapping::default();
        let fitting = fit(&item, &target, &[], &none);
        assert!(fitting.is_whole());
        assert_eq!(pairs(&fitting.mapping), named(&[("b0", "v0"), ("b1", "v1"), ("b2", "v2")]));

        let asked = [Pair { backup: item.volumes[1].id.clone(), volume: VolumeId::asked("v3") }];
        let fitting = fit(&item, &target, &[], &Mapping::new(asked.to_vec()).unwrap());
        assert_eq!(pairs(&fitting.mapping), named(&[("b0", "v0"), ("b1", "v3"), ("b2", "v2")]));

        let held = [VolumeId::asked("v1")];
        let fitting = fit(&item, &target, &held, &none);
        assert_eq!(pairs(&fitting.mapping), named(&[("b0", "v0"), ("b1", "v3"), ("b2", "v2")]));
    }

    #[test]
    fn others_move_where_that_helps_and_half_written_disks_come_first() {
        let item = item_of(&[GIB, 3 * GIB]);
        let mut target = server_of(&[GIB, GIB, 3 * GIB]);
        target.volumes[1].content = Content::HalfWritten;
        // Only the system disk's backup fits there, and it leaves its own disk for it.
        let fitting = fit(&item, &target, &[], &Mapping::default());
        assert!(fitting.is_whole());
        assert_eq!(pairs(&fitting.mapping), named(&[("b0", "v1"), ("b1", "v2")]));
        target.volumes.pop();
        let fitting = fit(&item, &target, &[], &Mapping::default());
        assert_eq!((fitting.missing, fitting.leaves_half_written), (vec![1], false));
        target.volumes[0].content = Content::HalfWritten;
        let fitting = fit(&item, &target, &[], &Mapping::default());
        assert!(fitting.leaves_half_written, "one backup cannot mend both");
    }
}
