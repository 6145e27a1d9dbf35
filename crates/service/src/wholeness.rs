//! Whether the data of backups is whole, as far as anybody knows. Every verdict asks.
//!
//! Where nothing is recorded as damaged, that costs a listing of marks. Else the lists of
//! each backup asked about are walked once, and the answer is kept until the marks are
//! others. A walk goes on when whoever asked first has stopped waiting, so the next one
//! finds its answer.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use kedge_core::ids::ProjectId;
use kedge_core::restore::Data;
use kedge_engine::{CancelFlag, EngineError, ObjectKind, SnapshotId, holds_snapshot};
use tokio::sync::Semaphore;

use crate::repositories::{Repositories, RepositoryError, SharedRepository, blocking};

/// Walks at a time: each holds the list of a volume in memory.
const WALKS_MAX: usize = 4;
/// Of which one project may have so many, so that a slow store of one leaves others theirs.
const WALKS_PER_PROJECT_MAX: usize = 1;

/// What a walk says once it has ended.
pub(crate) type Answer = Shared<BoxFuture<'static, Result<Data, Arc<RepositoryError>>>>;

/// What is known of a repository's data before any of it is looked at.
pub(crate) enum Judged {
    /// Nothing is recorded as damaged.
    Whole,
    /// Something is, and these walks find out whom it harms; one per snapshot asked about.
    Walked(Vec<Answer>),
    /// A record of damage cannot be read: it may speak of anything.
    Unreadable(EngineError),
}

/// What is known of damage in the repositories of all projects.
pub(crate) struct Wholeness {
    projects: Mutex<HashMap<ProjectId, Known>>,
    /// Repositories in which something is lost that no mark names: lists are walked there as
    /// if there were marks.
    doubts: Mutex<HashMap<ProjectId, Doubt>>,
    /// Notices of that so far. No number is given twice: what was walked under one says
    /// nothing under another.
    notices: AtomicU64,
    /// Whether those are in it that the catalogue tells of: what was lost stays so when the
    /// process ends, and until it is known nobody hears yes.
    are_doubts_known: AtomicBool,
    walks: Arc<Semaphore>,
    /// Projects in whose repositories walks found something lost that nobody was told of.
    lost: Arc<Mutex<BTreeSet<ProjectId>>>,
}

type Names = Arc<BTreeSet<String>>;

/// That something of a repository is lost.
#[derive(Clone, Copy, Debug, Default)]
struct Doubt {
    /// The number of the notice.
    notice: u64,
    /// A reader met it, and no look over the repository has begun since.
    is_reported: bool,
}

/// Answers that hold while a repository has these marks.
struct Known {
    marks: Names,
    /// The latest index objects: shared by all that began with the same.
    index: Names,
    answers: HashMap<SnapshotId, Begun>,
    share: Arc<Semaphore>,
    cancel: CancelFlag,
}

/// A walk, and the index objects there were when it began.
struct Begun {
    index: Names,
    answer: Answer,
    /// It met what no mark spoke of when it began: under the same marks another may not.
    has_met: Arc<AtomicBool>,
}

impl fmt::Debug for Wholeness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wholeness").finish_non_exhaustive()
    }
}

impl Default for Wholeness {
    fn default() -> Self {
        Self {
            projects: Mutex::default(),
            doubts: Mutex::default(),
            notices: AtomicU64::new(0),
            are_doubts_known: AtomicBool::new(false),
            walks: Arc::new(Semaphore::new(WALKS_MAX)),
            lost: Arc::default(),
        }
    }
}

impl Known {
    fn new(marks: Names) -> Self {
        let share = Arc::new(Semaphore::new(WALKS_PER_PROJECT_MAX));
        Self {
            marks,
            index: Names::default(),
            answers: HashMap::new(),
            share,
            cancel: CancelFlag::new(),
        }
    }

    /// Forgets what need not hold any more: failures, and damage that a backup since may
    /// have healed. What is whole stays so while the marks are the same.
    fn forget_passed(&mut self, index: &Names) {
        self.answers.retain(|_, begun| match begun.answer.clone().now_or_never() {
            None | Some(Ok(Data::Whole)) => true,
            Some(Ok(Data::Damaged)) => {
                begun.index == *index && !begun.has_met.load(Ordering::Relaxed)
            }
            Some(Err(_)) => false,
        });
    }
}

/// Walks nobody may ask about any more end soon.
impl Drop for Known {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Wholeness {
    /// Something of the project's repository is lost that no mark names: no list is whole
    /// until it was walked again.
    pub(crate) fn note_doubt(&self, project: &ProjectId) {
        let notice = self.notices.fetch_add(1, Ordering::Relaxed);
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.entry(project.clone()).or_default().notice = notice;
    }

    /// A reader met something lost. The same, until the next look over the repository has
    /// walked all lists.
    /// Whether that is news.
    pub(crate) fn note_report(&self, project: &ProjectId) -> bool {
        let notice = self.notices.fetch_add(1, Ordering::Relaxed);
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = doubts.insert(project.clone(), Doubt { notice, is_reported: true });
        known.is_none_or(|known| !known.is_reported)
    }

    /// Whether a reader met something lost since the last look began. The doubt stays.
    pub(crate) fn take_report(&self, project: &ProjectId) -> bool {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.get_mut(project).is_some_and(|doubt| std::mem::take(&mut doubt.is_reported))
    }

    /// Every list was walked since, and none was found wanting. What a reader met meanwhile
    /// stays for the next look.
    pub(crate) fn forget_doubt(&self, project: &ProjectId) {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.get(project).is_some_and(|doubt| !doubt.is_reported) {
            doubts.remove(project);
        }
    }

    pub(crate) fn is_in_doubt(&self, project: &ProjectId) -> bool {
        self.doubt_of(project).is_some()
    }

    /// Projects in whose repositories walks found something lost, to be reported.
    fn take_lost(&self) -> BTreeSet<ProjectId> {
        std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn doubt_of(&self, project: &ProjectId) -> Option<u64> {
        let doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.get(project).map(|doubt| doubt.notice)
    }

    /// The answers for these snapshots, begun where nobody has asked yet.
    fn answers(
        &self,
        repository: &SharedRepository,
        project: &ProjectId,
        objects: Objects,
        ids: &[SnapshotId],
    ) -> Vec<Answer> {
        let Objects { marks, index } = objects;
        let mut projects = self.projects.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            projects.entry(project.clone()).or_insert_with(|| Known::new(Arc::clone(&marks)));
        if known.marks != marks {
            *known = Known::new(marks);
        }
        known.forget_passed(&index);
        let Known { index: latest, answers, share, cancel, .. } = known;
        if *latest != index {
            *latest = index;
        }
        let index = latest;
        let begin = |id: SnapshotId| {
            let turns = [Arc::clone(share), Arc::clone(&self.walks)];
            let has_met = Arc::new(AtomicBool::new(false));
            let met = Met {
                project: project.clone(),
                anything: Arc::clone(&has_met),
                lost: Arc::clone(&self.lost),
            };
            let answer = walk(Arc::clone(repository), turns, cancel.clone(), id, met);
            Begun { index: Arc::clone(index), answer, has_met }
        };
        let mut answer =
            |id: &SnapshotId| answers.entry(*id).or_insert_with(|| begin(*id)).answer.clone();
        ids.iter().map(&mut answer).collect()
    }
}

/// Where a walk leaves what it met.
struct Met {
    project: ProjectId,
    anything: Arc<AtomicBool>,
    lost: Arc<Mutex<BTreeSet<ProjectId>>>,
}

/// A task of its own: it does not end with whoever waits for it.
fn walk(
    repository: SharedRepository,
    turns: [Arc<Semaphore>; 2],
    cancel: CancelFlag,
    id: SnapshotId,
    met: Met,
) -> Answer {
    let walking = tokio::spawn(async move {
        let closed = |_| RepositoryError::Failed("nobody may walk any more".to_owned());
        let [share, walks] = &turns;
        // The project's own turn first, so that nobody waits with another's in hand.
        let _own = share.acquire().await.map_err(closed)?;
        let _of_all = walks.acquire().await.map_err(closed)?;
        blocking(move || {
            let is_whole = repository.is_whole(id, &cancel)?;
            if is_whole || !repository.has_suspects() {
                return Ok(is_whole);
            }
            // Recorded it is known to everybody; and it may have been bad for a moment only.
            met.anything.store(true, Ordering::Relaxed);
            if repository.verify_suspects(None, &cancel).is_lost {
                met.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(met.project);
            }
            repository.is_whole(id, &cancel)
        })
        .await
    });
    let data = |is_whole| if is_whole { Data::Whole } else { Data::Damaged };
    let ended = move |ended: Result<Result<bool, RepositoryError>, tokio::task::JoinError>| {
        let failed = |error| RepositoryError::Failed(format!("walking a backup: {error}"));
        ended.map_err(failed).and_then(|walked| walked).map(data).map_err(Arc::new)
    };
    walking.map(ended).boxed().shared()
}

/// What one look at a repository's objects saw. It needs no key and no index.
pub(crate) struct Look {
    /// Of each snapshot asked about, whether it is held as it was written.
    pub(crate) held: Vec<bool>,
    /// `None` where there are no marks and nothing was lost.
    marked: Option<Objects>,
}

/// The names of a repository's marks and index objects.
struct Objects {
    marks: Names,
    index: Names,
}

impl Repositories {
    /// Looks at the objects of these snapshots by their names, and for marks of damage.
    pub(crate) async fn look(
        &self,
        project: &ProjectId,
        ids: Vec<SnapshotId>,
    ) -> Result<Look, RepositoryError> {
        self.learn_doubts().await?;
        let backend = self.places.backend(project)?;
        let doubt = self.wholeness.doubt_of(project);
        blocking(move || {
            let held = ids.into_iter().map(|id| holds_snapshot(&*backend, id));
            let held = held.collect::<Result<_, EngineError>>()?;
            let list = |kind| {
                let listed = backend.list(kind).map_err(EngineError::List)?.into_iter();
                Ok::<_, EngineError>(listed.map(|one| one.name.to_string()).collect())
            };
            let mut marks: BTreeSet<String> = list(ObjectKind::Mark)?;
            // Walks of before a notice hold no longer.
            marks.extend(doubt.map(|count| format!("notice {count} of something lost")));
            if marks.is_empty() {
                return Ok(Look { held, marked: None });
            }
            let index = list(ObjectKind::Index)?;
            let marked = Some(Objects { marks: Arc::new(marks), index: Arc::new(index) });
            Ok(Look { held, marked })
        })
        .await
    }

    /// What is known of the data of these snapshots, after a look.
    pub(crate) async fn judge_data(
        &self,
        project: &ProjectId,
        ids: &[SnapshotId],
        look: Look,
    ) -> Result<Judged, RepositoryError> {
        let Some(objects) = look.marked else {
            return Ok(Judged::Whole);
        };
        let repository = self.get(project).await?;
        let asked = Arc::clone(&repository);
        match blocking(move || asked.has_damage()).await {
            Ok(false) if self.wholeness.doubt_of(project).is_none() => Ok(Judged::Whole),
            Ok(_) => {
                let answers = self.wholeness.answers(&repository, project, objects, ids);
                Ok(Judged::Walked(answers))
            }
            Err(RepositoryError::Engine(error @ EngineError::Damaged { .. })) => {
                Ok(Judged::Unreadable(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Remembers what walks found lost.
    pub(crate) async fn report_what_walks_met(&self) {
        for project in self.wholeness.take_lost() {
            self.report_loss(&project).await;
        }
    }

    /// Asks the catalogue once which repositories are in doubt.
    async fn learn_doubts(&self) -> Result<(), RepositoryError> {
        if self.wholeness.are_doubts_known.load(Ordering::Acquire) {
            return Ok(());
        }
        let projects = self.store.list_in_doubt().await?;
        projects.iter().for_each(|project| self.wholeness.note_doubt(project));
        self.wholeness.are_doubts_known.store(true, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures::future::{pending, ready};

    use super::*;

    fn names(names: &[&str]) -> Names {
        Arc::new(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn id(digit: char) -> SnapshotId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn begun(
        index: &Names,
        answer: BoxFuture<'static, Result<Data, Arc<RepositoryError>>>,
    ) -> Begun {
        Begun {
            index: Arc::clone(index),
            answer: answer.shared(),
            has_met: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Nobody need wait for a walk that ended: it is polled when it is asked about.
    #[test]
    fn new_index_objects_may_heal_what_was_damaged_and_harm_nothing_that_was_whole() {
        let (old, new) = (names(&["index/1"]), names(&["index/1", "index/2"]));
        let mut known = Known::new(names(&["mark"]));
        let failed = Arc::new(RepositoryError::Failed("a store that hiccuped".to_owned()));
        let answers = [
            ('1', ready(Ok(Data::Whole)).boxed()),
            ('2', ready(Ok(Data::Damaged)).boxed()),
            ('3', ready(Err(failed)).boxed()),
            ('4', pending().boxed()),
        ];
        for (digit, answer) in answers {
            known.answers.insert(id(digit), begun(&old, answer));
        }
        known.answers.insert(id('5'), begun(&new, ready(Ok(Data::Damaged)).boxed()));
        let met = begun(&new, ready(Ok(Data::Damaged)).boxed());
        met.has_met.store(true, Ordering::Relaxed);
        known.answers.insert(id('6'), met);
        known.forget_passed(&new);
        let mut kept: Vec<_> = known.answers.keys().copied().collect();
        kept.sort_unstable();
        assert_eq!(kept, ['1', '4', '5'].map(id));
    }

    /// A look that began before cannot have seen it.
    #[test]
    fn what_a_reader_met_is_forgotten_only_by_a_look_that_began_later() {
        let (wholeness, project) = (Wholeness::default(), ProjectId::new("p"));
        wholeness.note_doubt(&project);
        assert!(!wholeness.take_report(&project), "no reader told of it");
        wholeness.note_report(&project);
        wholeness.note_doubt(&project);
        wholeness.forget_doubt(&project);
        assert!(wholeness.is_in_doubt(&project));
        assert!(wholeness.take_report(&project));
        assert!(!wholeness.take_report(&project));
        wholeness.forget_doubt(&project);
        assert!(!wholeness.is_in_doubt(&project));
    }

    #[test]
    fn walks_under_other_marks_are_cancelled() {
        let cancel = {
            let known = Known::new(names(&["mark"]));
            known.cancel.clone()
        };
        assert!(cancel.is_cancelled());
    }
}
