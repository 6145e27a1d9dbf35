//! What an operator does by hand, beside the service or without it.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use kedge_core::ids::ProjectId;
use kedge_service::identity::{Identity, UsersSource};
use kedge_service::keys::ServiceKey;
use kedge_service::repositories::Repositories;
use kedge_store::Store;
use zeroize::Zeroizing;

use crate::arguments::{AdoptOptions, KitOptions};
use crate::config::{Checked, Config};
use crate::failure::{Failure, OrFail as _};
use crate::node::Node;
use crate::outside::SystemClock;
use crate::{places, private};

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

/// Writes what stock restic needs. An empty catalogue will do: the wrapped password also
/// lies beside the repository, so this works while the service holds the real one and
/// after it was lost.
pub(crate) async fn recovery_kit(options: &KitOptions) -> Result<(), Failure> {
    let config = Checked::read(&options.config)?;
    let key = ServiceKey::load(&config.service_key).or_fail("service_key")?;
    let nothing = Store::open_in_memory().await.or_fail("an empty catalogue")?;
    let repositories = Repositories::new(
        places::open(&config)?,
        Arc::new(key),
        nothing,
        Arc::new(SystemClock),
        config.settings.kdf,
    );
    let project = ProjectId::new(&options.project);
    let kit = repositories.recovery_kit(&project).await.or_fail("recovery kit")?;
    let kit = Zeroizing::new(kit);
    match &options.out {
        Some(path) => private::write_file(path, &kit).or_fail(path.display()),
        None => say(kit.trim_end()),
    }
}

/// Rebuilds records from the repository. Takes the catalogue for itself meanwhile.
pub(crate) async fn adopt(options: &AdoptOptions) -> Result<(), Failure> {
    let config = Checked::read(&options.config)?;
    let node = Node::open(&config).await?;
    let adopted = node.app().adopt_records(&ProjectId::new(&options.project)).await;
    node.close().await;
    say(&format!("{} backups adopted", adopted.or_fail("adopting backups")?))
}

/// A line on standard output.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{line}").or_fail("standard output")
}
