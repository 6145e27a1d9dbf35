//! The engine's own judgement of a repository. Sharper than restic's in one point: a
//! file's size must be the sum of its blobs.

use std::{collections::HashSet, num::NonZeroUsize, thread};

use crate::{
    backend::ObjectName,
    blob::BlobKind,
    chunk::zero_block_id,
    control::{CancelFlag, NoProgress},
    error::EngineError,
    id::TreeId,
    list::Entry,
    marks::PackDamage,
    read::blob_name,
    repository::{Indexed, Repository},
    tree::{Node, NodeKind},
    verify::{OnDamage, PackCatalogue, VerifyOptions, VerifyOutcome},
};

/// Whether a check reads the packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadData {
    /// Structure only: index, snapshots, trees, presence and size of packs.
    No,
    /// Every byte of every pack as well.
    Yes,
}

/// Something a check found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Snapshots walked.
    pub snapshots: u64,
    /// Distinct trees read.
    pub trees: u64,
    /// Packs in the index.
    pub packs: u64,
    /// Blobs in the index, repeated ones counted each time.
    pub blobs: u64,
    /// Packs in the store that no index object lists: remnants of failed backups.
    pub unindexed_packs: u64,
    /// Bytes of packs read.
    pub read_bytes: u64,
    /// Everything found wrong.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Notes damage; other errors end the check.
    fn note(&mut self, error: EngineError) -> Result<(), EngineError> {
        match error {
            EngineError::Damaged { object, what } => {
                self.problems.push(Problem { object, what });
                Ok(())
            }
            other => Err(other),
        }
    }

    fn note_if_damaged(&mut self, checked: Result<(), EngineError>) -> Result<(), EngineError> {
        checked.or_else(|error| self.note(error))
    }

    fn note_packs(&mut self, damaged: Vec<PackDamage>) {
        let problem = |damage: PackDamage| Problem {
            object: ObjectName::Pack(damage.pack).to_string(),
            what: damage.what,
        };
        self.problems.extend(damaged.into_iter().map(problem));
    }
}

/// More would hold more packs in memory than a check is worth.
const THREADS_MAX: usize = 4;

impl Repository<Indexed> {
    /// Looks at everything the snapshots need. What is wrong with the repository is in
    /// the report; an error says that the check could not be made.
    pub fn check(
        &self,
        read_data: ReadData,
        cancel: &CancelFlag,
    ) -> Result<CheckReport, EngineError> {
        let mut report = CheckReport::default();
        self.note_refresh(&mut report)?;
        self.check_packs(read_data, cancel, &mut report)?;
        self.check_snapshots(cancel, &mut report)?;
        Ok(report)
    }

    /// A damaged index object must not end the check; the packs it lists are missing
    /// then, and reported where they are needed.
    fn note_refresh(&self, report: &mut CheckReport) -> Result<(), EngineError> {
        match self.refresh() {
            Ok(()) | Err(EngineError::Damaged { .. }) => Ok(()),
            Err(error) => report.note(error),
        }
    }

    fn check_packs(
        &self,
        read_data: ReadData,
        cancel: &CancelFlag,
        report: &mut CheckReport,
    ) -> Result<(), EngineError> {
        let catalogue = PackCatalogue::load(&self.vault, &mut report.problems)?;
        report.packs = catalogue.packs();
        report.blobs = catalogue.blobs;
        report.unindexed_packs = catalogue.unindexed_packs();
        cancel.check()?;
        match read_data {
            ReadData::No => report.note_packs(catalogue.misfits()),
            ReadData::Yes => {
                let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
                let threads = NonZeroUsize::new(processors.min(THREADS_MAX));
                let options = VerifyOptions {
                    threads: threads.unwrap_or(NonZeroUsize::MIN),
                    cancel: cancel.clone(),
                    after: None,
                    bytes_max: u64::MAX,
                };
                let outcome = VerifyOutcome::default();
                let all = |_, _| true;
                let tell = OnDamage::Tell;
                let outcome =
                    self.verify_packs(&catalogue, &all, tell, &options, outcome, &NoProgress)?;
                cancel.check()?;
                report.read_bytes = outcome.read_bytes;
                report.note_packs(outcome.damaged);
            }
        }
        Ok(())
    }

    fn check_snapshots(
        &self,
        cancel: &CancelFlag,
        report: &mut CheckReport,
    ) -> Result<(), EngineError> {
        let loaded = self.state.snapshots.load(&self.vault)?;
        for damage in loaded.damaged {
            report.note(damage)?;
        }
        let mut seen = HashSet::new();
        for snapshot in loaded.readable {
            report.snapshots += 1;
            let mut open = vec![snapshot.tree];
            while let Some(id) = open.pop() {
                cancel.check()?;
                if seen.insert(id) {
                    report.trees += 1;
                    self.check_tree(id, &mut open, report)?;
                }
            }
        }
        Ok(())
    }

    fn check_tree(
        &self,
        id: TreeId,
        open: &mut Vec<TreeId>,
        report: &mut CheckReport,
    ) -> Result<(), EngineError> {
        let tree = match self.load_tree(id) {
            Ok(tree) => tree,
            Err(error) => return report.note(error),
        };
        for node in &tree.nodes {
            let checked = match node.kind {
                NodeKind::Dir => match node.subtree {
                    Some(subtree) => {
                        open.push(subtree);
                        Ok(())
                    }
                    None => Err(node_damage(id, node, "is a directory without a tree")),
                },
                NodeKind::File => self.check_file(id, node),
                NodeKind::Other => Ok(()),
            };
            report.note_if_damaged(checked)?;
        }
        Ok(())
    }

    fn check_file(&self, tree: TreeId, node: &Node) -> Result<(), EngineError> {
        let content = node.content.as_ref();
        let content = content.ok_or_else(|| node_damage(tree, node, "has no list of blobs"))?;
        let mut sum: u64 = 0;
        for entry in content.entries() {
            let (id, count) = match entry {
                Entry::Zeroes(count) => (zero_block_id(), count),
                Entry::Data(id) => (id, 1),
            };
            let len = self.data_bytes_of(id)?.ok_or_else(|| {
                let blob = blob_name(BlobKind::Data, id);
                node_damage(tree, node, &format!("needs {blob}, which is missing"))
            })?;
            sum = sum.saturating_add(u64::from(len) * u64::from(count));
        }
        if sum == node.size {
            return Ok(());
        }
        let what = format!("has size {} and blobs of {sum} bytes", node.size);
        Err(node_damage(tree, node, &what))
    }
}

fn node_damage(tree: TreeId, node: &Node, what: &str) -> EngineError {
    EngineError::damaged(format!("tree {tree}"), format!("node {:?} {what}", node.name))
}
