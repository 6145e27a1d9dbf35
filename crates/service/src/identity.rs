//! The built-in identity: who logs in with which password, and what a token entitles to.
//! Keystone-shaped, so that OpenStack tools log in unchanged; users come from a file
//! ([`UsersSource`]).
//!
//! What must stay true:
//!
//! - An answer does not tell whether a user exists, and neither does the work it costs:
//!   every login that is not throttled computes one password hash, of one cost.
//! - Nothing that opens a door is stored: of a token only its SHA-256, of a password only
//!   its argon2id hash.
//! - A token is worth what the users file says *now*. It dies with its lifetime, with the
//!   password it was got with, and for good when its user is disabled.
//! - A caller who is no administrator learns nothing of other projects, not even whether
//!   they exist.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kedge_core::ids::ProjectId;
use kedge_core::ports::Clock;
use kedge_core::time::Timestamp;
use kedge_store::{Store, TokenHash, TokenRow};
use sha2::{Digest, Sha256};
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::context::{Context, Right};
use crate::error::Error;
use crate::settings::Limits;

mod password;
mod throttle;
mod users;
mod watch;

#[cfg(test)]
mod tests;

pub use password::{hash_password, hash_password_cheaply};
pub use users::{Domain, ProjectInfo, RoleInfo, UsersError};
pub use watch::UsersSource;

use password::{Hasher, Verdict};
use throttle::{Throttle, ThrottleKey};
use users::{User, Users};
use watch::Watched;

/// Random bytes of a token: as many as its SHA-256 keeps apart.
const TOKEN_BYTES: usize = 32;

/// Characters of a token's text; anything else is no token and needs no look-up.
const TOKEN_CHARS: usize = 43;

/// A wish to be given a token.
pub struct Login {
    /// Who.
    pub user: UserRef,
    /// What only they know.
    pub password: Zeroizing<String>,
    /// The project to work in; without one the token only lists projects.
    pub scope: Option<ProjectRef>,
}

// A text someone typed as a user name may be their password.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// A user as a caller names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserRef {
    /// By id, unique everywhere.
    Id(String),
    /// By name, unique in a domain.
    Name {
        /// The name.
        name: String,
        /// The domain it is unique in.
        domain: DomainRef,
    },
}

/// A domain as a caller names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainRef {
    /// By id.
    Id(String),
    /// By name.
    Name(String),
}

/// A project as a caller names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProjectRef {
    /// By id, unique everywhere.
    Id(String),
    /// By name, unique in a domain.
    Name {
        /// The name.
        name: String,
        /// The domain it is unique in.
        domain: DomainRef,
    },
}

/// A new token, told once.
pub struct Issued {
    /// The secret.
    pub token: String,
    /// What it stands for.
    pub info: TokenInfo,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("info", &self.info).finish_non_exhaustive()
    }
}

/// What a valid token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenInfo {
    /// The user's id.
    pub user_id: String,
    /// The user's name.
    pub user_name: String,
    /// The domain the name is unique in.
    pub user_domain: Domain,
    /// The project the token works in.
    pub project: Option<ProjectInfo>,
    /// The user's roles in that project.
    pub roles: Vec<RoleInfo>,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends by itself.
    pub expires_at: Timestamp,
}

/// Users, passwords and tokens.
#[derive(Debug)]
pub struct Identity {
    users: Watched,
    /// Held while tokens are being revoked, so that one task does it.
    revoking: tokio::sync::Mutex<()>,
    store: Store,
    clock: Arc<dyn Clock>,
    hasher: Hasher,
    throttle: Throttle,
    token_lifetime: Duration,
}

/// A token that was just validated, and the users file it was validated by.
struct Session {
    users: Arc<Users>,
    info: TokenInfo,
    rights: Vec<Right>,
}

impl Session {
    fn may(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }
}

impl Identity {
    /// Reads the users; fails when they cannot be read, so that nothing starts half open.
    pub fn new(
        users: UsersSource,
        store: Store,
        clock: Arc<dyn Clock>,
        limits: &Limits,
        token_lifetime: Duration,
    ) -> Result<Self, UsersError> {
        Ok(Self {
            users: Watched::open(users)?,
            revoking: tokio::sync::Mutex::new(()),
            store,
            clock,
            hasher: Hasher::new(limits.hashes_max),
            throttle: Throttle::new(limits.failed_logins_per_minute_max),
            token_lifetime,
        })
    }

    /// Gives a token for a password. Whatever is wrong with user, password or project
    /// is answered alike.
    pub async fn login(&self, login: Login) -> Result<Issued, Error> {
        let users = self.current_users().await;
        let key = throttle_key(&users, &login.user);
        self.throttle.admit(&key, self.clock.monotonic())?;
        let turn = self.hasher.turn().await?;
        // Others may have failed under this name while we waited. A turn lasts until its
        // failure is counted, so a burst gets no more guesses than there are turns.
        self.throttle.admit(&key, self.clock.monotonic())?;

        let user = users.find_user(&login.user).filter(|user| user.is_enabled());
        let hash = user.map_or(users.decoy(), User::password_hash).clone();
        let (verdict, turn) = self.hasher.verify(turn, login.password, hash).await?;
        match (user, verdict) {
            (Some(user), Verdict::Right) => {
                self.throttle.forget(&key);
                drop(turn);
                self.issue(&users, user, login.scope.as_ref()).await
            }
            (Some(_) | None, Verdict::Right | Verdict::Wrong) => {
                self.throttle.count_failure(key, self.clock.monotonic());
                info!(user.id = ?user.map(User::id), "login refused");
                Err(Error::Unauthenticated)
            }
        }
    }

    /// What a token stands for.
    pub async fn validate(&self, token: &str) -> Result<TokenInfo, Error> {
        Ok(self.session(token).await?.info)
    }

    /// What another token stands for: for its own user and for administrators. `None`
    /// when it is no valid token, which only administrators learn.
    pub async fn subject_info(
        &self,
        caller_token: &str,
        subject: &str,
    ) -> Result<Option<TokenInfo>, Error> {
        let caller = self.session(caller_token).await?;
        let subject = match self.session(subject).await {
            Ok(session) => Some(session.info),
            Err(Error::Unauthenticated) => None,
            Err(trouble) => return Err(trouble),
        };
        let is_own = subject.as_ref().is_some_and(|info| info.user_id == caller.info.user_id);
        if is_own || caller.may(Right::Admin) { Ok(subject) } else { Err(Error::Forbidden) }
    }

    /// Ends a token, for those who may ask what it stands for, and says what it stood for.
    pub async fn revoke(
        &self,
        caller_token: &str,
        subject: &str,
    ) -> Result<Option<TokenInfo>, Error> {
        let info = self.subject_info(caller_token, subject).await?;
        if info.is_some() {
            self.store.delete_token(&token_hash(subject)).await?;
        }
        Ok(info)
    }

    /// The projects a token's user can log in to; all of them for an administrator.
    pub async fn projects(&self, token: &str) -> Result<Vec<ProjectInfo>, Error> {
        let session = self.session(token).await?;
        if session.may(Right::Admin) {
            return Ok(session.users.projects().cloned().collect());
        }
        let user = session.users.user(&session.info.user_id);
        let granted =
            |project: &ProjectInfo| user.is_some_and(|user| !user.roles_on(&project.id).is_empty());
        Ok(session.users.projects().filter(|project| granted(project)).cloned().collect())
    }

    /// The project with this id.
    pub async fn find_project(&self, id: &str) -> Option<ProjectInfo> {
        self.current_users().await.project(id).cloned()
    }

    /// The only maker of a [`Context`]: the caller is who the token says, and has the
    /// right on the project of the request's path.
    pub async fn authorise(
        &self,
        token: Option<&str>,
        project: &str,
        right: Right,
        deadline: Duration,
    ) -> Result<Context, Error> {
        let session = self.session(token.ok_or(Error::Unauthenticated)?).await?;
        may_enter(&session, project)?;
        if !session.may(right) {
            return Err(Error::Forbidden);
        }
        let demand = session.users.project(project).and_then(|project| project.demand);
        let project = ProjectId::new(project);
        Ok(Context { project, rights: session.rights, demand, deadline })
    }

    async fn session(&self, token: &str) -> Result<Session, Error> {
        let users = self.current_users().await;
        if token.len() != TOKEN_CHARS {
            return Err(Error::Unauthenticated);
        }
        let hash = token_hash(token);
        let stored = self.store.find_token(&hash).await?.ok_or(Error::Unauthenticated)?;
        if stored.expires_at <= self.clock.now() {
            return Err(Error::Unauthenticated);
        }
        let Some(user) = users.user_of_holder(&stored.user_id) else {
            // For good: the token must not come back to life with its user.
            self.store.delete_token(&hash).await?;
            return Err(Error::Unauthenticated);
        };
        let (project, roles) = scope_of(&users, user, stored.project_id.as_ref())?;
        let rights = users.rights(&roles);
        let info = token_info(user, project, roles, &stored);
        Ok(Session { users, info, rights })
    }

    async fn issue(
        &self,
        users: &Users,
        user: &User,
        scope: Option<&ProjectRef>,
    ) -> Result<Issued, Error> {
        let scope = match scope {
            Some(named) => {
                Some(users.find_project(named).ok_or(Error::Unauthenticated)?.id.clone())
            }
            None => None,
        };
        let (project, roles) = scope_of(users, user, scope.as_ref())?;
        let secret = new_secret()?;
        let now = self.clock.now();
        let token = TokenRow {
            hash: token_hash(&secret),
            user_id: user.holder().to_owned(),
            project_id: scope,
            issued_at: now,
            expires_at: now.plus(self.token_lifetime),
        };
        self.store.purge_tokens(now).await?;
        self.store.create_token(&token).await?;
        self.still_welcome(&token).await?;
        info!(user.id = ?user.id(), "issued a token to user {:?}", user.id());
        Ok(Issued { token: secret, info: token_info(user, project, roles, &token) })
    }

    /// A user disabled between the look at the file and the token's birth: the tokens
    /// revoked then did not include this one.
    async fn still_welcome(&self, token: &TokenRow) -> Result<(), Error> {
        if self.current_users().await.user_of_holder(&token.user_id).is_none() {
            self.store.delete_token(&token.hash).await?;
            return Err(Error::Unauthenticated);
        }
        Ok(())
    }

    /// The users as the file has them now. Those it no longer lets in are refused from
    /// this moment; their tokens are deleted so that they stay refused.
    async fn current_users(&self) -> Arc<Users> {
        let users = self.users.current();
        if self.users.first_departed().is_some() {
            self.revoke_departed().await;
        }
        users
    }

    async fn revoke_departed(&self) {
        let Ok(_alone) = self.revoking.try_lock() else { return };
        while let Some(holder) = self.users.first_departed() {
            match self.store.delete_tokens_of_user(&holder).await {
                Ok(_) => self.users.forget_first_departed(),
                Err(trouble) => {
                    warn!("tokens of a departed user are refused but not deleted yet: {trouble}");
                    return;
                }
            }
        }
    }
}

/// Whether the token reaches a project at all. To anyone but an administrator every
/// other project looks the same, existing or not.
fn may_enter(session: &Session, project: &str) -> Result<(), Error> {
    let is_own = session.info.project.as_ref().is_some_and(|own| own.id.as_str() == project);
    if is_own {
        Ok(())
    } else if !session.may(Right::Admin) {
        Err(Error::Forbidden)
    } else if session.users.project(project).is_none() {
        Err(Error::ProjectNotFound)
    } else {
        Ok(())
    }
}

/// The project of a token with the user's roles there; a project without a role is none.
fn scope_of(
    users: &Users,
    user: &User,
    scope: Option<&ProjectId>,
) -> Result<(Option<ProjectInfo>, Vec<RoleInfo>), Error> {
    let Some(id) = scope else { return Ok((None, Vec::new())) };
    let roles = user.roles_on(id);
    match users.project(id.as_str()) {
        Some(project) if !roles.is_empty() => Ok((Some(project.clone()), roles)),
        Some(_) | None => Err(Error::Unauthenticated),
    }
}

fn token_info(
    user: &User,
    project: Option<ProjectInfo>,
    roles: Vec<RoleInfo>,
    token: &TokenRow,
) -> TokenInfo {
    TokenInfo {
        user_id: user.id().to_owned(),
        user_name: user.name().to_owned(),
        user_domain: user.domain().clone(),
        project,
        roles,
        issued_at: token.issued_at,
        expires_at: token.expires_at,
    }
}

fn token_hash(token: &str) -> TokenHash {
    TokenHash(Sha256::digest(token.as_bytes()).into())
}

fn new_secret() -> Result<String, Error> {
    let mut bytes = Zeroizing::new([0_u8; TOKEN_BYTES]);
    getrandom::fill(bytes.as_mut())
        .map_err(|trouble| Error::Internal(format!("no random bytes for a token: {trouble}")))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// What failures are counted under: the user as named, whether or not there is one. A
/// domain counts the same by id and by name; a user's id and name count apart, because
/// counting them together would tell that both are one existing user.
fn throttle_key(users: &Users, user: &UserRef) -> ThrottleKey {
    match user {
        UserRef::Id(id) => ThrottleKey::of(&["id", id]),
        UserRef::Name { name, domain } => match users.find_domain(domain) {
            Some(domain) => ThrottleKey::of(&["name", &domain.id, name]),
            None => ThrottleKey::of(&["name of no domain", name]),
        },
    }
}
