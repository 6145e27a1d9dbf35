//! Whether the data of backups is whole, as far as anybody knows. Every verdict asks.
//!
//! A repository without marks was never found damaged: that costs one listing. Where there
//! are marks, the lists of each backup asked about are walked once and the answer is kept
//! until marks or index objects are others. A walk goes on when whoever asked first has
//! stopped waiting, so the next one finds its answer.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, join_all};
use kedge_core::ids::ProjectId;
use kedge_core::restore::Data;
use kedge_engine::{CancelFlag, EngineError, ObjectKind, ObjectName, SnapshotId};
use tokio::sync::Semaphore;

use crate::repositories::{Repositories, RepositoryError, SharedRepository, blocking};

/// Walks at a time: each holds the list of a volume in memory.
const WALKS_MAX: usize = 2;

type Answer = Shared<BoxFuture<'static, Result<Data, Arc<RepositoryError>>>>;

/// What is known of damage in the repositories of all projects.
pub(crate) struct Wholeness {
    projects: Mutex<HashMap<ProjectId, Known>>,
    walks: Arc<Semaphore>,
}

/// Answers that hold while a repository has these marks and index objects.
struct Known {
    objects: BTreeSet<String>,
    answers: HashMap<SnapshotId, Answer>,
}

impl fmt::Debug for Wholeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wholeness").finish_non_exhaustive()
    }
}

impl Default for Wholeness {
    fn default() -> Self {
        Self { projects: Mutex::default(), walks: Arc::new(Semaphore::new(WALKS_MAX)) }
    }
}

impl Wholeness {
    /// The answers for these snapshots, begun where nobody has asked yet.
    fn answers(
        &self,
        repository: &SharedRepository,
        project: &ProjectId,
        objects: BTreeSet<String>,
        ids: &[SnapshotId],
    ) -> Vec<Answer> {
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        let known = projects
            .entry(project.clone())
            .or_insert_with(|| Known { objects: BTreeSet::new(), answers: HashMap::new() });
        if known.objects != objects {
            *known = Known { objects, answers: HashMap::new() };
        }
        // What failed is asked again.
        known.answers.retain(|_, answer| !matches!(answer.peek(), Some(Err(_))));
        let begin = |id: SnapshotId| walk(Arc::clone(repository), Arc::clone(&self.walks), id);
        let mut answer =
            |id: &SnapshotId| known.answers.entry(*id).or_insert_with(|| begin(*id)).clone();
        ids.iter().map(&mut answer).collect()
    }
}

/// A task of its own: it does not end with whoever waits for it.
fn walk(repository: SharedRepository, walks: Arc<Semaphore>, id: SnapshotId) -> Answer {
    let walking = tokio::spawn(async move {
        let closed = |_| RepositoryError::Failed("nobody may walk any more".to_owned());
        let _permit = walks.acquire().await.map_err(closed)?;
        blocking(move || repository.is_whole(id, &CancelFlag::new())).await
    });
    let data = |is_whole| if is_whole { Data::Whole } else { Data::Damaged };
    let ended = move |ended: Result<Result<bool, RepositoryError>, tokio::task::JoinError>| {
        let failed = |error| RepositoryError::Failed(format!("walking a backup: {error}"));
        ended.map_err(failed).and_then(|walked| walked).map(data).map_err(Arc::new)
    };
    walking.map(ended).boxed().shared()
}

impl Repositories {
    /// What is known of the data of these snapshots, in their order. Raises
    /// `has_damage` before it begins to look for what damage there harms: from then on
    /// the repository has answered and the rest is our own work.
    pub(crate) async fn data_of(
        &self,
        project: &ProjectId,
        ids: &[SnapshotId],
        has_damage: &AtomicBool,
    ) -> Result<Vec<Data>, Arc<RepositoryError>> {
        let objects = self.marks_and_index(project).await.map_err(Arc::new)?;
        if objects.is_empty() {
            return Ok(vec![Data::Whole; ids.len()]);
        }
        has_damage.store(true, Ordering::Relaxed);
        let repository = self.get(project).await.map_err(Arc::new)?;
        let answers = self.wholeness.answers(&repository, project, objects, ids);
        join_all(answers).await.into_iter().collect()
    }

    /// The names of all marks and index objects; none where there are no marks.
    async fn marks_and_index(
        &self,
        project: &ProjectId,
    ) -> Result<BTreeSet<String>, RepositoryError> {
        let backend = self.places.backend(project)?;
        blocking(move || {
            let list = |kind| {
                let listed = backend.list(kind).map_err(EngineError::List)?;
                Ok::<_, EngineError>(listed.into_iter().map(|listed| listed.name))
            };
            let text = |name: ObjectName| name.to_string();
            let mut objects: BTreeSet<String> = list(ObjectKind::Mark)?.map(text).collect();
            if !objects.is_empty() {
                objects.extend(list(ObjectKind::Index)?.map(text));
            }
            Ok(objects)
        })
        .await
    }
}
