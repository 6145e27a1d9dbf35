//! `kedge repo`: repositories looked after by hand.
//!
//! Invariant: a verb that changes the catalogue owns it, so that no service runs beside it;
//! one that only reads repositories needs neither.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use kedge_core::ids::ProjectId;
use kedge_engine::{CancelFlag, ReadData};
use kedge_service::care::Init;
use kedge_service::keys::{KeyError, ServiceKey};
use kedge_service::kit::RecoveryKit;
use kedge_service::rebuild::Rebuilt;
use kedge_service::repositories::{Repositories, RepositoryError};
use serde_json::json;
use zeroize::Zeroizing;

use super::report::{Form, Outcome, Progress, Report};
use super::{Found, own_catalogue, repositories, say, without_catalogue};
use crate::arguments::{CheckOptions, KitOptions, OfProject, OfProjects, RebuildOptions, RepoVerb};
use crate::config::Checked;
use crate::failure::{Failure, OrFail as _};
use crate::{node, places, private, signals};

/// Larger than any recovery kit: a path that names something else is noticed.
const KIT_BYTES_MAX: u64 = 64 << 10;

pub(crate) async fn run(verb: RepoVerb) -> Result<Found, Failure> {
    match verb {
        RepoVerb::Init(options) => init(&options).await,
        RepoVerb::Check(options) => check(&options).await,
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
    let projects = chosen(&options.of, &repositories).await?;
    if let (Some(kit), [project]) = (kit, &projects[..]) {
        tell_if_elsewhere(&config, project, &kit)?;
        let taken = repositories.take_password(project, kit.password).await;
        taken.or_fail("the recovery kit's password")?;
    }
    for project in projects {
        let progress = Progress::begin(report.form(), "reading the backups of", &project);
        let rebuilt = repositories.rebuild_catalogue(&project).await;
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

async fn chosen(of: &OfProjects, repositories: &Repositories) -> Result<Vec<ProjectId>, Failure> {
    match &of.project {
        Some(project) => Ok(vec![ProjectId::new(project)]),
        None => repositories.list_projects().await.or_fail("listing repositories"),
    }
}

/// A flag that a signal raises: the work ends at a safe point.
fn cancel_when_told() -> Result<CancelFlag, Failure> {
    let (flag, told) = (CancelFlag::new(), signals::until_told_to_stop()?);
    let raised = flag.clone();
    tokio::spawn(async move {
        told.cancelled().await;
        raised.cancel();
    });
    Ok(flag)
}
