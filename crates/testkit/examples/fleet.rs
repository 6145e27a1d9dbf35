//! A large site, and callers that ask it: what `benches/verdicts.sh` measures with.
//!
//! `fleet lay DIR ITEMS` writes configuration, users and servers; `fleet fill DIR ITEMS` the
//! catalogue and the objects its rows name, once the repositories are there;
//! `fleet ask DIR HOW SECONDS CONNECTIONS [RATE]` asks the service that runs on it and prints
//! one line of JSON.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kedge_core::checkpoint::{
    Checkpoint, Item, Method, SnapshotRef, SourceServer, StoredVolume, Trigger, VolumeBackup,
};
use kedge_core::evidence::{self, Watch};
use kedge_core::ids::{CheckpointId, ItemId, JobId, ProjectId, ServerId, VolumeBackupId, VolumeId};
use kedge_core::resource::{Encryption, Hardware, ServerKind, VolumeRole};
use kedge_core::status::ItemStatus;
use kedge_core::tag::Tag;
use kedge_core::time::Timestamp;
use kedge_store::Store;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// The first project has a tenth of everything; the others share the rest alike.
const PROJECTS: u64 = 10;
/// Servers of a project: a page of the check has one question about each.
const SERVERS: u64 = 100;
const DISK_BYTES: u64 = 1 << 30;
const ADDRESS: &str = "127.0.0.1:18799";
const PASSWORD: &str = "fleet";
const PROVIDER: &str = "fc4d5750-22e7-4798-8a46-f48f62c4c1da";
const BATCH: u64 = 100;
/// Entries of a page of a list, as a console shows them.
const PAGE: u64 = 100;
/// Items of one transaction.
const RECORD_ITEMS: u64 = 500;

#[expect(clippy::print_stdout, reason = "figures are its output")]
#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["lay", dir, items] => lay(Path::new(dir), items.parse()?)?,
        ["fill", dir, items] => fill(Path::new(dir), items.parse()?).await?,
        ["projects"] => (0..PROJECTS).for_each(|number| println!("{}", project(number))),
        ["ask", dir, how, seconds, connections, rate @ ..] => {
            let rate = rate.first().map(|rate| rate.parse::<f64>()).transpose()?;
            let load = Load {
                items: fs::read_to_string(Path::new(dir).join("items"))?.parse()?,
                how: How::from_word(how).ok_or("how: batches, single, list, deep or fleet")?,
                seconds: Duration::from_secs(seconds.parse()?),
                connections: connections.parse()?,
                rate,
            };
            println!("{}", load.run()?);
        }
        _ => return Err("lay DIR ITEMS | fill DIR ITEMS | ask DIR HOW SECONDS CONNECTIONS".into()),
    }
    Ok(())
}

fn project(number: u64) -> String {
    format!("{number:032x}")
}

fn id(kind: u64, project: u64, number: u64) -> String {
    format!("{kind:08x}-{project:04x}-4000-8000-{number:012x}")
}

fn server_id(project: u64, number: u64) -> String {
    id(1, project, number)
}

fn volume_id(project: u64, number: u64) -> String {
    id(2, project, number)
}

fn item_id(project: u64, number: u64) -> String {
    id(3, project, number)
}

fn backup_id(project: u64, number: u64) -> String {
    id(4, project, number)
}

/// What a check reads of a snapshot: an object whose hash is its name.
fn snapshot_object(project: u64, number: u64) -> String {
    format!("a snapshot that nobody opens: {number} of project {project}")
}

fn snapshot_id(project: u64, number: u64) -> String {
    let hash = Sha256::digest(snapshot_object(project, number));
    hash.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn lay(dir: &Path, items: u64) -> Outcome<()> {
    fs::create_dir_all(dir.join("servers"))?;
    let mut users = String::new();
    for number in 0..PROJECTS {
        let project = project(number);
        writeln!(users, "[[project]]\nid = \"{project}\"\nname = \"p{number}\"\n")?;
    }
    let hash = kedge_service::identity::hash_password(PASSWORD)?;
    writeln!(users, "[[user]]\nname = \"fleet\"\npassword_hash = \"{hash}\"\n")?;
    for number in 0..PROJECTS {
        let project = project(number);
        writeln!(users, "[[user.grant]]\nproject = \"{project}\"\nrole = \"member\"\n")?;
        for server in 0..SERVERS {
            lay_server(dir, number, server)?;
        }
    }
    write_private(&dir.join("users.toml"), &users)?;
    let place = |name: &str| dir.join(name).display().to_string();
    let config = format!(
        "state_dir = \"{}\"\nusers = \"{}\"\nlisten = \"{ADDRESS}\"\n\
         metrics_listen = \"127.0.0.1:18798\"\n\n[cloud]\nkind = \"local\"\nservers_dir = \"{}\"\n\n\
         [log]\nfilter = \"warn\"\n",
        place("state"),
        place("users.toml"),
        place("servers")
    );
    write_private(&dir.join("kedge.toml"), &config)?;
    Ok(fs::write(dir.join("items"), items.to_string())?)
}

fn write_private(path: &Path, text: &str) -> Outcome<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

fn lay_server(dir: &Path, project_number: u64, number: u64) -> Outcome<()> {
    let folder = dir.join("servers").join(format!("p{project_number}-s{number}"));
    fs::create_dir_all(&folder)?;
    let text = format!(
        "id = \"{}\"\nproject = \"{}\"\nname = \"web-{number}\"\nkind = \"kvm\"\nram_mb = 2048\nvcpus = 2\nzone = \"z{}\"\n\n[[disk]]\nid = \"{}\"\n\
         name = \"root\"\nfile = \"root.img\"\nformat = \"raw\"\nrole = \"system\"\n",
        server_id(project_number, number),
        project(project_number),
        number % 2,
        volume_id(project_number, number)
    );
    fs::write(folder.join("server.toml"), text)?;
    Ok(fs::File::create(folder.join("root.img"))?.set_len(DISK_BYTES)?)
}

async fn fill(dir: &Path, items: u64) -> Outcome<()> {
    let store = Store::open(&dir.join("state/catalogue.sqlite")).await?;
    let each = items / PROJECTS;
    for project_number in 0..PROJECTS {
        let mut number = 0;
        while number < each {
            let end = each.min(number + RECORD_ITEMS);
            store.adopt(&record(project_number, number..end)).await?;
            number = end;
        }
        // The snapshots name nothing, so their lists are not to be walked.
        let seen = evidence::Seen { read_upto: each, ..evidence::Seen::default() };
        let watch = Watch { seen, walked_upto: each, ..Watch::default() };
        let (owner, at) = (ProjectId::new(project(project_number)), Timestamp::from_micros(0));
        store.save_watch(&owner, &watch, at).await?;
        let repository = dir.join("state/repositories").join(project(project_number));
        write_snapshots(&repository, project_number, each)?;
    }
    store.close().await;
    Ok(())
}

fn write_snapshots(repository: &Path, project_number: u64, count: u64) -> Outcome<()> {
    let folder = repository.join("snapshots");
    fs::create_dir_all(&folder)?;
    for number in 0..count {
        let object = snapshot_object(project_number, number);
        fs::write(folder.join(snapshot_id(project_number, number)), object)?;
    }
    Ok(())
}

fn record(project_number: u64, numbers: std::ops::Range<u64>) -> Checkpoint {
    let at = |number: u64| Timestamp::from_micros(i64::try_from(number).unwrap_or(0) * 60_000_000);
    let record = CheckpointId::asked(&id(5, project_number, numbers.start));
    let project_id = ProjectId::new(project(project_number));
    let item = |number: u64| {
        let server = number % SERVERS;
        Item {
            id: ItemId::asked(&item_id(project_number, number)),
            checkpoint_id: record.clone(),
            project_id: project_id.clone(),
            name: format!("nightly-{number}"),
            description: String::new(),
            status: if number % 50 == 49 { ItemStatus::Error } else { ItemStatus::Available },
            source: SourceServer {
                id: ServerId::asked(&server_id(project_number, server)),
                name: format!("web-{server}"),
                kind: ServerKind::Kvm,
                zone: format!("z{}", server % 2),
                hardware: Hardware::default(),
            },
            trigger: Trigger::Automatic,
            method: Method::Incremental,
            created_at: at(number),
            updated_at: at(number),
            protected_at: Some(at(number)),
            finished_at: Some(at(number)),
            sequence: None,
            tags: Tag::new("tier", "gold").ok().into_iter().collect(),
            volumes: vec![VolumeBackup {
                id: VolumeBackupId::asked(&backup_id(project_number, number)),
                name: "root".to_owned(),
                source_volume_id: VolumeId::asked(&volume_id(project_number, server)),
                source_volume_name: "root".to_owned(),
                source_size_bytes: DISK_BYTES,
                role: VolumeRole::System,
                encryption: Encryption::Plain,
                stored: Some(StoredVolume {
                    folder: "1-root".to_owned(),
                    data_bytes: DISK_BYTES / 2,
                    read_bytes: DISK_BYTES / 50,
                    stored_bytes: DISK_BYTES / 100,
                    duration_ms: 4000,
                    method: Method::Incremental,
                    change_token: None,
                }),
            }],
            fault: None,
            progress: 100,
            job_id: JobId::asked(&id(6, project_number, number)),
            snapshot: Some(SnapshotRef {
                snapshot: snapshot_id(project_number, number),
                tree: snapshot_id(project_number, number),
            }),
        }
    };
    Checkpoint {
        id: record.clone(),
        project_id: project_id.clone(),
        created_at: at(numbers.start),
        plan_id: "plan".to_owned(),
        plan_name: "nightly".to_owned(),
        items: numbers.map(item).collect(),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// A hundred backups of a hundred servers in one request.
    Batches,
    /// One backup in one request.
    Single,
    /// The first page of a list with two filters.
    List,
    /// A page deep in that list, by marker.
    Deep,
    /// One question about every server of a project.
    Fleet,
}

impl How {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "batches" => Some(Self::Batches),
            "single" => Some(Self::Single),
            "list" => Some(Self::List),
            "deep" => Some(Self::Deep),
            "fleet" => Some(Self::Fleet),
            _ => None,
        }
    }
}

struct Load {
    items: u64,
    how: How,
    seconds: Duration,
    connections: u64,
    /// Requests a second over all connections; none: as fast as answers come.
    rate: Option<f64>,
}

#[derive(Default)]
struct Seen {
    requests: u64,
    entries: u64,
    took: Vec<Duration>,
}

impl Load {
    fn run(&self) -> Outcome<Value> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let tokens: Vec<String> = (0..PROJECTS).map(login).collect::<Outcome<_>>()?;
        let began = now();
        std::thread::scope(|scope| {
            let callers: Vec<_> = (0..self.connections)
                .map(|number| {
                    let (seen, tokens) = (Arc::clone(&seen), &tokens);
                    scope.spawn(move || self.call_on(number, tokens, began, &seen))
                })
                .collect();
            callers.into_iter().try_for_each(|caller| match caller.join() {
                Ok(outcome) => outcome,
                Err(_) => Err("a caller panicked".into()),
            })
        })?;
        let elapsed = began.elapsed().as_secs_f64();
        let mut seen = seen.lock().map_err(|_| "a caller panicked")?;
        seen.took.sort_unstable();
        let at = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a place in a list"
            )]
            let place = ((seen.took.len() as f64 - 1.0) * share) as usize;
            seen.took.get(place).map_or(0.0, |took| took.as_secs_f64() * 1000.0)
        };
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let per_second = |count: u64| (count as f64 / elapsed).round();
        Ok(json!({
            "requests_per_s": per_second(seen.requests),
            "entries_per_s": per_second(seen.entries),
            "p50_ms": round(at(0.5)), "p99_ms": round(at(0.99)), "max_ms": round(at(1.0)),
        }))
    }

    fn call_on(
        &self,
        connection: u64,
        tokens: &[String],
        began: Instant,
        seen: &Mutex<Seen>,
    ) -> Outcome<()> {
        // Lists are of one project; questions are spread over all.
        let project_number = match self.how {
            How::List | How::Deep | How::Fleet => 0,
            How::Batches | How::Single => connection % PROJECTS,
        };
        let token = tokens.get(usize::try_from(project_number)?).ok_or("no token")?;
        let mut wire = Wire::open()?;
        let mut random = connection.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut mine = Seen::default();
        let mut turn = 0_u32;
        while began.elapsed() < self.seconds {
            let due = self.wait_turn(connection, turn, began);
            turn += 1;
            let request = self.request(project_number, token, &mut random);
            let sent = due.unwrap_or_else(now);
            let answer = wire.call(&request)?;
            mine.took.push(sent.elapsed());
            mine.requests += 1;
            mine.entries += self.judge(&answer)?;
        }
        let mut all = seen.lock().map_err(|_| "a caller panicked")?;
        all.requests += mine.requests;
        all.entries += mine.entries;
        all.took.append(&mut mine.took);
        Ok(())
    }

    /// When the next request was due: what it waits for in us counts as its time.
    fn wait_turn(&self, connection: u64, turn: u32, began: Instant) -> Option<Instant> {
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let step = Duration::from_secs_f64(self.connections as f64 / self.rate?);
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let lag = step.mul_f64(connection as f64 / self.connections as f64);
        let due = began + lag + step * turn;
        std::thread::sleep(due.saturating_duration_since(now()));
        Some(due)
    }

    fn request(&self, project_number: u64, token: &str, random: &mut u64) -> String {
        let project = project(project_number);
        let each = self.items / PROJECTS;
        let list = format!("/v1/{project}/checkpoint_items?status=available&az=z1&limit={PAGE}");
        match self.how {
            How::Batches | How::Single => {
                let count = if self.how == How::Batches { BATCH } else { 1 };
                let body = json!({"check_restorable": (0..count).map(|at| {
                    question(project_number, available(each, at, count, random))
                }).collect::<Vec<_>>()});
                let path = format!("/v1/{project}/providers/{PROVIDER}/resources/action");
                post(&path, token, &body.to_string())
            }
            How::List => get(&list, token),
            How::Fleet => {
                let body = json!({"fleet": {"show": "all"}});
                post(&format!("/v1/{project}/fleet"), token, &body.to_string())
            }
            How::Deep => {
                // From the middle of the list on, so that a page follows.
                let deep = each / 4 + available(each, 0, 1, random) / 2;
                get(&format!("{list}&marker={}", item_id(project_number, deep)), token)
            }
        }
    }

    /// How many entries the answer has; each must be a yes.
    fn judge(&self, answer: &str) -> Outcome<u64> {
        let (word, expected) = match self.how {
            How::Batches => ("\"result\":true", BATCH),
            How::Single => ("\"result\":true", 1),
            // Two of a hundred have no backup that is available.
            How::Fleet => ("\"result\":true", SERVERS - SERVERS / 50),
            How::List | How::Deep => ("\"checkpoint_id\":", 1),
        };
        let count = u64::try_from(answer.matches(word).count())?;
        if count < expected {
            return Err(format!("{count} of {expected}: {answer:.500}").into());
        }
        Ok(count)
    }
}

/// A backup that can be restored: of server `at` where there are as many questions as
/// servers, else of any.
fn available(each: u64, at: u64, count: u64, random: &mut u64) -> u64 {
    loop {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let number = *random % each;
        let number = if count == SERVERS { number - number % SERVERS + at } else { number };
        if count == SERVERS && at % 50 == 49 {
            return number - 1;
        }
        if number % 50 != 49 && number < each {
            return number;
        }
    }
}

fn question(project_number: u64, number: u64) -> Value {
    let server = number % SERVERS;
    json!({
        "checkpoint_item_id": item_id(project_number, number),
        "target": {
            "resource_id": server_id(project_number, server),
            "resource_type": "OS::Nova::Server",
            "volumes": [{
                "backup_id": backup_id(project_number, number),
                "volume_id": volume_id(project_number, server),
            }],
        },
    })
}

fn login(project_number: u64) -> Outcome<String> {
    let body = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": "fleet", "domain": {"id": "default"}, "password": PASSWORD}}},
        "scope": {"project": {"id": project(project_number)}},
    }});
    let mut wire = Wire::open()?;
    let answer = wire.call(&post("/v3/auth/tokens", "", &body.to_string()))?;
    let token = answer.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-subject-token").then(|| value.trim().to_owned())
    });
    token.ok_or_else(|| format!("no token: {answer:.300}").into())
}

fn get(path: &str, token: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nX-Auth-Token: {token}\r\n\r\n")
}

fn post(path: &str, token: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {ADDRESS}\r\nX-Auth-Token: {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// One connection that is kept: the generator shall cost little beside what it measures.
struct Wire(BufReader<TcpStream>);

impl Wire {
    fn open() -> Outcome<Self> {
        let stream = TcpStream::connect(ADDRESS)?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::with_capacity(1 << 16, stream)))
    }

    /// Head and body of the answer, which must be a success.
    fn call(&mut self, request: &str) -> Outcome<String> {
        self.0.get_mut().write_all(request.as_bytes())?;
        let mut answer = String::new();
        let mut length = 0;
        let mut is_chunked = false;
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err("the service closed the connection".into());
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
            is_chunked |= line.eq_ignore_ascii_case("transfer-encoding: chunked\r\n");
            answer += &line;
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        while is_chunked && self.read_chunk(&mut body)? {}
        if !answer.starts_with("HTTP/1.1 2") {
            let text = String::from_utf8_lossy(&body);
            return Err(format!("{answer:.100}{text:.500}").into());
        }
        answer += std::str::from_utf8(&body)?;
        Ok(answer)
    }
}

impl Wire {
    /// Whether another may follow.
    fn read_chunk(&mut self, body: &mut Vec<u8>) -> Outcome<bool> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16)?;
        let begin = body.len();
        body.resize(begin + length + 2, 0);
        self.0.read_exact(body.get_mut(begin..).ok_or("no body")?)?;
        body.truncate(begin + length);
        Ok(length > 0)
    }
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn now() -> Instant {
    Instant::now()
}
