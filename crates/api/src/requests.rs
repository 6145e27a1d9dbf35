//! Reads what callers ask, field by field, into what the service takes.

use std::time::Duration;

use kedge_core::checkpoint::Method;
use kedge_core::ids::{CheckpointId, ItemId, PlanId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::proof::ProofKind;
use kedge_core::protect;
use kedge_core::refusal::Refusal;
use kedge_core::resource::SERVER_TYPE;
use kedge_core::restore::{self, Mapping, NamedTwice, Pair};
use kedge_core::tag::{BadTag, TAGS_MAX, Tag};
use kedge_service::error::Error;
use kedge_service::fleet::{FleetQuestion, TIME_MAX as FLEET_TIME_MAX};
use kedge_service::identity::{DomainRef, Login, ProjectRef, UserRef};
use kedge_service::protect::ProtectRequest;
use kedge_service::restore::{PowerOn, RestoreRequest};
use kedge_wire::PROVIDER_ID;
use zeroize::Zeroizing;

use crate::body::{Field, Object, Value};

/// Longest password, in bytes, as in Keystone: hashing one costs time.
const PASSWORD_BYTES_MAX: usize = 4096;

/// How long a question about a fleet is asked where nobody says.
const FLEET_TIME: Duration = Duration::from_secs(60);

/// More than any cloud has.
const LOST_ZONES_MAX: usize = 64;

/// Which servers of a fleet are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    Refused,
    All,
}

/// One of the two checks.
pub(crate) enum Check {
    Protectable(Vec<Asked<protect::Question>>),
    Restorable(Vec<Asked<restore::Question>>),
}

/// A question, and the words in which the answer echoes it.
pub(crate) struct Asked<Q> {
    pub(crate) question: Q,
    pub(crate) resource_id: String,
    pub(crate) resource_type: String,
}

pub(crate) fn check(body: &Value) -> Result<Check, Error> {
    let body = Object::root(body)?;
    let protectable = body.field("check_protectable");
    let restorable = body.field("check_restorable");
    match (protectable.is_named(), restorable.is_named()) {
        (true, false) => protectable_check(&protectable),
        (false, true) => restorable_check(&restorable),
        // A null beside the other verb is what some clients send for "not this one".
        (true, true) => match (protectable.given(), restorable.given()) {
            (Some(list), None) => protectable_check(&list),
            (None, Some(list)) => restorable_check(&list),
            (None, None) | (Some(_), Some(_)) => Err(one_verb()),
        },
        (false, false) => Err(one_verb()),
    }
}

fn one_verb() -> Error {
    Error::bad("check_protectable, check_restorable", "exactly one of the two")
}

fn protectable_check(list: &Field<'_>) -> Result<Check, Error> {
    let asked =
        list.non_empty_list()?.iter().map(protectable_question).collect::<Result<_, _>>()?;
    Ok(Check::Protectable(asked))
}

fn restorable_check(list: &Field<'_>) -> Result<Check, Error> {
    let asked = list.non_empty_list()?.iter().map(restorable_question).collect::<Result<_, _>>()?;
    Ok(Check::Restorable(asked))
}

fn protectable_question(field: &Field<'_>) -> Result<Asked<protect::Question>, Error> {
    let entry = field.object()?;
    let resource_id = entry.field("resource_id").word()?;
    let resource_type = entry.field("resource_type").word()?;
    Ok(Asked {
        question: protect::Question {
            server: ServerId::asked(resource_id),
            resource_type: resource_type.to_owned(),
            excluded: Vec::new(),
        },
        resource_id: resource_id.to_owned(),
        resource_type: resource_type.to_owned(),
    })
}

fn restorable_question(field: &Field<'_>) -> Result<Asked<restore::Question>, Error> {
    let entry = field.object()?;
    let item = entry.field("checkpoint_item_id").word()?;
    let target = entry.field("target").object()?;
    let resource_id = target.field("resource_id").word()?;
    let resource_type = target.field("resource_type").word()?;
    Ok(Asked {
        question: restore::Question {
            item: ItemId::asked(item),
            server: ServerId::asked(resource_id),
            resource_type: resource_type.to_owned(),
            mapping: mapping(&target.field("volumes"))?,
        },
        resource_id: resource_id.to_owned(),
        resource_type: resource_type.to_owned(),
    })
}

/// An empty mapping is well-formed: the answer to it is that every disk was left out.
fn mapping(field: &Field<'_>) -> Result<Mapping, Error> {
    let entries = field.list()?;
    let pairs = entries.iter().map(pair).collect::<Result<_, _>>()?;
    Mapping::new(pairs).map_err(|twice| {
        let (index, name) = match twice {
            NamedTwice::Backup(index) => (index, "backup_id"),
            NamedTwice::Volume(index) => (index, "volume_id"),
        };
        let entry = entries.get(index).and_then(|entry| entry.object().ok());
        let expected = "an id that no entry before it has";
        entry.map_or_else(|| field.bad(expected), |entry| entry.field(name).bad(expected))
    })
}

fn pair(field: &Field<'_>) -> Result<Pair, Error> {
    let entry = field.object()?;
    Ok(Pair {
        backup: VolumeBackupId::asked(entry.field("backup_id").word()?),
        volume: VolumeId::asked(entry.field("volume_id").word()?),
    })
}

pub(crate) fn protect(server: &str, body: &Value) -> Result<ProtectRequest, Error> {
    let protect = Object::root(body)?.field("protect").object()?;
    let text = |name| protect.field(name).given().map(|field| field.text()).transpose();
    let method = match protect.field("incremental").given() {
        Some(field) if field.flag()? => Some(Method::Incremental),
        Some(_) => Some(Method::Full),
        None => None,
    };
    Ok(ProtectRequest {
        server: ServerId::asked(server),
        resource_type: resource_type(&protect)?,
        name: text("backup_name")?.map(str::to_owned),
        description: text("description")?.unwrap_or_default().to_owned(),
        method,
        tags: tags(protect.field("tags"))?,
        excluded: excluded(protect.field("extra_info"))?,
    })
}

fn resource_type(object: &Object<'_>) -> Result<String, Error> {
    let given = object.field("resource_type").given();
    let word = given.map(|field| field.word()).transpose()?;
    Ok(word.unwrap_or(SERVER_TYPE).to_owned())
}

fn excluded(field: Field<'_>) -> Result<Vec<VolumeId>, Error> {
    let Some(field) = field.given() else { return Ok(Vec::new()) };
    let Some(volumes) = field.object()?.field("exclude_volumes").given() else {
        return Ok(Vec::new());
    };
    volumes.list()?.iter().map(|entry| Ok(VolumeId::asked(entry.word()?))).collect()
}

fn tags(field: Field<'_>) -> Result<Vec<Tag>, Error> {
    let Some(field) = field.given() else { return Ok(Vec::new()) };
    let entries = field.non_empty_list()?;
    if entries.len() > TAGS_MAX {
        return Err(Refusal::TooManyTags.into());
    }
    let mut tags: Vec<Tag> = Vec::new();
    for entry in &entries {
        let tag = tag(&entry.object()?)?;
        if tags.iter().any(|earlier| earlier.key() == tag.key()) {
            let key = entry.object()?.field("key");
            return Err(key.bad("a key that no tag before it has"));
        }
        tags.push(tag);
    }
    Ok(tags)
}

fn tag(entry: &Object<'_>) -> Result<Tag, Error> {
    let (key, value) = (entry.field("key"), entry.field("value"));
    let value_text = match entry.field("value").given() {
        Some(field) => field.text()?,
        None => "",
    };
    Tag::new(key.text()?, value_text).map_err(|bad| match bad {
        BadTag::Key => key.bad(bad.to_string()),
        BadTag::Value => value.bad(bad.to_string()),
    })
}

/// `restore_target` and `restore_auth` are nobody's business here: not read, kept or
/// logged.
pub(crate) fn restore(body: &Value) -> Result<RestoreRequest, Error> {
    let restore = Object::root(body)?.field("restore").object()?;
    let provider = restore.field("provider_id");
    if provider.word()? != PROVIDER_ID {
        return Err(provider.bad(PROVIDER_ID));
    }
    let checkpoint = restore.field("checkpoint_id").word()?;
    let parameters = restore.field("parameters").object()?;
    let item = parameters.field("checkpoint_item_id").word()?;
    let power_on = if parameters.field("power_on").flag()? { PowerOn::Yes } else { PowerOn::No };
    let plan = parameters.field("plan_id").given().map(|plan| plan.word().map(PlanId::asked));
    let targets = parameters.field("targets").object()?;
    let server = targets.field("server_id").word()?;
    Ok(RestoreRequest {
        checkpoint: CheckpointId::asked(checkpoint),
        question: restore::Question {
            item: ItemId::asked(item),
            server: ServerId::asked(server),
            resource_type: resource_type(&targets)?,
            mapping: mapping(&targets.field("volumes"))?,
        },
        power_on,
        plan: plan.transpose()?,
    })
}

/// Seconds; the service knows how many may be.
pub(crate) fn lease(body: &Value) -> Result<u64, Error> {
    Object::root(body)?.field("lease").object()?.field("seconds").count()
}

pub(crate) fn proof(body: &Value) -> Result<ProofKind, Error> {
    let kind = Object::root(body)?.field("proof").object()?.field("kind");
    match ProofKind::from_word(kind.word()?) {
        Some(kind @ (ProofKind::Read | ProofKind::Drill)) => Ok(kind),
        Some(ProofKind::Restore) | None => Err(kind.bad("read or drill")),
    }
}

/// What is asked of a fleet, and who is shown.
pub(crate) fn fleet(body: &Value) -> Result<(FleetQuestion, Show), Error> {
    let fleet = Object::root(body)?.field("fleet").object()?;
    let mut question = FleetQuestion { time: FLEET_TIME, ..FleetQuestion::default() };
    if let Some(scope) = fleet.field("scope").given() {
        let scope = scope.object()?;
        question.zone = scope.field("zone").given().map(zone).transpose()?;
        let tagged = scope.field("tag").given();
        question.tag = tagged.map(|field| tag(&field.object()?)).transpose()?;
    }
    if let Some(lost) = fleet.field("lost").given() {
        let lost = lost.object()?;
        if let Some(field) = lost.field("zones").given() {
            let zones = field.non_empty_list()?;
            if zones.len() > LOST_ZONES_MAX {
                return Err(field.bad(format!("at most {LOST_ZONES_MAX} entries")));
            }
            question.losses.zones = zones.into_iter().map(zone).collect::<Result<_, _>>()?;
        }
        let flag = |name| lost.field(name).given().map(|field| field.flag()).transpose();
        question.losses.is_store_lost = flag("store")?.unwrap_or(false);
        question.losses.is_key_lost = flag("key")?.unwrap_or(false);
    }
    if let Some(field) = fleet.field("seconds").given() {
        let most = FLEET_TIME_MAX.as_secs();
        let seconds = field.count()?;
        if !(1..=most).contains(&seconds) {
            return Err(field.bad(format!("1 to {most}")));
        }
        question.time = Duration::from_secs(seconds);
    }
    let show = fleet.field("show").given();
    let show = show.map(|field| match field.word()? {
        "refused" => Ok(Show::Refused),
        "all" => Ok(Show::All),
        _ => Err(field.bad("refused or all")),
    });
    Ok((question, show.transpose()?.unwrap_or(Show::Refused)))
}

fn zone(field: Field<'_>) -> Result<String, Error> {
    Ok(field.word()?.to_owned())
}

pub(crate) fn login(body: &Value) -> Result<Login, Error> {
    let auth = Object::root(body)?.field("auth").object()?;
    let identity = auth.field("identity").object()?;
    let methods = identity.field("methods");
    for method in methods.non_empty_list()? {
        if method.word()? != "password" {
            return Err(method.bad("password, the only method there is"));
        }
    }
    let user = identity.field("password").object()?.field("user").object()?;
    let password = user.field("password");
    let text = password.text()?;
    if text.len() > PASSWORD_BYTES_MAX {
        return Err(password.bad(format!("at most {PASSWORD_BYTES_MAX} bytes")));
    }
    Ok(Login {
        user: user_ref(&user)?,
        password: Zeroizing::new(text.to_owned()),
        scope: scope(auth.field("scope"))?,
    })
}

fn user_ref(user: &Object<'_>) -> Result<UserRef, Error> {
    Ok(match named(user)? {
        Named::Id(id) => UserRef::Id(id),
        Named::Name { name, domain } => UserRef::Name { name, domain },
    })
}

/// A token may be for a project or for none; other scopes Keystone knows are refused
/// rather than taken for none.
fn scope(field: Field<'_>) -> Result<Option<ProjectRef>, Error> {
    let Some(field) = field.given() else { return Ok(None) };
    let scope = field.object()?;
    if scope.field("unscoped").given().is_some() {
        return Ok(None);
    }
    let project = scope.field("project").object()?;
    Ok(Some(match named(&project)? {
        Named::Id(id) => ProjectRef::Id(id),
        Named::Name { name, domain } => ProjectRef::Name { name, domain },
    }))
}

/// How Keystone's clients name users and projects; an id wins over a name.
enum Named {
    Id(String),
    Name { name: String, domain: DomainRef },
}

fn named(object: &Object<'_>) -> Result<Named, Error> {
    if let Some(id) = object.field("id").given() {
        return Ok(Named::Id(id.word()?.to_owned()));
    }
    let name = object.field("name").word()?.to_owned();
    let domain = object.field("domain").object()?;
    let domain = match domain.field("id").given() {
        Some(id) => DomainRef::Id(id.word()?.to_owned()),
        None => DomainRef::Name(domain.field("name").word()?.to_owned()),
    };
    Ok(Named::Name { name, domain })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::body;
    use crate::config::Limits;

    fn tree(json: &Json) -> Value {
        body::parse(json.to_string().as_bytes(), &Limits::default()).ok().unwrap()
    }

    fn seed() -> Json {
        json!({"check_restorable": [{
            "checkpoint_item_id": "8986ce68-3da7-4d29-9cc2-1921e9504975",
            "target": {
                "resource_type": "OS::Nova::Server",
                "resource_id": "5aa119a8-d25b-45a7-8d1b-88e127885635",
                "volumes": [{
                    "backup_id": "7ea119a8-d25b-43a7-8d1b-88e12788513a",
                    "volume_id": "45baf976-c20a-4894-a7c3-c94b7376bf55"}]}}]})
    }

    fn check_complaint(json: &Json) -> String {
        check(&tree(json)).err().map_or_else(|| "none".to_owned(), |error| error.to_string())
    }

    #[test]
    fn the_seeds_request_is_read_whole() {
        let Check::Restorable(asked) = check(&tree(&seed())).unwrap() else {
            panic!("another verb");
        };
        let question = &asked[0].question;
        assert_eq!(question.item.as_str(), "8986ce68-3da7-4d29-9cc2-1921e9504975");
        assert_eq!(question.server.as_str(), "5aa119a8-d25b-45a7-8d1b-88e127885635");
        assert_eq!(question.mapping.pairs().len(), 1);
        assert_eq!(asked[0].resource_type, "OS::Nova::Server");
    }

    #[test]
    fn a_proof_is_asked_for_as_a_reading_or_a_drill_and_a_restore_is_not() {
        for (kind, expected) in [("read", ProofKind::Read), ("drill", ProofKind::Drill)] {
            assert_eq!(proof(&tree(&json!({"proof": {"kind": kind}}))).unwrap(), expected);
        }
        for kind in [json!("restore"), json!(""), json!(7)] {
            let refused = proof(&tree(&json!({"proof": {"kind": kind}}))).unwrap_err();
            assert!(refused.to_string().contains("proof.kind"), "{refused}");
        }
    }

    /// Each field of the seed's request, absent, null, of a wrong type
    /// and empty.
    #[test]
    fn each_field_that_is_absent_null_wrong_or_empty_is_named() {
        let fields: [(&str, Json); 7] = [
            ("/check_restorable", json!([])),
            ("/check_restorable/0/checkpoint_item_id", json!("")),
            ("/check_restorable/0/target", json!({})),
            ("/check_restorable/0/target/resource_id", json!("")),
            ("/check_restorable/0/target/resource_type", json!("")),
            ("/check_restorable/0/target/volumes/0/backup_id", json!("")),
            ("/check_restorable/0/target/volumes/0/volume_id", json!("")),
        ];
        for (pointer, empty) in fields {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let mut absent = seed();
            absent.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
            assert!(check_complaint(&absent).contains(key), "{pointer} absent");
            for wrong in [Json::Null, json!(7), json!(true), json!([7]), empty] {
                let mut body = seed();
                *body.pointer_mut(pointer).unwrap() = wrong.clone();
                let text = check_complaint(&body);
                assert!(text.contains(key), "{pointer} = {wrong}: {text}");
            }
        }
        let mut body = seed();
        *body.pointer_mut("/check_restorable/0/target/volumes").unwrap() = json!(null);
        assert_eq!(check_complaint(&body), "check_restorable[0].target.volumes: expected a list");
        body["check_restorable"][0]["target"]["volumes"] = json!([]);
        assert_eq!(check_complaint(&body), "none");
        body["check_restorable"][0]["target"]["volumes"] = json!([null]);
        assert_eq!(
            check_complaint(&body),
            "check_restorable[0].target.volumes[0]: expected an object"
        );
        body["check_restorable"][0] = json!([]);
        assert_eq!(check_complaint(&body), "check_restorable[0]: expected an object");
    }

    #[test]
    fn a_mapping_names_nothing_twice() {
        let mut body = seed();
        let volumes = body.pointer_mut("/check_restorable/0/target/volumes").unwrap();
        *volumes = json!([
            {"backup_id": "a", "volume_id": "v"},
            {"backup_id": "b", "volume_id": "v"}]);
        assert_eq!(
            check_complaint(&body),
            "check_restorable[0].target.volumes[1].volume_id: \
             expected an id that no entry before it has"
        );
        let volumes = body.pointer_mut("/check_restorable/0/target/volumes").unwrap();
        *volumes = json!([
            {"backup_id": "7EA119A8-d25b-43a7-8d1b-88e12788513a", "volume_id": "v"},
            {"backup_id": "7ea119a8-d25b-43a7-8d1b-88e12788513a", "volume_id": "w"}]);
        assert!(check_complaint(&body).contains("volumes[1].backup_id"));
    }

    #[test]
    fn exactly_one_verb_is_asked() {
        let question = json!([{"resource_id": "s", "resource_type": "t"}]);
        let one = json!({"check_protectable": question, "check_restorable": null});
        assert!(matches!(check(&tree(&one)), Ok(Check::Protectable(asked)) if asked.len() == 1));
        for body in [json!({}), json!({"check_protectable": [], "check_restorable": []})] {
            assert_eq!(
                check_complaint(&body),
                "check_protectable, check_restorable: expected exactly one of the two"
            );
        }
        assert_eq!(check_complaint(&json!([])), "body: expected an object");
        assert_eq!(
            check_complaint(&json!({"check_protectable": []})),
            "check_protectable: expected a non-empty list"
        );
        for key in ["resource_id", "resource_type"] {
            let mut body = json!({"check_protectable": question});
            body["check_protectable"][0][key] = json!({});
            let text = check_complaint(&body);
            assert!(text.starts_with(&format!("check_protectable[0].{key}: ")), "{text}");
        }
    }

    fn protect_complaint(asked: &Json) -> String {
        let read = protect("s", &tree(&json!({ "protect": asked })));
        read.err().map_or_else(|| "none".to_owned(), |error| error.to_string())
    }

    #[test]
    fn protect_reads_what_is_given_and_defaults_the_rest() {
        let least = protect("s", &tree(&json!({"protect": {}}))).unwrap();
        assert_eq!(least.resource_type, "OS::Nova::Server");
        assert_eq!((least.name, least.method), (None, None));
        assert!(least.description.is_empty() && least.tags.is_empty());

        let whole = json!({"protect": {
            "backup_name": "n", "description": "d", "incremental": "FALSE",
            "resource_type": "OS::Nova::Server", "tags": [{"key": " env ", "value": "prod"}],
            "extra_info": {"exclude_volumes": ["v"], "other": 1}, "unknown": {}}});
        let whole = protect("s", &tree(&whole)).unwrap();
        assert_eq!(whole.name.as_deref(), Some("n"));
        assert_eq!(whole.method, Some(Method::Full));
        assert_eq!(whole.tags, [Tag::new("env", "prod").unwrap()]);
        assert_eq!(whole.excluded, [VolumeId::asked("v")]);

        let nulls = json!({
            "backup_name": null, "description": null, "incremental": null, "tags": null,
            "resource_type": null, "extra_info": null});
        assert_eq!(protect_complaint(&nulls), "none");
    }

    #[test]
    fn protect_names_the_field_that_is_wrong() {
        let many: Vec<_> =
            (0..=TAGS_MAX).map(|n| json!({"key": format!("k{n}"), "value": ""})).collect();
        let rows = [
            (json!(null), "protect: expected an object"),
            (json!({"backup_name": 7}), "protect.backup_name: expected a string"),
            (json!({"description": []}), "protect.description: expected a string"),
            (json!({"incremental": "maybe"}), "protect.incremental: expected true or false"),
            (json!({"resource_type": ""}), "protect.resource_type: expected a non-empty"),
            (json!({"tags": []}), "protect.tags: expected a non-empty list"),
            (json!({"tags": [1]}), "protect.tags[0]: expected an object"),
            (json!({"tags": [{"value": "v"}]}), "protect.tags[0].key: expected"),
            (json!({"tags": [{"key": "k", "value": "/"}]}), "protect.tags[0].value: expected"),
            (json!({"tags": [{"key": "k"}, {"key": " k"}]}), "protect.tags[1].key: expected"),
            (json!({"tags": many}), "request tags exceed the max allowed count: 10."),
            (json!({"extra_info": "{}"}), "protect.extra_info: expected an object"),
            (
                json!({"extra_info": {"exclude_volumes": ["v", 1]}}),
                "protect.extra_info.exclude_volumes[1]: expected",
            ),
        ];
        for (protect, expected) in rows {
            let text = protect_complaint(&protect);
            assert!(text.starts_with(expected), "{protect}: {text}");
        }
    }

    fn a_restore() -> Json {
        json!({"restore": {
            "provider_id": PROVIDER_ID, "checkpoint_id": "c",
            "restore_target": {"never": ["read"]}, "restore_auth": 7,
            "parameters": {
                "checkpoint_item_id": "i", "power_on": false,
                "targets": {
                    "server_id": "s", "volumes": [{"backup_id": "b", "volume_id": "v"}]}}}})
    }

    #[test]
    fn a_restore_is_read_whole() {
        let request = restore(&tree(&a_restore())).unwrap();
        assert_eq!(request.checkpoint, CheckpointId::asked("c"));
        assert_eq!(request.power_on, PowerOn::No);
        assert_eq!(request.question.resource_type, "OS::Nova::Server");
        assert_eq!(request.question.mapping.pairs().len(), 1);
    }

    #[test]
    fn a_restore_names_the_field_that_is_wrong() {
        let fields = [
            "provider_id",
            "checkpoint_id",
            "parameters",
            "parameters/checkpoint_item_id",
            "parameters/power_on",
            "parameters/targets",
            "parameters/targets/server_id",
            "parameters/targets/volumes",
            "parameters/targets/volumes/0/backup_id",
            "parameters/targets/volumes/0/volume_id",
        ];
        for field in fields {
            let pointer = format!("/restore/{field}");
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let mut absent = a_restore();
            absent.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
            let mut wrong = vec![absent];
            for value in [Json::Null, json!(7), json!("")] {
                let mut body = a_restore();
                *body.pointer_mut(&pointer).unwrap() = value;
                wrong.push(body);
            }
            let dotted = format!("restore.{}", field.replace("/0", "[0]").replace('/', "."));
            for body in wrong {
                let text = restore(&tree(&body)).err().unwrap().to_string();
                assert!(text.starts_with(&format!("{dotted}: expected")), "{text}");
            }
        }
    }

    #[test]
    fn logins_name_users_and_projects_as_keystones_clients_do() {
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "alice", "domain": {"id": "default", "name": "Other"},
                "password": "pw"}}},
            "scope": {"project": {"name": "p", "domain": {"name": "Default"}}}}});
        let login = login(&tree(&body)).unwrap();
        let domain = DomainRef::Id("default".to_owned());
        assert_eq!(login.user, UserRef::Name { name: "alice".to_owned(), domain });
        let domain = DomainRef::Name("Default".to_owned());
        assert_eq!(login.scope, Some(ProjectRef::Name { name: "p".to_owned(), domain }));
        assert_eq!(login.password.as_str(), "pw");
    }

    #[test]
    fn a_wrong_login_names_the_field_and_never_the_password() {
        let user = json!({"id": "u", "password": "hunter2"});
        let with = |methods: Json, user: Json, scope: Json| {
            json!({"auth": {
                "identity": {"methods": methods, "password": {"user": user}}, "scope": scope}})
        };
        let password = json!(["password"]);
        let long = json!({"id": "u", "password": "hunter2".repeat(1000)});
        let rows = [
            (with(json!([]), user.clone(), json!(null)), "auth.identity.methods: "),
            (with(json!(["totp"]), user.clone(), json!(null)), "auth.identity.methods[0]: "),
            (with(password.clone(), long, json!(null)), "auth.identity.password.user.password: "),
            (
                with(password.clone(), json!({"name": "hunter2", "password": "x"}), json!(null)),
                "auth.identity.password.user.domain: ",
            ),
            (with(password.clone(), user.clone(), json!({"system": {}})), "auth.scope.project: "),
            (with(password.clone(), user, json!("hunter2")), "auth.scope: "),
            (
                with(password, json!({"id": "u"}), json!(null)),
                "auth.identity.password.user.password",
            ),
        ];
        for (body, field) in rows {
            let text = login(&tree(&body)).err().unwrap().to_string();
            assert!(text.starts_with(field) && !text.contains("hunter2"), "{text}");
        }
    }
}
