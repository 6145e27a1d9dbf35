//! Packs that gave a reader bad bytes. A reader that finds its blob elsewhere goes on, one that
//! does not fails; either way somebody is to look at the whole pack, and record what is wrong.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    backend::ObjectName,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspicion {
    /// Packs that are damaged, as it is recorded.
    pub damaged: Vec<PackDamage>,
    /// Whether something is lost that cannot be recorded: an index object, whatever it listed,
    /// or a blob that no index object lists.
    pub is_lost: bool,
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
    /// of, and records what is wrong with them: a list of marks, the index objects that list
    /// the packs, and the packs are read. Where that fails they stay suspects.
    pub fn verify_suspects(&self, error: Option<&EngineError>) -> Result<Suspicion, EngineError> {
        let told = error.and_then(pack_of);
        told.into_iter().for_each(|pack| self.state.suspects.note(pack));
        let suspects = std::mem::take(&mut *self.state.suspects.packs());
        let looked_at = self.look_at(&suspects);
        if looked_at.is_err() {
            self.state.suspects.packs().extend(&suspects);
        }
        let mut suspicion = looked_at?;
        suspicion.is_lost |= told.is_none() && matches!(error, Some(EngineError::Damaged { .. }));
        Ok(suspicion)
    }

    fn look_at(&self, suspects: &BTreeSet<PackId>) -> Result<Suspicion, EngineError> {
        if suspects.is_empty() {
            return Ok(Suspicion::default());
        }
        let mut problems = Vec::new();
        let objects = self.state.index.objects_of(suspects);
        let catalogue = PackCatalogue::of(&self.vault, objects, &mut problems)?;
        self.state.index.forget_damaged(&catalogue.damaged);
        let listed = suspects.iter().filter_map(|pack| Some((*pack, catalogue.bytes_of(*pack)?)));
        let listed: Vec<_> = listed.collect();
        let is_any_unlisted = listed.len() < suspects.len();
        let options = VerifyOptions::of_all(&CancelFlag::new());
        let (record, outcome) = (OnDamage::Record, VerifyOutcome::default());
        let outcome =
            self.verify_these(listed, &catalogue, record, &options, outcome, &NoProgress)?;
        let is_lost = is_any_unlisted || !outcome.passed_over.is_empty();
        Ok(Suspicion { damaged: outcome.damaged, is_lost })
    }
}

/// The pack that an error of a reader tells of.
fn pack_of(error: &EngineError) -> Option<PackId> {
    match error {
        EngineError::Damaged { object, .. } => {
            let name = object.strip_prefix("data/").and_then(|path| path.rsplit('/').next());
            name.and_then(|name| name.parse().ok())
        }
        EngineError::Backend { object: ObjectName::Pack(pack), .. } => Some(*pack),
        _ => None,
    }
}
