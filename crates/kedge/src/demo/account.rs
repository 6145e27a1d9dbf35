//! The demo's project, user and configuration. Everything secret is random, and told once.

use std::path::PathBuf;

use serde_json::json;
use uuid::Uuid;

use super::place::Place;
use crate::failure::{Failure, OrFail as _};

const USER: &str = "demo";

/// Who the demo logs in as.
pub(crate) struct Account {
    pub(crate) project: String,
    password: String,
}

impl Account {
    pub(crate) fn random() -> Result<Self, Failure> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).or_fail("a random password")?;
        let project = Uuid::new_v4().simple().to_string();
        Ok(Self { project, password: hex::encode(bytes) })
    }

    pub(crate) fn user(&self) -> &'static str {
        USER
    }

    pub(crate) fn password(&self) -> &str {
        &self.password
    }

    /// The one time the password is shown.
    pub(crate) fn introduction(&self) -> String {
        format!("user {USER}, password {}, project {}", self.password, self.project)
    }

    /// Writes users, a login for curl, and the configuration; returns the last one's path.
    pub(crate) fn write_files(&self, place: &Place) -> Result<PathBuf, Failure> {
        let hash = kedge_service::identity::hash_password(&self.password);
        let users = self.users(&hash.or_fail("hashing the password")?);
        place.write("users.toml", &users)?;
        place.write("login.json", &self.login().to_string())?;
        let config = json!({
            "state_dir": place.path("state"),
            "service_key": place.path("service.key"),
            "repositories_dir": place.path("repositories"),
            "users": place.path("users.toml"),
            "cloud": {"kind": "local", "servers_dir": place.path("servers")},
        });
        let text = toml::to_string(&config).or_fail("kedge.toml")?;
        place.write("kedge.toml", &text)
    }

    fn users(&self, hash: &str) -> String {
        let project = &self.project;
        format!(
            "[[project]]\nid = \"{project}\"\nname = \"demo\"\n\n\
             [[user]]\nname = \"{USER}\"\npassword_hash = \"{hash}\"\n\n\
             [[user.grant]]\nproject = \"{project}\"\nrole = \"member\"\n"
        )
    }

    fn login(&self) -> serde_json::Value {
        json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": USER, "domain": {"id": "default"}, "password": self.password}}},
            "scope": {"project": {"id": self.project}},
        }})
    }
}
