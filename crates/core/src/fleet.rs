//! What could not be restored, if this or that were lost? The same planner answers, on the
//! facts as they would be then (docs/adr/0024-fleet-questions.md).
//!
//! Invariant: to suppose a loss only ever takes facts away. So no answer becomes yes by it.

use crate::fact::{Fact, Unknown};
use crate::refusal::Refusal;
use crate::restore::{self, Data, Facts, Question, RestorePlan};

/// What is supposed to be lost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Availability zones, with everything in them.
    pub zones: Vec<String>,
    /// The store that the repositories lie in.
    pub is_store_lost: bool,
    /// The key that opens the repositories.
    pub is_key_lost: bool,
}

/// Where things lie that a lost zone would take with it, as the operator told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Zones, or other places, each of which alone is enough to keep the store. None where
    /// nobody told.
    pub store: Vec<String>,
    /// The same of the key.
    pub key: Vec<String>,
}

/// A reason why a server could not be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The reason.
    pub refusal: Refusal,
    /// Whether it is one by the supposed loss alone.
    pub is_supposed: bool,
}

impl Losses {
    /// Whether a server in this zone would be lost.
    pub fn takes_server(&self, zone: &str) -> bool {
        self.zones.iter().any(|lost| lost == zone)
    }

    /// Makes of facts what they would be. What is known to be missing, or could not be
    /// learned, stays so.
    fn suppose(&self, places: &Places, facts: &mut Facts) {
        if facts.target.seen().is_some_and(|target| self.takes_server(&target.zone)) {
            facts.target = Fact::Absent;
        }
        let key = self.lost(self.is_key_lost, Unknown::KeyUnavailable, &places.key);
        let store = self.lost(self.is_store_lost, Unknown::RepositoryUnreachable, &places.store);
        if let (Some(why), true) = (key.or(store), facts.snapshot.seen().is_some()) {
            facts.snapshot = Fact::Unknown { why };
        }
        let is_whole = facts.data.seen().is_some_and(|data| *data == Data::Whole);
        if let (Some(why), true) = (store.or(key), is_whole) {
            facts.data = Fact::Unknown { why };
        }
    }

    /// Why a thing could not be used that lies in these places, if it could not.
    fn lost(&self, is_lost: bool, why: Unknown, places: &[String]) -> Option<Unknown> {
        if is_lost {
            return Some(why);
        }
        if self.zones.is_empty() {
            return None;
        }
        if places.is_empty() {
            return Some(Unknown::PlaceNotTold);
        }
        places.iter().all(|place| self.zones.contains(place)).then_some(why)
    }
}

/// Plans one restore after a loss.
///
/// # Errors
/// Every reason against it, in the order of the rules; never none.
pub fn plan(
    question: &Question,
    facts: &Facts,
    losses: &Losses,
    places: &Places,
) -> Result<RestorePlan, Vec<Cause>> {
    let mut then = facts.clone();
    losses.suppose(places, &mut then);
    let reasons = match every_reason(question, &then) {
        Ok(plan) => return Ok(plan),
        Err(reasons) => reasons,
    };
    let now = every_reason(question, facts).err().unwrap_or_default();
    let cause = |refusal| Cause { is_supposed: !now.contains(&refusal), refusal };
    Err(reasons.into_iter().map(cause).collect())
}

fn every_reason(question: &Question, facts: &Facts) -> Result<RestorePlan, Vec<Refusal>> {
    restore::plan(question, facts).map_err(|first| {
        let violations = restore::violations(question, facts).into_iter();
        let mut reasons: Vec<Refusal> = violations.map(|(_, refusal)| refusal).collect();
        if reasons.is_empty() {
            reasons.push(first);
        }
        reasons
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tests::item_of;
    use crate::checkpoint::{Method, SnapshotRef, StoredVolume};
    use crate::code::Code;
    use crate::fit::fit;
    use crate::resource::SERVER_TYPE;
    use crate::resource::tests::server_of;
    use crate::restore::Mapping;
    use crate::time::Timestamp;

    fn seen<T>(value: T) -> Fact<T> {
        Fact::Seen { value, at: Timestamp::from_micros(0) }
    }

    /// A backup, and its server as it was then.
    fn restorable() -> (Question, Facts) {
        let (mut item, server) = (item_of(&[1 << 30]), server_of(&[1 << 30]));
        let snapshot = SnapshotRef { snapshot: "5".repeat(64), tree: "7".repeat(64) };
        item.snapshot = Some(snapshot.clone());
        item.volumes[0].stored = Some(StoredVolume {
            folder: "disk".to_owned(),
            data_bytes: 1,
            read_bytes: 1,
            stored_bytes: 1,
            duration_ms: 1,
            method: Method::Full,
            change_token: None,
        });
        let question = Question {
            item: item.id.clone(),
            server: server.id.clone(),
            resource_type: SERVER_TYPE.to_owned(),
            mapping: fit(&item, &server, &[], &Mapping::default()).mapping,
        };
        let facts = Facts {
            item: seen(item),
            target: seen(server),
            held: None,
            held_volumes: Vec::new(),
            snapshot: seen(snapshot),
            data: seen(Data::Whole),
            weighed: None,
        };
        (question, facts)
    }

    fn without_what_was_stored(mut facts: Facts) -> Facts {
        if let Fact::Seen { value: item, .. } = &mut facts.item {
            item.volumes[0].stored = None;
        }
        facts
    }

    fn codes(answer: &Result<RestorePlan, Vec<Cause>>) -> Vec<(Code, bool)> {
        let causes = answer.as_ref().err().into_iter().flatten();
        causes.map(|cause| (cause.refusal.code(), cause.is_supposed)).collect()
    }

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn zones(names: &[&str]) -> Losses {
        Losses { zones: texts(names), ..Losses::default() }
    }

    fn told(store: &[&str], key: &[&str]) -> Places {
        Places { store: texts(store), key: texts(key) }
    }

    #[test]
    fn a_loss_takes_what_lies_there_and_what_nobody_told_of_is_unknown() {
        use Code::{KeyUnavailable, PlaceNotTold, RepositoryUnreachable, ServerNotFound};
        let (question, facts) = restorable();
        let safe = || told(&["vault"], &["vault"]);
        let store = Losses { is_store_lost: true, ..Losses::default() };
        let key = Losses { is_key_lost: true, ..Losses::default() };
        for (losses, places, expected) in [
            (Losses::default(), Places::default(), vec![]),
            (store.clone(), safe(), vec![RepositoryUnreachable]),
            (key, safe(), vec![KeyUnavailable]),
            (
                Losses { is_key_lost: true, ..store },
                safe(),
                vec![KeyUnavailable, RepositoryUnreachable],
            ),
            (zones(&["far"]), safe(), vec![]),
            (zones(&["far"]), Places::default(), vec![PlaceNotTold]),
            (zones(&["far"]), told(&[], &["vault"]), vec![PlaceNotTold]),
            (zones(&["far"]), told(&["vault"], &[]), vec![PlaceNotTold]),
            (zones(&["vault"]), safe(), vec![KeyUnavailable, RepositoryUnreachable]),
            (zones(&["vault"]), told(&["vault", "far"], &["vault"]), vec![KeyUnavailable]),
            (zones(&["vault"]), told(&["vault", "far"], &["far"]), vec![]),
            (zones(&["zone"]), safe(), vec![ServerNotFound]),
            (
                zones(&["zone"]),
                told(&["zone"], &["vault"]),
                vec![ServerNotFound, RepositoryUnreachable],
            ),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|code| (code, true)).collect();
            let answer = plan(&question, &facts, &losses, &places);
            assert_eq!(codes(&answer), expected, "{losses:?} {places:?}");
            assert_eq!(answer.is_ok(), expected.is_empty());
        }
    }

    #[test]
    fn what_is_so_already_is_not_put_down_to_the_loss() {
        let (question, mut facts) = restorable();
        facts.data = seen(Data::Damaged);
        let key = Losses { is_key_lost: true, ..Losses::default() };
        let answer = plan(&question, &facts, &key, &Places::default());
        assert_eq!(codes(&answer), [(Code::KeyUnavailable, true), (Code::DataDamaged, false)]);
        facts.target = Fact::Absent;
        let answer = plan(&question, &facts, &zones(&["zone"]), &told(&["vault"], &["vault"]));
        assert_eq!(codes(&answer), [(Code::ServerNotFound, false), (Code::DataDamaged, false)]);
    }

    #[test]
    fn no_loss_turns_a_no_into_a_yes() {
        let (question, good) = restorable();
        let unknown = |why| Fact::Unknown { why };
        let worlds = [
            Facts { item: Fact::Absent, ..good.clone() },
            Facts { target: Fact::Absent, ..good.clone() },
            Facts { target: Fact::Unknown { why: Unknown::CloudSilent }, ..good.clone() },
            Facts { snapshot: Fact::Absent, ..good.clone() },
            Facts { snapshot: unknown(Unknown::KeyUnavailable), ..good.clone() },
            Facts { data: seen(Data::Damaged), ..good.clone() },
            Facts { data: Fact::Unknown { why: Unknown::DamageNotLocated }, ..good.clone() },
            // What no rule refuses and no plan can be made of.
            without_what_was_stored(good),
        ];
        let all = Losses { is_store_lost: true, is_key_lost: true, ..zones(&["zone", "far"]) };
        for facts in &worlds {
            let now = every_reason(&question, facts).unwrap_err();
            for losses in [Losses::default(), zones(&["zone"]), zones(&["far"]), all.clone()] {
                let then = plan(&question, facts, &losses, &Places::default()).unwrap_err();
                assert!(!then.is_empty());
                if losses == Losses::default() {
                    assert!(then.iter().all(|cause| !cause.is_supposed));
                    let told: Vec<_> = then.into_iter().map(|cause| cause.refusal).collect();
                    assert_eq!(told, now);
                }
            }
        }
    }
}
