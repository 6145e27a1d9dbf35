//! `kedge repo`: repositories looked after by hand.
//!
//! Invariant: a verb that changes the catalogue owns it, so that no service runs beside it;
//! one that only reads repositories needs neither.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use kedge_core::ids::{ItemId, ProjectId};
use kedge_engine::{CancelFlag, ForeignLocks, Freed, PruneReport, ReadData, Stats};
use kedge_service::care::{Init, Prune, Run};
use kedge_service::keys::{KeyError, ServiceKey};
use kedge_service::kit::RecoveryKit;
use kedge_service::rebuild::Rebuilt;
use kedge_service::repositories::{Repositories, RepositoryError};
use serde_json::json;
use zeroize::Zeroizing;

use super::report::{Form, Outcome, Progress, Report};
use super::{Found, own_catalogue, repositories, say, verify, without_catalogue};
use crate::arguments::{
    CheckOptions, KitOptions, OfProject, OfProjects, PruneOptions, RebuildOptions, RepoVerb,
    StatsOptions,
};
use crate::config::Checked;
use crate::failure::{Failure, OrFail as _};
use crate::{halt, node, places, private, signals};

/// Larger than any recovery kit: a path that names something else is noticed.
const KIT_BYTES_MAX: u64 = 64 << 10;

pub(crate) async fn run(verb: RepoVerb) -> Result<Found, Failure> {
    match verb {
        RepoVerb::Init(options) => init(&options).await,
        RepoVerb::Check(options) => check(&options).await,
        RepoVerb::Verify(options) => verify::verify(&options).await,
        RepoVerb::Prune(options) => prune(&options).await,
        RepoVerb::Stats(options) => stats(&options).await,
        RepoVerb::RecoveryKit(options) => recovery_kit(&options).await,
        RepoVerb::RebuildCatalogue(options) => rebuild_catalogue(&options).await,
    }
}

/// Makes a repository, as a first backup would.
async fn init(options: &OfProject) -> Result<Found, Failure> {
    let config = Checked::read(&options.config)?;
    let store = own_catalogue(&config).await?;
    node::require_known_key(&config, &store).await?;
    let key = ServiceKey::load_or_create(&config.service_key).or_fail("service_key")?;
    let repositories = repositories(&config, key, store.clone())?;
    let project = ProjectId::new(&options.project);
    let mut report = Report::new("repo init", Form::json_if(options.json));
    let made = repositories.init(&project).await.map(|init| match init {
        Init::Made => Outcome::new("made", json!({ "made": true })),
        Init::WasThere => Outcome::new("was there already", json!({ "made": false })),
    });
    store.close().await;
    report.add(&project, made.map_err(|error| error.to_string()))?;
    report.end(json!({}))
}

/// Judges repositories.
async fn check(options: &CheckOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.of.config)?;
    let repositories = without_catalogue(&config).await?;
    let cancel = cancel_when_told()?;
    let read_data = if options.read_data { ReadData::Yes } else { ReadData::No };
    let mut report = Report::new("repo check", Form::json_if(options.of.json));
    for project in chosen(&options.of, &repositories).await? {
        let progress = Progress::begin(report.form(), "checking", &project);
        let checked = repositories.check(&project, read_data, cancel.clone()).await;
        progress.end();
        report.add(&project, checked.map(judged).map_err(|error| error.to_string()))?;
    }
    report.end(json!({ "read_data": options.read_data }))
}

fn judged(report: kedge_engine::CheckReport) -> Outcome {
    let problems: Vec<_> =
        report.problems.into_iter().map(|problem| (problem.object, problem.what)).collect();
    let verdict = match problems.len() {
        0 => "no problems".to_owned(),
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    let summary = format!(
        "{verdict} in {} snapshots, {} trees, {} packs, {} blobs; {} bytes of packs read",
        report.snapshots, report.trees, report.packs, report.blobs, report.read_bytes
    );
    let fields = json!({
        "snapshots": report.snapshots,
        "trees": report.trees,
        "packs": report.packs,
        "blobs": report.blobs,
        "unindexed_packs": report.unindexed_packs,
        "read_bytes": report.read_bytes,
    });
    Outcome::new(summary, fields).with_problems(problems)
}

/// Removes what no backup needs.
async fn prune(options: &PruneOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.of.config)?;
    let store = own_catalogue(&config).await?;
    let key = ServiceKey::load(&config.service_key).or_fail("service_key")?;
    let repositories = repositories(&config, key, store.clone())?;
    let cancel = cancel_when_told()?;
    let how = Prune {
        unused_percent_max: options.max_unused,
        repack_bytes_max: options.max_repack.unwrap_or(u64::MAX),
        foreign_locks: match options.unlock_foreign {
            true => ForeignLocks::Remove,
            false => ForeignLocks::Honour,
        },
        run: if options.dry_run { Run::Dry } else { Run::Really },
    };
    let mut report = Report::new("repo prune", Form::json_if(options.of.json));
    for project in chosen(&options.of, &repositories).await? {
        let progress = Progress::begin(report.form(), "pruning", &project);
        let shown = Arc::new(progress.clone());
        let pruned = repositories.prune(&project, how, cancel.clone(), shown).await;
        progress.end();
        let outcome = pruned.map(|pruned| what_went(pruned, how.run));
        report.add(&project, outcome.map_err(|error| error.to_string()))?;
    }
    store.close().await;
    report.end(json!({ "dry_run": options.dry_run }))
}

fn what_went(report: PruneReport, run: Run) -> Outcome {
    let summary = match run {
        Run::Dry => format!(
            "would remove {} packs of {} bytes, after copying {} bytes that are still needed \
             out of them; {} bytes unused would stay",
            report.condemned_packs,
            report.condemned_bytes,
            report.copied_bytes,
            report.unused_bytes
        ),
        Run::Really => format!(
            "removed {} packs of {} bytes, after copying {} bytes that are still needed out of \
             them; {} packs wait to be removed, {} bytes unused stay",
            report.removed_packs,
            report.removed_bytes,
            report.copied_bytes,
            report.waiting_packs,
            report.unused_bytes
        ),
    };
    let mut problems = Vec::new();
    if report.lost_blobs > 0 {
        let what = format!("{} that backups need are lost", report.lost_blobs);
        problems.push(("blobs".to_owned(), what));
    }
    problems.extend(report.found_damage.iter().map(|what| ("damage".to_owned(), what.clone())));
    if let Some(why) = &report.deferred {
        problems.push(("removal".to_owned(), format!("put off: {why}")));
    }
    let fields = json!({
        "snapshots": report.snapshots,
        "packs": report.packs,
        "used_blobs": report.used_blobs,
        "used_bytes": report.used_bytes,
        "unused_bytes": report.unused_bytes,
        "copied_blobs": report.copied_blobs,
        "copied_bytes": report.copied_bytes,
        "condemned_packs": report.condemned_packs,
        "condemned_bytes": report.condemned_bytes,
        "suspect_packs": report.suspect_packs,
        "removed_packs": report.removed_packs,
        "removed_bytes": report.removed_bytes,
        "replaced_index_objects": report.replaced_index_objects,
        "retained_objects": report.retained_objects,
        "waiting_packs": report.waiting_packs,
        "waits_for": report.waits_for,
        "lost_blobs": report.lost_blobs,
        "deferred": report.deferred,
    });
    Outcome::new(summary, fields).with_problems(problems)
}

/// Tells what repositories hold.
async fn stats(options: &StatsOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.of.config)?;
    let repositories = without_catalogue(&config).await?;
    let cancel = cancel_when_told()?;
    let mut report = Report::new("repo stats", Form::json_if(options.of.json));
    for project in chosen(&options.of, &repositories).await? {
        let progress = Progress::begin(report.form(), "counting", &project);
        let counted = repositories.stats(&project, cancel.clone()).await.map(counted);
        let counted = match (counted, &options.freed_by) {
            (Ok(outcome), Some(item)) => {
                let item = ItemId::asked(item);
                let freed = repositories.freed_by(&project, &item, cancel.clone()).await;
                freed.map(|freed| with_freed(outcome, &item, freed))
            }
            (counted, _) => counted,
        };
        progress.end();
        report.add(&project, counted.map_err(|error| error.to_string()))?;
    }
    report.end(json!({}))
}

fn counted(stats: Stats) -> Outcome {
    let summary = format!(
        "{} snapshots need {} bytes ({} before compression); {} packs of {} bytes, of which {} \
         bytes unused; {} packs to be removed, {} damaged",
        stats.snapshots,
        stats.used_bytes,
        stats.used_plain_bytes,
        stats.packs,
        stats.stored_bytes,
        stats.unused_bytes,
        stats.condemned_packs,
        stats.damaged_packs
    );
    let fields = json!({
        "snapshots": stats.snapshots,
        "packs": stats.packs,
        "stored_bytes": stats.stored_bytes,
        "used_blobs": stats.used_blobs,
        "used_bytes": stats.used_bytes,
        "used_plain_bytes": stats.used_plain_bytes,
        "unused_bytes": stats.unused_bytes,
        "unindexed_packs": stats.unindexed_packs,
        "condemned_packs": stats.condemned_packs,
        "damaged_packs": stats.damaged_packs,
    });
    Outcome::new(summary, fields)
}

fn with_freed(mut outcome: Outcome, item: &ItemId, freed: Option<Freed>) -> Outcome {
    match freed {
        Some(freed) => {
            let text = format!(
                "; deleting {item} frees {} bytes of {} blobs, {} packs whole",
                freed.bytes, freed.blobs, freed.packs
            );
            outcome.summary += &text;
            let fields =
                json!({ "bytes": freed.bytes, "blobs": freed.blobs, "packs": freed.packs });
            outcome.fields.insert("freed".to_owned(), fields);
            outcome
        }
        None => outcome.with_problems(vec![(item.to_string(), "no such backup here".to_owned())]),
    }
}

/// Writes what stock restic needs.
async fn recovery_kit(options: &KitOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.config)?;
    let repositories = without_catalogue(&config).await?;
    let project = ProjectId::new(&options.project);
    let kit = repositories.recovery_kit(&project).await.or_fail("recovery kit")?;
    match &options.out {
        Some(path) => private::write_file(path, &kit).or_fail(path.display())?,
        None => say(kit.trim_end())?,
    }
    Ok(Found::Good)
}

/// Rebuilds records from repositories.
async fn rebuild_catalogue(options: &RebuildOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.of.config)?;
    let kit = options.recovery_kit.as_deref().map(read_kit).transpose()?;
    let store = own_catalogue(&config).await?;
    let key = match &kit {
        // The key that wrapped the password may be lost: another one will do.
        Some(_) => ServiceKey::load_or_create(&config.service_key),
        None => ServiceKey::load(&config.service_key),
    };
    let repositories = repositories(&config, key.or_fail("service_key")?, store.clone())?;
    let mut report = Report::new("repo rebuild-catalogue", Form::json_if(options.of.json));
    let points = halt::points();
    let projects = chosen(&options.of, &repositories).await?;
    if let (Some(kit), [project]) = (kit, &projects[..]) {
        tell_if_elsewhere(&config, project, &kit)?;
        let taken = repositories.take_password(project, kit.password, &points).await;
        taken.or_fail("the recovery kit's password")?;
    }
    for project in projects {
        let progress = Progress::begin(report.form(), "reading the backups of", &project);
        let rebuilt = repositories.rebuild_catalogue(&project, &points).await;
        progress.end();
        report.add(&project, rebuilt.map(told).map_err(|error| with_advice(&error)))?;
    }
    store.close().await;
    report.end(json!({}))
}

fn told(rebuilt: Rebuilt) -> Outcome {
    let Rebuilt { adopted, known, foreign, unreadable } = rebuilt;
    let mut summary = format!("{adopted} backups taken in, {known} known before");
    if foreign > 0 {
        summary += &format!(", {foreign} snapshots of other programs left out");
    }
    let problems = unreadable.into_iter().map(|what| ("a backup".to_owned(), what)).collect();
    Outcome::new(summary, json!({ "adopted": adopted, "known": known, "foreign": foreign }))
        .with_problems(problems)
}

fn with_advice(error: &RepositoryError) -> String {
    match error {
        RepositoryError::Key(KeyError::WrongKey) => {
            format!("{error}; put the right key back, or give --recovery-kit")
        }
        other => other.to_string(),
    }
}

fn read_kit(path: &Path) -> Result<RecoveryKit, Failure> {
    let mut text = Zeroizing::new(String::new());
    let file = File::open(path).or_fail(path.display())?;
    file.take(KIT_BYTES_MAX).read_to_string(&mut text).or_fail(path.display())?;
    RecoveryKit::parse(&text).or_fail(path.display())
}

/// The configuration says where the repository lies; a kit may be older than a move.
fn tell_if_elsewhere(
    config: &Checked,
    project: &ProjectId,
    kit: &RecoveryKit,
) -> Result<(), Failure> {
    let here = places::open(config)?.restic_location(project).or_fail("repositories_dir")?;
    if here != kit.location {
        super::note(&format!("the recovery kit names {:?}; using {here:?}", kit.location));
    }
    Ok(())
}

pub(super) async fn chosen(
    of: &OfProjects,
    repositories: &Repositories,
) -> Result<Vec<ProjectId>, Failure> {
    match &of.project {
        Some(project) => Ok(vec![ProjectId::new(project)]),
        None => repositories.list_projects().await.or_fail("listing repositories"),
    }
}

/// A flag that a signal raises: the work ends at a safe point.
pub(super) fn cancel_when_told() -> Result<CancelFlag, Failure> {
    let (flag, told) = (CancelFlag::new(), signals::until_told_to_stop()?);
    let raised = flag.clone();
    tokio::spawn(async move {
        told.cancelled().await;
        raised.cancel();
    });
    Ok(flag)
}
