use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kedge_store::Outage;

use super::*;

const ONE: &str = "11111111111111111111111111111111";
const TWO: &str = "22222222222222222222222222222222";
const NONE: &str = "99999999999999999999999999999999";
const LIFETIME: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(30);

/// Stands still until told otherwise; both clocks go together.
#[derive(Debug, Default)]
struct ManualClock(Mutex<Duration>);

impl ManualClock {
    fn advance(&self, span: Duration) {
        *self.0.lock().unwrap() += span;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_772_875_660_000_000).plus(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

#[derive(Clone)]
struct Person {
    name: &'static str,
    password_hash: String,
    enabled: &'static str,
    grants: Vec<(&'static str, &'static str)>,
}

fn person(name: &'static str, password: &str, grants: &[(&'static str, &'static str)]) -> Person {
    let password_hash = hash_password_cheaply(password).unwrap();
    Person { name, password_hash, enabled: "true", grants: grants.to_vec() }
}

/// `ann` reads in one project and writes in both, `bob` reads in one, `root` rules from
/// one, `gone` is disabled. Everyone's password is their name with `-secret`.
fn people() -> Vec<Person> {
    let gone = Person { enabled: "false", ..person("gone", "gone-secret", &[(ONE, "member")]) };
    vec![
        person("ann", "ann-secret", &[(ONE, "reader"), (ONE, "member"), (TWO, "member")]),
        person("bob", "bob-secret", &[(ONE, "reader")]),
        person("root", "root-secret", &[(ONE, "admin"), (TWO, "reader")]),
        gone,
    ]
}

fn file_of(people: &[Person]) -> String {
    let mut text = format!(
        "[[project]]\nid = \"{ONE}\"\nname = \"one\"\n[[project]]\nid = \"{TWO}\"\nname = \"two\"\n"
    );
    for Person { name, password_hash, enabled, grants } in people {
        text += &format!(
            "[[user]]\nid = \"id-of-{name}\"\nname = \"{name}\"\nenabled = {enabled}\n\
             password_hash = \"{password_hash}\"\n"
        );
        for (project, role) in grants {
            text += &format!("[[user.grant]]\nproject = \"{project}\"\nrole = \"{role}\"\n");
        }
    }
    text
}

struct House {
    identity: Identity,
    clock: Arc<ManualClock>,
    store: Store,
    folder: tempfile::TempDir,
}

impl House {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        replace(&folder.path().join("users.toml"), &file_of(&people()));
        let clock = Arc::new(ManualClock::default());
        let store = Store::open_in_memory().await.unwrap();
        let identity = open(folder.path(), &store, &clock).unwrap();
        Self { identity, clock, store, folder }
    }

    /// The same service after a stop and a start.
    fn restart(self) -> Self {
        let identity = open(self.folder.path(), &self.store, &self.clock).unwrap();
        Self { identity, ..self }
    }

    fn users_file(&self) -> PathBuf {
        self.folder.path().join("users.toml")
    }

    fn change_users(&self, change: impl FnOnce(&mut Vec<Person>)) {
        let before = std::fs::read_to_string(self.users_file()).unwrap();
        let mut people = people();
        for person in &mut people {
            // A hash has a random salt: keep the one the file has.
            let (_, rest) = before.split_once(&format!("name = \"{}\"", person.name)).unwrap();
            let (_, rest) = rest.split_once("password_hash = \"").unwrap();
            person.password_hash = rest.split_once('"').unwrap().0.to_owned();
        }
        change(&mut people);
        replace(&self.users_file(), &file_of(&people));
    }

    async fn token(&self, name: &str, project: &str) -> String {
        let issued = self.identity.login(login(name, &format!("{name}-secret"), project)).await;
        issued.unwrap().token
    }

    async fn authorise(&self, token: &str, project: &str, right: Right) -> Result<Context, Error> {
        self.identity.authorise(Some(token), project, right, DEADLINE).await
    }

    async fn is_valid(&self, token: &str) -> bool {
        match self.identity.validate(token).await {
            Ok(_) => true,
            Err(Error::Unauthenticated) => false,
            Err(trouble) => panic!("{trouble}"),
        }
    }
}

fn open(folder: &Path, store: &Store, clock: &Arc<ManualClock>) -> Result<Identity, UsersError> {
    let limits = Limits { hashes_max: 2, failed_logins_per_minute_max: 3, ..Limits::default() };
    let users = UsersSource::File(folder.join("users.toml"));
    Identity::new(users, store.clone(), Arc::<ManualClock>::clone(clock), &limits, LIFETIME)
}

/// A rename, as editors do it: the file is another one.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn named(name: &str) -> UserRef {
    UserRef::Name { name: name.to_owned(), domain: DomainRef::Id("default".to_owned()) }
}

fn login(name: &str, password: &str, project: &str) -> Login {
    Login {
        user: named(name),
        password: Zeroizing::new(password.to_owned()),
        scope: Some(ProjectRef::Id(project.to_owned())),
    }
}

#[tokio::test]
async fn a_token_says_who_where_until_when_and_with_which_roles() {
    let house = House::new().await;
    let issued = house.identity.login(login("ann", "ann-secret", ONE)).await.unwrap();
    assert_eq!(house.identity.validate(&issued.token).await.unwrap(), issued.info);
    assert_eq!(issued.token.len(), TOKEN_CHARS);
    assert_ne!(issued.token, house.token("ann", ONE).await);
    let info = issued.info;
    let roles: Vec<_> = info.roles.iter().map(|role| role.name.as_str()).collect();
    assert_eq!((info.user_id.as_str(), info.user_name.as_str()), ("id-of-ann", "ann"));
    assert_eq!(info.user_domain, Domain { id: "default".into(), name: "Default".into() });
    assert_eq!(info.project.unwrap().name, "one");
    assert_eq!(roles, ["reader", "member"]);
    assert_eq!(info.issued_at, house.clock.now());
    assert_eq!(info.expires_at, house.clock.now().plus(LIFETIME));
}

#[tokio::test]
async fn users_and_projects_are_found_by_every_published_name() {
    let house = House::new().await;
    let domains = || [DomainRef::Id("default".into()), DomainRef::Name("Default".into())];
    let users = domains().map(|domain| UserRef::Name { name: "ann".into(), domain });
    let projects = domains().map(|domain| ProjectRef::Name { name: "two".into(), domain });
    for user in users.into_iter().chain([UserRef::Id("id-of-ann".into())]) {
        for scope in projects.clone().into_iter().chain([ProjectRef::Id(TWO.into())]) {
            let password = Zeroizing::new("ann-secret".to_owned());
            let wish = Login { user: user.clone(), password, scope: Some(scope) };
            let info = house.identity.login(wish).await.unwrap().info;
            assert_eq!(info.project.unwrap().id.as_str(), TWO);
        }
    }
}

#[tokio::test]
async fn a_token_without_project_lists_projects_and_enters_none() {
    let house = House::new().await;
    let wish = Login { scope: None, ..login("ann", "ann-secret", ONE) };
    let token = house.identity.login(wish).await.unwrap().token;
    assert_eq!(house.identity.projects(&token).await.unwrap().len(), 2);
    let entered = house.authorise(&token, ONE, Right::Read).await;
    assert!(matches!(entered, Err(Error::Forbidden)));
}

#[tokio::test]
async fn whatever_is_wrong_with_a_login_is_answered_alike() {
    let house = House::new().await;
    let rows = [
        login("ann", "wrong", ONE),
        login("nobody", "ann-secret", ONE),
        login("gone", "gone-secret", ONE),
        login("bob", "bob-secret", TWO),
        login("bob", "bob-secret", NONE),
        Login { user: UserRef::Id("ann".into()), ..login("ann", "ann-secret", ONE) },
        login("ann", "", ONE),
    ];
    for wish in rows {
        let refused = house.identity.login(wish).await;
        assert!(matches!(refused, Err(Error::Unauthenticated)));
    }
}

#[tokio::test]
async fn unknown_disabled_and_mistaken_users_cost_one_hash_each() {
    let house = House::new().await;
    let rows = [("ann", "wrong"), ("nobody", "wrong"), ("gone", "gone-secret"), ("gone", "wrong")];
    for (name, password) in rows {
        let before = house.identity.hasher.computed();
        let _ = house.identity.login(login(name, password, ONE)).await;
        assert_eq!(house.identity.hasher.computed() - before, 1, "{name} {password}");
    }
    // And with no such domain.
    let domain = DomainRef::Name("nowhere".into());
    let user = UserRef::Name { name: "ann".into(), domain };
    let before = house.identity.hasher.computed();
    let _ = house.identity.login(Login { user, ..login("ann", "wrong", ONE) }).await;
    assert_eq!(house.identity.hasher.computed() - before, 1);
}

#[tokio::test]
async fn a_name_that_failed_too_often_is_turned_away_without_a_hash() {
    let house = House::new().await;
    // To a disabled user the right password is as wrong as any.
    for (name, guess) in [("ann", "wrong"), ("nobody", "wrong"), ("gone", "gone-secret")] {
        for _ in 0..3 {
            let refused = house.identity.login(login(name, guess, ONE)).await;
            assert!(matches!(refused, Err(Error::Unauthenticated)), "{name}");
        }
        let before = house.identity.hasher.computed();
        let right = login(name, &format!("{name}-secret"), ONE);
        assert!(matches!(house.identity.login(right).await, Err(Error::Busy)), "{name}");
        assert_eq!(house.identity.hasher.computed(), before, "{name}");
    }
    assert!(house.identity.login(login("bob", "bob-secret", ONE)).await.is_ok());
    house.clock.advance(Duration::from_secs(60));
    assert!(house.identity.login(login("ann", "ann-secret", ONE)).await.is_ok());
}

#[tokio::test]
async fn a_burst_of_guesses_gets_no_more_hashes_than_the_limit_and_the_turns_under_way() {
    let house = House::new().await;
    let burst = (0..20).map(|_| house.identity.login(login("ann", "wrong", ONE)));
    let answers = futures::future::join_all(burst).await;
    let turned_away = answers.iter().filter(|answer| matches!(answer, Err(Error::Busy))).count();
    assert!(house.identity.hasher.computed() <= 3 + 1, "{:?}", house.identity.hasher);
    assert!(turned_away >= 16, "{turned_away}");
}

#[tokio::test]
async fn naming_the_domain_otherwise_tells_neither_known_nor_unknown_users_apart() {
    let house = House::new().await;
    for name in ["ann", "nobody"] {
        for _ in 0..3 {
            let _ = house.identity.login(login(name, "wrong", ONE)).await;
        }
        let domain = DomainRef::Name("Default".into());
        let by_domain_name = UserRef::Name { name: name.into(), domain };
        let wish = Login { user: by_domain_name, ..login(name, "wrong", ONE) };
        assert!(matches!(house.identity.login(wish).await, Err(Error::Busy)), "{name}");
        let by_id = UserRef::Id(format!("id-of-{name}"));
        let wish = Login { user: by_id, ..login(name, "wrong", ONE) };
        assert!(matches!(house.identity.login(wish).await, Err(Error::Unauthenticated)), "{name}");
    }
}

#[tokio::test]
async fn a_right_password_wipes_earlier_failures() {
    let house = House::new().await;
    for _ in 0..3 {
        let _ = house.identity.login(login("ann", "wrong", ONE)).await;
        let _ = house.identity.login(login("ann", "wrong", ONE)).await;
        assert!(house.identity.login(login("ann", "ann-secret", ONE)).await.is_ok());
    }
}

#[tokio::test]
async fn a_token_ends_with_its_lifetime_and_leaves_no_row() {
    let house = House::new().await;
    let token = house.token("ann", ONE).await;
    house.clock.advance(LIFETIME - Duration::from_micros(1));
    assert!(house.is_valid(&token).await);
    house.clock.advance(Duration::from_micros(1));
    assert!(!house.is_valid(&token).await);
    house.token("bob", ONE).await;
    assert!(house.store.find_token(&token_hash(&token)).await.unwrap().is_none());
}

#[tokio::test]
async fn what_is_no_token_is_refused() {
    let house = House::new().await;
    let token = house.token("ann", ONE).await;
    let other = if token.starts_with('A') { "B" } else { "A" };
    let altered = format!("{other}{}", &token[1..]);
    for text in ["", "x", &token[1..], &format!("{token}x"), &altered, &"x".repeat(100_000)] {
        assert!(!house.is_valid(text).await);
    }
    let no_token = house.identity.authorise(None, ONE, Right::Read, DEADLINE).await;
    assert!(matches!(no_token, Err(Error::Unauthenticated)));
}

#[tokio::test]
async fn disabling_a_user_revokes_their_tokens_for_good() {
    let house = House::new().await;
    let (ann, bob) = (house.token("ann", ONE).await, house.token("bob", ONE).await);
    house.change_users(|people| people[0].enabled = "false");
    assert!(!house.is_valid(&ann).await);
    assert!(house.is_valid(&bob).await);
    house.change_users(|_| {});
    assert!(!house.is_valid(&ann).await);
    assert!(house.is_valid(&house.token("ann", ONE).await).await);
}

#[tokio::test]
async fn disabling_a_user_while_the_service_is_down_revokes_their_tokens_for_good() {
    let house = House::new().await;
    let ann = house.token("ann", ONE).await;
    house.change_users(|people| people[0].enabled = "false");
    let house = house.restart();
    assert!(!house.is_valid("any look at the users will do").await);
    house.change_users(|_| {});
    assert!(!house.is_valid(&ann).await);
}

#[tokio::test]
async fn a_disabled_user_stays_out_while_the_catalogue_cannot_delete_their_tokens() {
    let house = House::new().await;
    let ann = house.token("ann", ONE).await;
    house.change_users(|people| people[0].enabled = "false");
    house.store.set_outage(Outage::Total);
    assert!(matches!(house.identity.validate(&ann).await, Err(Error::Unavailable(_))));
    house.store.set_outage(Outage::None);
    house.change_users(|_| {});
    assert!(!house.is_valid(&ann).await);
}

#[tokio::test]
async fn a_removed_user_and_a_changed_password_end_tokens_also_across_a_restart() {
    for down in [false, true] {
        let house = House::new().await;
        let (ann, bob) = (house.token("ann", ONE).await, house.token("bob", ONE).await);
        let root = house.token("root", ONE).await;
        house.change_users(|people| {
            people[0].password_hash = hash_password_cheaply("new-secret").unwrap();
            people.remove(1);
        });
        let house = if down { house.restart() } else { house };
        assert!(!house.is_valid(&ann).await);
        assert!(!house.is_valid(&bob).await);
        assert!(house.is_valid(&root).await);
        let old = house.identity.login(login("ann", "ann-secret", ONE)).await;
        assert!(matches!(old, Err(Error::Unauthenticated)));
        assert!(house.identity.login(login("ann", "new-secret", ONE)).await.is_ok());
    }
}

#[tokio::test]
async fn a_role_taken_away_ends_the_token_of_that_project() {
    let house = House::new().await;
    let (one, two) = (house.token("ann", ONE).await, house.token("ann", TWO).await);
    house.change_users(|people| {
        people[0].grants = vec![(ONE, "reader")];
    });
    assert!(!house.is_valid(&two).await);
    assert!(matches!(house.authorise(&one, ONE, Right::Write).await, Err(Error::Forbidden)));
    assert!(house.authorise(&one, ONE, Right::Read).await.is_ok());
}

#[tokio::test]
async fn a_broken_users_file_changes_nothing_until_it_is_mended() {
    let house = House::new().await;
    let token = house.token("ann", ONE).await;
    let good = std::fs::read_to_string(house.users_file()).unwrap();
    replace(&house.users_file(), "[[user]]\nname = ");
    assert!(house.is_valid(&token).await);
    replace(&house.users_file(), "");
    assert!(house.is_valid(&token).await);
    std::fs::remove_file(house.users_file()).unwrap();
    assert!(house.is_valid(&token).await);
    replace(&house.users_file(), &good.replace("id-of-ann", "id-of-anna"));
    assert!(!house.is_valid(&token).await);
}

#[tokio::test]
async fn a_users_file_others_may_use_refuses_start() {
    let house = House::new().await;
    for mode in [0o644, 0o640, 0o602, 0o700, 0o4600] {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(house.users_file(), permissions).unwrap();
        let refused = open(house.folder.path(), &house.store, &house.clock);
        assert!(matches!(refused, Err(UsersError::TooOpen { mode: found, .. }) if found == mode));
    }
    std::fs::remove_file(house.users_file()).unwrap();
    let refused = open(house.folder.path(), &house.store, &house.clock);
    assert!(matches!(refused, Err(UsersError::Unreadable { .. })));
    std::fs::create_dir(house.users_file()).unwrap();
    let refused = open(house.folder.path(), &house.store, &house.clock);
    assert!(matches!(refused, Err(UsersError::NotAFile { .. })));
}

#[tokio::test]
async fn rights_follow_roles_and_other_projects_look_alike_to_all_but_administrators() {
    use Right::{Admin, Read, Write};
    let house = House::new().await;
    let rows = [
        ("ann", ONE, ONE, Read, "in"),
        ("ann", ONE, ONE, Write, "in"),
        ("ann", ONE, ONE, Admin, "forbidden"),
        // Her role there does not help: the token is for the other project.
        ("ann", ONE, TWO, Read, "forbidden"),
        ("ann", ONE, NONE, Read, "forbidden"),
        ("bob", ONE, ONE, Read, "in"),
        ("bob", ONE, ONE, Write, "forbidden"),
        ("bob", ONE, TWO, Read, "forbidden"),
        ("bob", ONE, NONE, Read, "forbidden"),
        ("root", ONE, ONE, Admin, "in"),
        ("root", ONE, TWO, Write, "in"),
        ("root", ONE, NONE, Read, "no project"),
        // An administrator of one project who logged in to another as a reader.
        ("root", TWO, TWO, Write, "forbidden"),
        ("root", TWO, ONE, Read, "forbidden"),
        ("root", TWO, NONE, Read, "forbidden"),
    ];
    for (name, scope, path, right, expected) in rows {
        let token = house.token(name, scope).await;
        let got = match house.authorise(&token, path, right).await {
            Ok(context) => {
                assert_eq!(context.project().as_str(), path);
                assert!(context.may(right));
                "in"
            }
            Err(Error::Forbidden) => "forbidden",
            Err(Error::ProjectNotFound) => "no project",
            Err(trouble) => panic!("{trouble}"),
        };
        assert_eq!(got, expected, "{name} with a token for {scope} at {path}: {right:?}");
    }
}

#[tokio::test]
async fn a_token_is_told_of_and_revoked_by_its_user_and_administrators_only() {
    let house = House::new().await;
    let (ann, bob) = (house.token("ann", ONE).await, house.token("bob", ONE).await);
    let root = house.token("root", ONE).await;
    let other = house.token("ann", TWO).await;
    let subject = |caller: &str, subject: &str| {
        let (caller, subject) = (caller.to_owned(), subject.to_owned());
        let identity = &house.identity;
        async move { identity.subject_info(&caller, &subject).await }
    };
    assert_eq!(subject(&ann, &ann).await.unwrap().unwrap().user_name, "ann");
    assert_eq!(subject(&ann, &other).await.unwrap().unwrap().user_name, "ann");
    assert_eq!(subject(&root, &ann).await.unwrap().unwrap().user_name, "ann");
    assert!(matches!(subject(&bob, &ann).await, Err(Error::Forbidden)));
    assert!(matches!(subject(&bob, "unknown").await, Err(Error::Forbidden)));
    assert!(matches!(subject(&root, "unknown").await, Ok(None)));
    assert!(matches!(subject("unknown", &ann).await, Err(Error::Unauthenticated)));

    assert!(matches!(house.identity.revoke(&bob, &ann).await, Err(Error::Forbidden)));
    assert!(house.is_valid(&ann).await);
    assert!(house.identity.revoke(&ann, &ann).await.unwrap().is_some());
    assert!(!house.is_valid(&ann).await);
    assert!(house.identity.revoke(&root, &bob).await.unwrap().is_some());
    assert!(!house.is_valid(&bob).await);
    assert!(house.identity.revoke(&root, &bob).await.unwrap().is_none());
    assert!(house.is_valid(&other).await);
}

#[tokio::test]
async fn users_list_their_projects_and_administrators_all() {
    let house = House::new().await;
    let names = |projects: Vec<ProjectInfo>| {
        projects.into_iter().map(|project| project.name).collect::<Vec<_>>()
    };
    for (name, scope, expected) in [
        ("bob", ONE, vec!["one"]),
        ("ann", TWO, vec!["one", "two"]),
        ("root", ONE, vec!["one", "two"]),
    ] {
        let token = house.token(name, scope).await;
        assert_eq!(names(house.identity.projects(&token).await.unwrap()), expected, "{name}");
    }
    assert_eq!(house.identity.find_project(TWO).await.unwrap().name, "two");
    assert!(house.identity.find_project(NONE).await.is_none());
}

#[tokio::test]
async fn a_silent_catalogue_is_no_answer_about_the_token() {
    let house = House::new().await;
    let token = house.token("ann", ONE).await;
    house.store.set_outage(Outage::Total);
    assert!(matches!(house.identity.validate(&token).await, Err(Error::Unavailable(_))));
    let refused = house.identity.login(login("ann", "ann-secret", ONE)).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))));
}

#[tokio::test]
async fn the_catalogue_never_holds_a_token() {
    let house = House::new().await;
    let token = house.token("ann", ONE).await;
    let stored = house.store.find_token(&token_hash(&token)).await.unwrap().unwrap();
    let secret = URL_SAFE_NO_PAD.decode(&token).unwrap();
    assert_ne!(stored.hash.0.as_slice(), secret);
    assert!(stored.user_id.starts_with("id-of-ann."));
}

#[tokio::test]
async fn nothing_printed_for_people_holds_a_secret() {
    let house = House::new().await;
    let wish = Login { user: named("typed-in-wrong-field"), ..login("ann", "ann-secret", ONE) };
    let printed = format!("{wish:?}");
    assert!(
        !printed.contains("ann-secret") && !printed.contains("typed-in-wrong-field"),
        "{printed}"
    );
    let issued = house.identity.login(login("ann", "ann-secret", ONE)).await.unwrap();
    assert!(!format!("{issued:?}").contains(&issued.token));
    let hashes = std::fs::read_to_string(house.users_file()).unwrap();
    let printed = format!("{:?}", house.identity);
    for hash in hashes.lines().filter_map(|line| line.strip_prefix("password_hash = ")) {
        let output = hash.trim_matches('"').rsplit_once('$').unwrap().1.to_owned();
        assert!(!printed.contains(&output));
    }
}

#[tokio::test]
async fn a_user_disabled_while_logging_in_gets_no_token() {
    let house = House::new().await;
    let users = house.identity.current_users().await;
    let ann = users.find_user(&named("ann")).unwrap();
    house.change_users(|people| people[0].enabled = "false");
    let refused = house.identity.issue(&users, ann, None).await;
    assert!(matches!(refused, Err(Error::Unauthenticated)));
}
