//! The users file: domains, projects, users and their roles, in TOML.
//!
//! ```toml
//! # Rights of each role: read, write, admin. What is shown is what holds without it.
//! [roles]
//! reader = ["read"]
//! member = ["read", "write"]
//! admin = ["read", "write", "admin"]
//!
//! [[domain]] # without any there is this one
//! id = "default"
//! name = "Default"
//!
//! [[project]]
//! id = "3c52b3ae1ca24ee09c3a9e0b8c8f0b0e"
//! name = "demo"
//! domain = "default" # may be left out
//!
//! [[user]]
//! id = "ann" # may be left out
//! name = "ann"
//! domain = "default" # may be left out
//! password_hash = "$argon2id$v=19$m=19456,t=2,p=1$…"
//! enabled = true # may be left out
//!
//! [[user.grant]]
//! project = "3c52b3ae1ca24ee09c3a9e0b8c8f0b0e"
//! role = "member"
//! ```
//!
//! Invariant: a [`Users`] that exists is consistent. Every reference in it resolves,
//! nothing is there twice, and all hashes cost the same to verify, so that the time of a
//! failed login tells nothing.

use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::path::PathBuf;
use std::time::Duration;

use kedge_core::evidence::{Demand, Grade};
use kedge_core::ids::ProjectId;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use toml::Spanned;

use super::password::{HashCost, StoredHash};
use super::{DomainRef, ProjectRef, UserRef};
use crate::context::Right;

const DOMAIN_ID: &str = "default";
const DOMAIN_NAME: &str = "Default";

/// Longest id, as in Keystone.
const ID_CHARS_MAX: usize = 64;

/// Longest name, as in Keystone.
const NAME_CHARS_MAX: usize = 255;

/// A name space of users and projects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Unique everywhere.
    pub id: String,
    /// Unique everywhere.
    pub name: String,
}

/// A project as the identity knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProjectInfo {
    /// Unique everywhere.
    pub id: ProjectId,
    /// Unique in the domain.
    pub name: String,
    /// The domain.
    pub domain: Domain,
    /// What must be known of its backups before they are restored.
    pub demand: Option<Demand>,
}

/// A role a user has in a project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleInfo {
    /// Made from the name.
    pub id: String,
    /// As in the users file.
    pub name: String,
}

/// Why a users file cannot be used. Never quotes a value of the file.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It could not be read.
    #[error("users file {path:?}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is a directory, a pipe, a device.
    #[error("users file {path:?}: not a regular file")]
    NotAFile {
        /// Which.
        path: PathBuf,
    },
    /// Others than its owner may use it.
    #[error("users file {path:?}: mode {mode:04o} lets others read the password hashes; set 0600")]
    TooOpen {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is larger than any sensible one.
    #[error("users file {path:?}: larger than {bytes_max} bytes")]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// The limit.
        bytes_max: u64,
    },
    /// Its text is wrong.
    #[error("users file, line {line}: {text}")]
    Invalid {
        /// Where, from 1.
        line: usize,
        /// The field, and what is wrong with it.
        text: String,
    },
}

/// Everyone who may log in, and what they may do.
#[derive(Debug)]
pub(super) struct Users {
    domains: Vec<Domain>,
    projects: BTreeMap<String, ProjectInfo>,
    users: BTreeMap<String, User>,
    roles: BTreeMap<String, Vec<Right>>,
    decoy: StoredHash,
}

/// One user.
#[derive(Debug)]
pub(super) struct User {
    id: String,
    name: String,
    domain: Domain,
    hash: StoredHash,
    holder: String,
    enabled: bool,
    grants: Vec<Grant>,
}

#[derive(Debug)]
struct Grant {
    project: ProjectId,
    role: String,
}

impl User {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn domain(&self) -> &Domain {
        &self.domain
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(super) fn password_hash(&self) -> &StoredHash {
        &self.hash
    }

    /// Who holds a token in the catalogue: this user *with this password*. A changed
    /// password makes another holder, also when the change was made while we were down.
    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    pub(super) fn roles_on(&self, project: &ProjectId) -> Vec<RoleInfo> {
        let granted = self.grants.iter().filter(|grant| grant.project == *project);
        granted
            .map(|grant| RoleInfo { id: made_id(&["role", &grant.role]), name: grant.role.clone() })
            .collect()
    }
}

impl Users {
    /// Reads the text of a users file.
    pub(super) fn parse(text: &str) -> Result<Self, UsersError> {
        let raw: RawFile = toml::from_str(text).map_err(|fault| in_toml(text, &fault))?;
        resolve(raw).map_err(|complaint| UsersError::Invalid {
            line: line_of(text, complaint.at),
            text: complaint.text,
        })
    }

    pub(super) fn find_domain(&self, named: &DomainRef) -> Option<&Domain> {
        self.domains.iter().find(|domain| match named {
            DomainRef::Id(id) => domain.id == *id,
            DomainRef::Name(name) => domain.name == *name,
        })
    }

    pub(super) fn find_user(&self, named: &UserRef) -> Option<&User> {
        match named {
            UserRef::Id(id) => self.user(id),
            UserRef::Name { name, domain } => {
                let domain = self.find_domain(domain)?;
                self.users.values().find(|user| user.name == *name && user.domain == *domain)
            }
        }
    }

    pub(super) fn find_project(&self, named: &ProjectRef) -> Option<&ProjectInfo> {
        match named {
            ProjectRef::Id(id) => self.project(id),
            ProjectRef::Name { name, domain } => {
                let domain = self.find_domain(domain)?;
                self.projects().find(|project| project.name == *name && project.domain == *domain)
            }
        }
    }

    pub(super) fn user(&self, id: &str) -> Option<&User> {
        self.users.get(id)
    }

    /// The user who holds a token, if they may still log in as they did.
    pub(super) fn user_of_holder(&self, holder: &str) -> Option<&User> {
        let (id, _) = holder.rsplit_once(HOLDER_SEPARATOR)?;
        self.user(id).filter(|user| user.enabled && user.holder == holder)
    }

    pub(super) fn project(&self, id: &str) -> Option<&ProjectInfo> {
        self.projects.get(id)
    }

    pub(super) fn projects(&self) -> impl Iterator<Item = &ProjectInfo> {
        self.projects.values()
    }

    /// What a set of roles entitles to, each right once.
    pub(super) fn rights(&self, roles: &[RoleInfo]) -> Vec<Right> {
        let mut rights = Vec::new();
        for right in roles.iter().filter_map(|role| self.roles.get(&role.name)).flatten() {
            if !rights.contains(right) {
                rights.push(*right);
            }
        }
        rights
    }

    /// A hash to verify against when there is no user, of the same cost as a user's.
    pub(super) fn decoy(&self) -> &StoredHash {
        &self.decoy
    }

    pub(super) fn disabled_holders(&self) -> impl Iterator<Item = String> {
        self.users.values().filter(|user| !user.enabled).map(|user| user.holder.clone())
    }

    /// Those who could hold tokens here and can no longer in `next`.
    pub(super) fn departed_holders(&self, next: &Self) -> impl Iterator<Item = String> {
        let could = self.users.values().filter(|user| user.enabled);
        could
            .filter(|user| next.user_of_holder(&user.holder).is_none())
            .map(|user| user.holder.clone())
    }
}

/// Between a user's id, which cannot contain it, and the password's fingerprint.
const HOLDER_SEPARATOR: char = '.';

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    roles: Option<BTreeMap<String, Spanned<Vec<RawRight>>>>,
    #[serde(default)]
    domain: Vec<RawDomain>,
    #[serde(default)]
    project: Vec<RawProject>,
    #[serde(default)]
    user: Vec<RawUser>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawRight {
    Read,
    Write,
    Admin,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDomain {
    id: Spanned<String>,
    name: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProject {
    id: Spanned<String>,
    name: Spanned<String>,
    domain: Option<Spanned<String>>,
    evidence_grade: Option<Spanned<String>>,
    evidence_days: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUser {
    id: Option<Spanned<String>>,
    name: Spanned<String>,
    domain: Option<Spanned<String>>,
    password_hash: Spanned<String>,
    enabled: Option<bool>,
    #[serde(default)]
    grant: Vec<RawGrant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGrant {
    project: Spanned<String>,
    role: Spanned<String>,
}

/// What is wrong with the file's meaning, and where.
struct Complaint {
    at: usize,
    text: String,
}

impl Complaint {
    fn about(value: &Spanned<String>, text: impl Into<String>) -> Self {
        Self { at: value.span().start, text: text.into() }
    }
}

fn resolve(raw: RawFile) -> Result<Users, Complaint> {
    let roles = raw.roles.map_or_else(|| Ok(default_roles()), resolve_roles)?;
    let domains = resolve_domains(raw.domain)?;
    let projects = resolve_projects(raw.project, &domains)?;
    let mut names = Names { domains: &domains, projects: &projects, roles: &roles, cost: None };
    let users = resolve_users(raw.user, &mut names)?;
    // An empty file is most likely one that is being written.
    let Some(any) = users.values().next() else {
        return Err(Complaint { at: 0, text: "user: expected at least one [[user]]".to_owned() });
    };
    let decoy = any.hash.decoy().map_err(|trouble| Complaint {
        at: 0,
        text: format!("no hash could be made for unknown users: {trouble}"),
    })?;
    Ok(Users { domains, projects, users, roles, decoy })
}

fn default_roles() -> BTreeMap<String, Vec<Right>> {
    use Right::{Admin, Read, Write};
    let roles = [
        ("reader", vec![Read]),
        ("member", vec![Read, Write]),
        ("admin", vec![Read, Write, Admin]),
    ];
    roles.into_iter().map(|(name, rights)| (name.to_owned(), rights)).collect()
}

fn resolve_roles(
    raw: BTreeMap<String, Spanned<Vec<RawRight>>>,
) -> Result<BTreeMap<String, Vec<Right>>, Complaint> {
    let resolve_one = |(name, rights): (String, Spanned<Vec<RawRight>>)| {
        if !is_id(&name) {
            let text = format!("roles: expected a name of {ID_SHAPE}");
            return Err(Complaint { at: rights.span().start, text });
        }
        Ok((name, rights.into_inner().into_iter().map(Right::from).collect()))
    };
    raw.into_iter().map(resolve_one).collect()
}

impl From<RawRight> for Right {
    fn from(raw: RawRight) -> Self {
        match raw {
            RawRight::Read => Self::Read,
            RawRight::Write => Self::Write,
            RawRight::Admin => Self::Admin,
        }
    }
}

fn resolve_domains(raw: Vec<RawDomain>) -> Result<Vec<Domain>, Complaint> {
    if raw.is_empty() {
        return Ok(vec![Domain { id: DOMAIN_ID.to_owned(), name: DOMAIN_NAME.to_owned() }]);
    }
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let resolve_one = |domain: RawDomain| {
        let id = id_of("domain.id", &domain.id)?;
        let name = name_of("domain.name", &domain.name)?;
        once("domain.id", &domain.id, &mut ids, id.clone())?;
        once("domain.name", &domain.name, &mut names, name.clone())?;
        Ok(Domain { id, name })
    };
    raw.into_iter().map(resolve_one).collect()
}

fn resolve_projects(
    raw: Vec<RawProject>,
    domains: &[Domain],
) -> Result<BTreeMap<String, ProjectInfo>, Complaint> {
    let (mut ids, mut names) = (HashSet::new(), HashSet::new());
    let resolve_one = |project: RawProject| {
        let id = project_id_of(&project.id)?;
        let name = name_of("project.name", &project.name)?;
        let domain = domain_of("project", project.domain.as_ref(), &project.name, domains)?;
        once("project.id", &project.id, &mut ids, id.clone())?;
        once("project.name", &project.name, &mut names, (domain.id.clone(), name.clone()))?;
        let demand =
            demand_of(project.evidence_grade.as_ref(), &project.name, project.evidence_days)?;
        Ok((id.clone(), ProjectInfo { id: ProjectId::new(id), name, domain, demand }))
    };
    raw.into_iter().map(resolve_one).collect()
}

fn demand_of(
    grade: Option<&Spanned<String>>,
    name: &Spanned<String>,
    days: Option<u32>,
) -> Result<Option<Demand>, Complaint> {
    let Some(grade) = grade else {
        return match days {
            None => Ok(None),
            Some(_) => Err(Complaint::about(
                name,
                "project.evidence_days: expected project.evidence_grade beside it",
            )),
        };
    };
    let known = Grade::from_letter(grade.get_ref());
    let known = known.ok_or_else(|| {
        Complaint::about(grade, "project.evidence_grade: expected \"A\", \"B\", \"C\" or \"D\"")
    })?;
    let age_max = match days {
        None => None,
        Some(days) if (1..=DAYS_MAX).contains(&days) => {
            Some(Duration::from_secs(u64::from(days) * DAY_SECS))
        }
        Some(_) => {
            let text = format!("project.evidence_days: expected 1 to {DAYS_MAX}");
            return Err(Complaint::about(grade, text));
        }
    };
    Ok(Some(Demand { grade: known, age_max }))
}

/// What a user may refer to.
struct Names<'a> {
    domains: &'a [Domain],
    projects: &'a BTreeMap<String, ProjectInfo>,
    roles: &'a BTreeMap<String, Vec<Right>>,
    /// Of the first hash, which the others must match.
    cost: Option<HashCost>,
}

fn resolve_users(
    raw: Vec<RawUser>,
    names: &mut Names<'_>,
) -> Result<BTreeMap<String, User>, Complaint> {
    let (mut ids, mut user_names) = (HashSet::new(), HashSet::new());
    let resolve_one = |raw: RawUser| {
        let user = resolve_user(&raw, names)?;
        once("user.id", raw.id.as_ref().unwrap_or(&raw.name), &mut ids, user.id.clone())?;
        let name = (user.domain.id.clone(), user.name.clone());
        once("user.name", &raw.name, &mut user_names, name)?;
        Ok((user.id.clone(), user))
    };
    raw.into_iter().map(resolve_one).collect()
}

fn resolve_user(raw: &RawUser, names: &mut Names<'_>) -> Result<User, Complaint> {
    let name = name_of("user.name", &raw.name)?;
    let domain = domain_of("user", raw.domain.as_ref(), &raw.name, names.domains)?;
    let id = match &raw.id {
        Some(id) => id_of("user.id", id)?,
        None => made_id(&["user", &domain.id, &name]),
    };
    let hash = hash_of(&raw.password_hash, &mut names.cost)?;
    let holder = format!("{id}{HOLDER_SEPARATOR}{}", hash.fingerprint());
    let grants = resolve_grants(&raw.grant, names)?;
    Ok(User { id, name, domain, hash, holder, enabled: raw.enabled.unwrap_or(true), grants })
}

fn resolve_grants(raw: &[RawGrant], names: &Names<'_>) -> Result<Vec<Grant>, Complaint> {
    let mut grants = HashSet::new();
    let resolve_one = |grant: &RawGrant| {
        let (project, role) = (grant.project.get_ref(), grant.role.get_ref());
        if !names.projects.contains_key(project) {
            return Err(Complaint::about(
                &grant.project,
                "user.grant.project: no such [[project]]",
            ));
        }
        if !names.roles.contains_key(role) {
            return Err(Complaint::about(&grant.role, "user.grant.role: no such role"));
        }
        once("user.grant", &grant.project, &mut grants, (project.clone(), role.clone()))?;
        Ok(Grant { project: ProjectId::new(project), role: role.clone() })
    };
    raw.iter().map(resolve_one).collect()
}

fn hash_of(
    value: &Spanned<String>,
    common: &mut Option<HashCost>,
) -> Result<StoredHash, Complaint> {
    let (hash, cost) = StoredHash::parse(value.get_ref())
        .map_err(|text| Complaint::about(value, format!("user.password_hash: {text}")))?;
    if *common.get_or_insert(cost) != cost {
        let text = "user.password_hash: m, t or p differ from the first user's; all must agree, \
                    or the time of a failed login tells users apart";
        return Err(Complaint::about(value, text));
    }
    Ok(hash)
}

fn domain_of(
    of: &str,
    id: Option<&Spanned<String>>,
    name: &Spanned<String>,
    domains: &[Domain],
) -> Result<Domain, Complaint> {
    let wanted = id.map_or(DOMAIN_ID, |id| id.get_ref());
    let domain = domains.iter().find(|domain| domain.id == wanted);
    domain.cloned().ok_or_else(|| {
        Complaint::about(id.unwrap_or(name), format!("{of}.domain: no such [[domain]]"))
    })
}

/// Ten years: who writes more meant something else.
const DAYS_MAX: u32 = 3650;
const DAY_SECS: u64 = 86_400;

const ID_SHAPE: &str = "1 to 64 letters, digits, - and _";

fn is_id(text: &str) -> bool {
    (1..=ID_CHARS_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn id_of(field: &str, value: &Spanned<String>) -> Result<String, Complaint> {
    if is_id(value.get_ref()) {
        Ok(value.get_ref().clone())
    } else {
        Err(Complaint::about(value, format!("{field}: expected {ID_SHAPE}")))
    }
}

fn project_id_of(value: &Spanned<String>) -> Result<String, Complaint> {
    let id = value.get_ref();
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if id.len() == 32 && id.bytes().all(is_hex) {
        Ok(id.clone())
    } else {
        Err(Complaint::about(value, "project.id: expected 32 hexadecimal digits in lower case"))
    }
}

fn name_of(field: &str, value: &Spanned<String>) -> Result<String, Complaint> {
    let name = value.get_ref();
    let chars = name.chars().count();
    if (1..=NAME_CHARS_MAX).contains(&chars) && !name.chars().any(char::is_control) {
        Ok(name.clone())
    } else {
        let text = format!("{field}: expected 1 to {NAME_CHARS_MAX} printable characters");
        Err(Complaint::about(value, text))
    }
}

fn once<T: Eq + Hash>(
    field: &str,
    at: &Spanned<String>,
    seen: &mut HashSet<T>,
    value: T,
) -> Result<(), Complaint> {
    if seen.insert(value) {
        Ok(())
    } else {
        Err(Complaint::about(at, format!("{field}: is there twice")))
    }
}

/// A stable id for what has none, in the shape Keystone gives ids.
fn made_id(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..16])
}

fn in_toml(text: &str, fault: &toml::de::Error) -> UsersError {
    let at = fault.span().map_or(0, |span| span.start);
    let line = line_of(text, at);
    let message = without_value(fault.message());
    let text = match field_in_line(text, line) {
        Some(field) => format!("{field}: {message}"),
        None => message,
    };
    UsersError::Invalid { line, text }
}

/// serde quotes the value it did not expect, which may be a password in the wrong place.
fn without_value(message: &str) -> String {
    let quotes = ["invalid type: ", "invalid value: ", "invalid length: "];
    match message.rsplit_once(", expected ") {
        Some((start, expected)) if quotes.iter().any(|quote| start.starts_with(quote)) => {
            format!("expected {expected}")
        }
        Some(_) | None => message.to_owned(),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

fn field_in_line(text: &str, line: usize) -> Option<&str> {
    let (field, _) = text.lines().nth(line - 1)?.split_once('=')?;
    Some(field.trim()).filter(|field| is_id(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::password::{hash_password, hash_password_cheaply};

    const PROJECT: &str = "3c52b3ae1ca24ee09c3a9e0b8c8f0b0e";

    /// A file every rule allows, one field a line; rows break one line of it.
    fn file() -> String {
        let hash = hash_password_cheaply("secret").unwrap();
        format!(
            r#"[roles]
reader = ["read"]
[[domain]]
id = "default"
name = "Default"
[[project]]
id = "{PROJECT}"
name = "demo"
[[user]]
name = "ann"
password_hash = "{hash}"
enabled = true
[[user.grant]]
project = "{PROJECT}"
role = "reader"
"#
        )
    }

    fn hash_line(file: &str) -> &str {
        file.lines().find(|line| line.starts_with("password_hash")).unwrap()
    }

    fn complaint(text: &str) -> (usize, String) {
        match Users::parse(text) {
            Err(UsersError::Invalid { line, text }) => (line, text),
            other => panic!("expected a complaint, got {other:?}"),
        }
    }

    #[test]
    fn each_wrong_field_is_refused_with_its_name_and_line() {
        let again = "[[project]]\nid = \"00000000000000000000000000000000\"\nname = \"demo\"\n";
        let second_user = format!(
            "[[user]]\nname = \"bob\"\npassword_hash = \"{}\"\n",
            hash_password("secret").unwrap()
        );
        let rows: [(&str, &str, String, usize, &str); 15] = [
            ("unknown field", "enabled =", "enabeld =".into(), 12, "enabeld"),
            ("wrong type", "enabled = true", "enabled = \"hunter2\"".into(), 12, "enabled"),
            ("unknown right", "[\"read\"]", "[\"sing\"]".into(), 2, "reader"),
            ("no name", "name = \"ann\"\n", String::new(), 9, "name"),
            ("empty name", "\"ann\"", "\"\"".into(), 10, "user.name"),
            ("control character", "\"ann\"", r#""a\u001b""#.into(), 10, "user.name"),
            ("odd domain id", "\"default\"", "\"d.e\"".into(), 4, "domain.id"),
            ("odd role name", "reader =", "\"a b\" =".into(), 2, "roles"),
            (
                "project id",
                "[[project]]\nid = \"3c",
                "[[project]]\nid = \"3C".into(),
                7,
                "project.id",
            ),
            ("no such domain", "[[user]]", "[[user]]\ndomain = \"x\"".into(), 10, "user.domain"),
            (
                "no such project",
                "project = \"3c",
                "project = \"4c".into(),
                14,
                "user.grant.project",
            ),
            ("no such role", "role = \"reader\"", "role = \"king\"".into(), 15, "user.grant.role"),
            ("same project name", "[[user]]", format!("{again}[[user]]"), 11, "project.name"),
            ("not a hash", "$argon2id", "hunter2".into(), 11, "user.password_hash"),
            (
                "another cost",
                "[[user]]\nname = \"ann\"",
                format!("{second_user}[[user]]\nname = \"ann\""),
                14,
                "user.password_hash",
            ),
        ];
        for (what, from, to, line, field) in rows {
            let file = file();
            let text = file.replacen(from, &to, 1);
            assert_ne!(text, file, "{what} changes nothing");
            let (at, said) = complaint(&text);
            assert_eq!(at, line, "{what}: {said}");
            assert!(said.contains(field), "{what}: {said}");
            assert!(!said.contains("hunter2"), "{what}: {said}");
        }
    }

    #[test]
    fn what_is_there_twice_is_refused() {
        let user = |id: &str, name: &str| {
            format!(
                "[[user]]\nid = \"{id}\"\nname = \"{name}\"\npassword_hash = \"{}\"\n",
                hash_password_cheaply("secret").unwrap()
            )
        };
        let grant = format!("[[user.grant]]\nproject = \"{PROJECT}\"\nrole = \"reader\"\n");
        let project = format!("[[project]]\nid = \"{PROJECT}\"\nname = \"other\"\n");
        let rows = [
            (user("x", "ann"), "user.name"),
            (format!("{}{}", user("x", "bob"), user("x", "eve")), "user.id"),
            (grant, "user.grant"),
            (project, "project.id"),
            ("[[domain]]\nid = \"default\"\nname = \"x\"\n".to_owned(), "domain.id"),
            ("[[domain]]\nid = \"x\"\nname = \"Default\"\n".to_owned(), "domain.name"),
        ];
        for (more, field) in rows {
            let (_, said) = complaint(&(file() + &more));
            assert_eq!(said, format!("{field}: is there twice"));
        }
    }

    #[test]
    fn a_file_without_users_is_refused() {
        assert!(complaint("").1.starts_with("user:"));
    }

    #[test]
    fn a_number_where_a_hash_belongs_is_not_quoted() {
        let file = file();
        let (line, said) = complaint(&file.replace(hash_line(&file), "password_hash = 90210"));
        assert_eq!((line, said.as_str()), (11, "password_hash: expected a string"));
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let hash = hash_password_cheaply("secret").unwrap();
        let text = format!(
            "[[project]]\nid = \"{PROJECT}\"\nname = \"demo\"\n[[user]]\nname = \"ann\"\n\
             password_hash = \"{hash}\"\n[[user.grant]]\nproject = \"{PROJECT}\"\nrole = \"admin\"\n"
        );
        let users = Users::parse(&text).unwrap();
        let by_name = |domain| UserRef::Name { name: "ann".into(), domain };
        let user = users.find_user(&by_name(DomainRef::Name("Default".into()))).unwrap();
        assert!(user.is_enabled());
        assert_eq!(user.id().len(), 32);
        assert_eq!(users.user(user.id()).unwrap().name(), "ann");
        assert_eq!(
            users.rights(&user.roles_on(&ProjectId::new(PROJECT))),
            [Right::Read, Right::Write, Right::Admin]
        );
        assert!(users.find_user(&by_name(DomainRef::Id("other".into()))).is_none());
    }

    #[test]
    fn nothing_printed_of_users_holds_a_hash() {
        let file = file();
        let printed = format!("{:?}", Users::parse(&file).unwrap());
        let mut parts = hash_line(&file).trim_end_matches('"').rsplit('$').take(2);
        assert!(parts.all(|salt_or_output| !printed.contains(salt_or_output)));
    }
}
