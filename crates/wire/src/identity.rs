//! Keystone's v3 bodies, as far as clients of a backup service read and send them.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::checkpoint_item::Link;

/// Body of a login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthBody {
    /// Who, and for which project.
    pub auth: Auth,
}

/// Who, and for which project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Auth {
    /// Who.
    pub identity: AuthIdentity,
    /// For which project; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<AuthScope>,
}

/// Who.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthIdentity {
    /// `["password"]`.
    #[schema(min_items = 1)]
    pub methods: Vec<String>,
    /// By password.
    pub password: AuthPassword,
}

/// By password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthPassword {
    /// The user.
    pub user: AuthUser,
}

/// A user by id, or by name and domain.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthUser {
    /// By id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The domain of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<AuthDomain>,
    /// The password.
    #[schema(format = Password, write_only)]
    pub password: String,
}

/// Leaves the password out, so that no log can have it.
impl fmt::Debug for AuthUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthUser")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

/// A domain by id or by name; the id wins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthDomain {
    /// By id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What the token is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthScope {
    /// A project.
    pub project: AuthProject,
}

/// A project by id, or by name and domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuthProject {
    /// By id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// By name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The domain of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<AuthDomain>,
}

/// Answer to a login; the token itself is in the header `X-Subject-Token`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenBody {
    /// What the token stands for.
    pub token: Token,
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// `["password"]`.
    pub methods: Vec<String>,
    /// When it ends, with a zone.
    pub expires_at: String,
    /// When it began, with a zone.
    pub issued_at: String,
    /// Whose it is.
    pub user: TokenUser,
    /// What for; absent for a token of no project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub project: Option<TokenProject>,
    /// What the user may do there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub roles: Option<Vec<Role>>,
    /// Where the services are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub catalog: Option<Vec<CatalogEntry>>,
}

/// A user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenUser {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: Domain,
    /// Always null.
    pub password_expires_at: Option<String>,
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Domain {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenProject {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain: Domain,
}

/// A role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Role {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
}

/// A service in the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogEntry {
    /// Its id.
    pub id: String,
    /// `karbor` or `keystone`.
    pub name: String,
    /// `data-protect` or `identity`: what every client looks for.
    #[serde(rename = "type")]
    pub service_type: String,
    /// Where it is.
    pub endpoints: Vec<Endpoint>,
}

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    /// Its id.
    pub id: String,
    /// `public`.
    pub interface: String,
    /// The region, which the Go SDKs compare.
    pub region: String,
    /// The region, which everyone else compares.
    pub region_id: String,
    /// The URL.
    pub url: String,
}

/// The catalogue alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogBody {
    /// The services.
    pub catalog: Vec<CatalogEntry>,
    /// Links of the list.
    pub links: ListLinks,
}

/// Links of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ListLinks {
    /// The list itself.
    #[serde(rename = "self")]
    pub itself: String,
    /// Always null: lists are whole.
    pub previous: Option<String>,
    /// Always null: lists are whole.
    pub next: Option<String>,
}

/// Projects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectList {
    /// The projects.
    pub projects: Vec<Project>,
    /// Links of the list.
    pub links: ListLinks,
}

/// A project in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Project {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its domain.
    pub domain_id: String,
    /// Always true.
    pub enabled: bool,
    /// Always false.
    pub is_domain: bool,
    /// Always the domain.
    pub parent_id: String,
    /// Links of the project.
    pub links: SelfLink,
}

/// A link to the object itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SelfLink {
    /// An absolute URL.
    #[serde(rename = "self")]
    pub itself: String,
}

/// The version document of the identity service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IdentityVersionBody {
    /// One.
    pub version: IdentityVersion,
}

/// The version of the identity service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IdentityVersion {
    /// `v3.14`.
    pub id: String,
    /// `stable`.
    pub status: String,
    /// When that version came out.
    pub updated: String,
    /// Where it is.
    pub links: Vec<Link>,
    /// What it speaks.
    #[serde(rename = "media-types")]
    pub media_types: Vec<MediaType>,
}

/// What a version speaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MediaType {
    /// `application/json`.
    pub base: String,
    /// The vendor's name of it.
    #[serde(rename = "type")]
    pub media_type: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_form_of_a_user_has_no_password() {
        let user = AuthUser {
            id: None,
            name: Some("alice".to_owned()),
            domain: None,
            password: "hunter2".to_owned(),
        };
        let shown = format!("{user:?}");
        assert!(shown.contains("alice") && !shown.contains("hunter2"), "{shown}");
    }
}
