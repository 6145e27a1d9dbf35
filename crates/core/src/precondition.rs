//! What a plan rests on, fact by fact, so that a restore which was planned earlier can say
//! what has changed since.
//!
//! A plan that is carried out is always made anew; these are compared beside it. Something
//! that moved and would still do is refused too: whoever names a plan means that one.

use serde::{Deserialize, Serialize};

use crate::resource::{Content, Sharing};
use crate::restore::{Facts, Question, known_pairs};

/// One fact that a plan rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precondition {
    /// `checkpoint_item`, `server`, `volume_backup` or `volume`.
    pub of: String,
    /// Of which.
    pub id: String,
    /// Which property.
    pub property: String,
    /// Its value.
    pub value: String,
}

/// A fact that is another now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    /// As it was.
    pub then: Precondition,
    /// Its value now; `None` where there is nothing of that name any more.
    pub now: Option<String>,
}

/// What a plan for this question rests on. Nothing that was not seen is among it.
pub fn preconditions(question: &Question, facts: &Facts) -> Vec<Precondition> {
    let mut all = Vec::new();
    let mut note = |of: &str, id: &str, property: &str, value: String| {
        let (of, id, property) = (of.to_owned(), id.to_owned(), property.to_owned());
        all.push(Precondition { of, id, property, value });
    };
    if let Some(item) = facts.item.seen() {
        let id = item.id.as_str();
        note("checkpoint_item", id, "status", item.status.as_str().to_owned());
        if let Some(snapshot) = &item.snapshot {
            note("checkpoint_item", id, "snapshot", snapshot.snapshot.clone());
        }
    }
    if let Some(server) = facts.target.seen() {
        let id = server.id.as_str();
        note("server", id, "status", server.status.as_str().to_owned());
        note("server", id, "kind", server.kind.as_str().to_owned());
        note("server", id, "az", server.zone.clone());
        let mut volumes: Vec<_> = server.volumes.iter().map(|volume| volume.id.as_str()).collect();
        volumes.sort_unstable();
        note("server", id, "volumes", volumes.join(","));
    }
    for (backup, volume) in known_pairs(question, facts) {
        let id = volume.id.as_str();
        note("volume_backup", backup.id.as_str(), "volume_id", id.to_owned());
        note("volume", id, "size_bytes", volume.size_bytes.to_string());
        note("volume", id, "role", volume.role.as_str().to_owned());
        note("volume", id, "status", volume.status.as_str().to_owned());
        note("volume", id, "sharing", sharing(volume.sharing).to_owned());
        note("volume", id, "encryption", volume.encryption.as_str().to_owned());
        note("volume", id, "content", content(volume.content).to_owned());
    }
    all
}

/// What is another now.
pub fn moved(then: &[Precondition], now: &[Precondition]) -> Vec<Moved> {
    let value_now = |then: &Precondition| {
        let same = |now: &&Precondition| {
            (&now.of, &now.id, &now.property) == (&then.of, &then.id, &then.property)
        };
        now.iter().find(same).map(|now| now.value.clone())
    };
    then.iter()
        .map(|then| Moved { then: then.clone(), now: value_now(then) })
        .filter(|moved| moved.now.as_ref() != Some(&moved.then.value))
        .collect()
}

impl std::fmt::Display for Moved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Precondition { of, id, property, value } = &self.then;
        write!(f, "{property} of {of} ({id}) was {value}, ")?;
        match &self.now {
            Some(now) => write!(f, "is {now}"),
            None => f.write_str("is gone"),
        }
    }
}

fn sharing(sharing: Sharing) -> &'static str {
    match sharing {
        Sharing::Exclusive => "exclusive",
        Sharing::Shared => "shared",
    }
}

fn content(content: Content) -> &'static str {
    match content {
        Content::Whole => "whole",
        Content::HalfWritten => "half_written",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(property: &str, value: &str) -> Precondition {
        Precondition {
            of: "server".to_owned(),
            id: "s".to_owned(),
            property: property.to_owned(),
            value: value.to_owned(),
        }
    }

    #[test]
    fn what_is_another_or_gone_is_told_and_what_is_new_is_not() {
        let then = [one("status", "active"), one("kind", "kvm"), one("az", "a")];
        let now = [one("status", "shutoff"), one("kind", "kvm"), one("more", "x")];
        let texts: Vec<_> = moved(&then, &now).iter().map(ToString::to_string).collect();
        let status = "status of server (s) was active, is shutoff";
        assert_eq!(texts, [status, "az of server (s) was a, is gone"]);
        assert_eq!(moved(&then, &then), []);
    }
}
