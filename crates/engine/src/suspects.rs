//! Packs that gave a reader bad bytes. A reader that finds its blob elsewhere goes on, one that
//! does not fails; either way somebody is to look at the whole pack, and record what is wrong.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    backend::{BackendError, ObjectName},
    control::{CancelFlag, NoProgress},
    error::EngineError,
    id::PackId,
    marks::PackDamage,
    repository::{Indexed, Repository},
    verify::{OnDamage, PackCatalogue, VerifyOptions, VerifyOutcome},
};

/// Packs nobody has looked at since a reader met them.
#[derive(Debug, Default)]
pub(crate) struct Suspects(Mutex<BTreeSet<PackId>>);

/// What became of suspects.
#[derive(Debug, Default)]
pub struct Suspicion {
    /// Packs that are damaged, as it is recorded.
    pub damaged: Vec<PackDamage>,
    /// Whether something is lost that cannot be recorded: an index object, whatever it listed,
    /// or a blob that no index object lists.
    pub is_lost: bool,
    /// What kept the pack that was told of from being looked at, if anything did.
    pub unseen: Option<EngineError>,
    /// The same of others, of the first of them. All such packs stay suspects.
    pub waiting: Option<EngineError>,
}

impl Suspects {
    fn packs(&self) -> MutexGuard<'_, BTreeSet<PackId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, pack: PackId) {
        self.packs().insert(pack);
    }
}

impl Repository<Indexed> {
    /// Whether readers have met bad bytes since [`Self::verify_suspects`].
    pub fn has_suspects(&self) -> bool {
        !self.state.suspects.packs().is_empty()
    }

    /// Verifies the packs that readers met bad bytes in, and the one that a reader's error tells
    /// of, and records what is wrong with them. For each the marks are listed, and the index
    /// objects that list it are read.
    pub fn verify_suspects(&self, error: Option<&EngineError>, cancel: &CancelFlag) -> Suspicion {
        let told = error.and_then(pack_of);
        let is_lost = told.is_none() && matches!(error, Some(EngineError::Damaged { .. }));
        let mut suspicion = Suspicion { is_lost, ..Suspicion::default() };
        let suspects = std::mem::take(&mut *self.state.suspects.packs());
        let others = suspects.into_iter().filter(|pack| Some(*pack) != told);
        for pack in told.into_iter().chain(others) {
            match self.look_at(pack, cancel) {
                Ok(found) => {
                    suspicion.damaged.extend(found.damaged);
                    suspicion.is_lost |= found.is_lost;
                }
                Err(error) => {
                    self.state.suspects.note(pack);
                    let why = match told == Some(pack) {
                        true => &mut suspicion.unseen,
                        false => &mut suspicion.waiting,
                    };
                    why.get_or_insert(error);
                }
            }
        }
        suspicion
    }

    /// Verifies one pack, as the index objects say that list it.
    pub(crate) fn look_at(
        &self,
        pack: PackId,
        cancel: &CancelFlag,
    ) -> Result<Suspicion, EngineError> {
        cancel.check()?;
        let mut problems = Vec::new();
        let objects = self.state.index.objects_of(pack);
        let catalogue = PackCatalogue::of(&self.vault, objects, &mut problems)?;
        self.state.index.forget_damaged(&catalogue.damaged);
        let is_lost = !catalogue.damaged.is_empty();
        let Some(bytes) = catalogue.bytes_of(pack) else {
            return Ok(Suspicion { is_lost: true, ..Suspicion::default() });
        };
        let options = VerifyOptions::of_all(cancel);
        let (record, outcome) = (OnDamage::Record, VerifyOutcome::default());
        let packs = vec![(pack, bytes)];
        let VerifyOutcome { damaged, passed_over, .. } =
            self.verify_these(packs, &catalogue, record, &options, outcome, &NoProgress)?;
        cancel.check()?;
        let is_lost = is_lost || !passed_over.is_empty();
        Ok(Suspicion { damaged, is_lost, ..Suspicion::default() })
    }
}

/// The pack that an error of a reader tells of. What is not allowed, or out of reach, says
/// nothing of it, nor does one that could not be written.
fn pack_of(error: &EngineError) -> Option<PackId> {
    match error {
        EngineError::Damaged { object, .. } => {
            let name = object.strip_prefix("data/").and_then(|path| path.rsplit('/').next());
            name.and_then(|name| name.parse().ok())
        }
        EngineError::Backend {
            object: ObjectName::Pack(pack),
            error: BackendError::Broken { .. },
        } => Some(*pack),
        _ => None,
    }
}
