//! What an operator does by hand, beside the service or without it.

mod cursor;
pub(crate) mod evidence;
pub(crate) mod key;
mod pacing;
pub(crate) mod repo;
mod report;
mod verify;

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use kedge_service::identity::{Identity, UsersSource};
use kedge_service::keys::ServiceKey;
use kedge_service::repositories::Repositories;
use kedge_store::Store;
use zeroize::Zeroizing;

use crate::config::{Checked, Config};
use crate::failure::{Failure, OrFail as _};
use crate::outside::SystemClock;
use crate::{node, places, private};

/// What a verb found; the exit code tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing wrong.
    Good,
    /// Problems, which it has told.
    Problems,
}

/// Longest password read: longer ones are a file given by mistake.
const PASSWORD_BYTES_MAX: usize = 1024;

/// Says what is wrong with a configuration.
pub(crate) async fn check(path: &Path) -> Result<(), Failure> {
    let mut problems = Vec::new();
    match Config::read(path)?.check() {
        Ok(config) => {
            problems.extend(config.check_machine().iter().map(ToString::to_string));
            problems.extend(check_secrets(&config).await?);
        }
        Err(found) => problems.extend(found.iter().map(ToString::to_string)),
    }
    if problems.is_empty() {
        return say("configuration is good");
    }
    for problem in &problems {
        say(problem)?;
    }
    Err(Failure::new(format!("{}: {} to mend", path.display(), problems.len())))
}

/// Reads the users and the key as the service would. A key that is not there yet is made
/// at the first start.
async fn check_secrets(config: &Checked) -> Result<Vec<String>, Failure> {
    let mut problems = Vec::new();
    let settings = &config.settings;
    let nothing = Store::open_in_memory().await.or_fail("an empty catalogue")?;
    let users = UsersSource::File(config.users.clone());
    let lifetime = settings.token_lifetime;
    let clock = Arc::new(SystemClock);
    if let Err(error) = Identity::new(users, nothing, clock, &settings.limits, lifetime) {
        problems.push(format!("users: {error}"));
    }
    if config.service_key.exists()
        && let Err(error) = ServiceKey::load(&config.service_key)
    {
        problems.push(format!("service_key: {error}"));
    }
    Ok(problems)
}

/// Prints the hash of the password on standard input.
pub(crate) fn hash_password() -> Result<(), Failure> {
    let mut text = Zeroizing::new(String::with_capacity(PASSWORD_BYTES_MAX + 2));
    let most = u64::try_from(PASSWORD_BYTES_MAX + 2).unwrap_or(u64::MAX);
    std::io::stdin().take(most).read_to_string(&mut text).or_fail("reading the password")?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX || password.contains('\n') {
        let text = format!("expected a password of one line, at most {PASSWORD_BYTES_MAX} bytes");
        return Err(Failure::new(text));
    }
    say(&kedge_service::identity::hash_password(password).or_fail("hashing the password")?)
}

fn repositories(config: &Checked, key: ServiceKey, store: Store) -> Result<Repositories, Failure> {
    let (places, kdf) = (places::open(config)?, config.settings.kdf);
    let repositories = Repositories::new(places, Arc::new(key), store, Arc::new(SystemClock), kdf);
    // What another user would leave there the service could not use.
    Ok(match private::owned_by_other(&config.state_dir) {
        Ok(false) => repositories.with_index_cache(config.index_cache_dir()),
        Ok(true) | Err(_) => repositories,
    })
}

/// The repositories without the catalogue: the wrapped passwords also lie beside them, so
/// this works while the service holds the catalogue and after it was lost.
async fn without_catalogue(config: &Checked) -> Result<Repositories, Failure> {
    let key = ServiceKey::load(&config.service_key).or_fail("service_key")?;
    let nothing = Store::open_in_memory().await.or_fail("an empty catalogue")?;
    repositories(config, key, nothing)
}

/// The repositories for what needs no key: a key of nobody stands in for it.
async fn without_key(config: &Checked) -> Result<Repositories, Failure> {
    let nothing = Store::open_in_memory().await.or_fail("an empty catalogue")?;
    repositories(config, ServiceKey::random().or_fail("randomness")?, nothing)
}

/// Takes the catalogue, which no service can use meanwhile.
async fn own_catalogue(config: &Checked) -> Result<Store, Failure> {
    require_owner(&config.state_dir)?;
    if let Some(problem) = config.check_machine_for_repositories().first() {
        return Err(Failure::new(problem.to_string()));
    }
    node::make_dirs(config)?;
    Store::open(&config.state_dir.join("catalogue.sqlite")).await.or_fail("catalogue")
}

/// What another user made here the service could not read.
fn require_owner(dir: &Path) -> Result<(), Failure> {
    match private::owned_by_other(dir) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Failure::new(format!(
            "{} belongs to another user: run this as the user of the service",
            dir.display()
        ))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).or_fail(dir.display()),
    }
}

/// A line on standard error, beside the result.
fn note(line: &str) {
    // Nobody need read it.
    let _ = writeln!(std::io::stderr(), "kedge: {line}");
}

/// A line on standard output.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{line}").or_fail("standard output")
}
