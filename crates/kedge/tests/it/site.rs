//! One machine for a test: a directory with a local cloud of one server, and the real
//! program as a child process that can be halted, paused, killed and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kedge_cli::{Client, ClientError, ProjectName};
use kedge_service::identity::hash_password_cheaply;
use kedge_wire::check::{CheckResp, RestorableParam, RestorableTarget, RestoreVolumeMapping};
use kedge_wire::checkpoint::Protect;
use kedge_wire::checkpoint_item::CheckpointItem;
use kedge_wire::fleet::{FleetLine, FleetParam};
use kedge_wire::proof::Proof;
use kedge_wire::restore::{RestoreParameters, RestoreTargets};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) const PROJECT: &str = "3f2b9c1d7a6e4c58b0d1e2f3a4b5c6d7";
pub(crate) const PASSWORD: &str = "correct horse battery staple";
pub(crate) const SERVER: &str = "5aa119a8-d25b-45a7-8d1b-88e127885635";
/// Backed up and restored first.
const SYSTEM_DISK: &str = "45baf976-c20a-4894-a7c3-c94b7376bf55";
const DATA_DISK: &str = "45baf976-c20a-4894-a7c3-c94b7376bf56";

/// Long enough that only a hang waits to its end, on whatever machine.
const LOOKS_MAX: u32 = 6_000;
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How much of a log is shown when a test fails.
const TAIL_LINES: usize = 40;

/// What lies on the two disks of the server, system disk first.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Disks(pub(crate) [Vec<u8>; 2]);

impl Disks {
    /// Holes, text and noise; disks of different seeds share most of their blocks.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random(seed);
        let mut fill = |mib: usize| {
            let mut disk = vec![0; mib << 20];
            Random(7).fill(&mut disk[1 << 20..2 << 20]);
            disk[(2 << 20) + 5..(3 << 20) - 77].fill(b'k');
            random.fill(&mut disk[(3 << 20) + 512..(3 << 20) + 90_000]);
            let end = disk.len();
            random.fill(&mut disk[end - 3000..]);
            disk
        };
        Self([fill(4), fill(6)])
    }

    /// Nothing of which is in any backup.
    pub(crate) fn of_noise(seed: u64) -> Self {
        let mut random = Random(!seed);
        let mut disks = [vec![0; 4 << 20], vec![0; 6 << 20]];
        disks.iter_mut().for_each(|disk| random.fill(disk));
        Self(disks)
    }
}

impl std::fmt::Debug for Disks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disks(..)")
    }
}

/// The same numbers in every run (splitmix64).
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&self.next().to_le_bytes()[..word.len()]);
        }
    }
}

/// How the program is started.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    Plain,
    /// Jobs halt at this point.
    HaltAt(&'a str),
    /// No file may grow beyond this.
    FileBytesMax(u64),
    /// Both.
    FileBytesMaxAndHaltAt(u64, &'a str),
}

impl<'a> Start<'a> {
    fn file_bytes_max(self) -> Option<u64> {
        match self {
            Self::FileBytesMax(bytes) | Self::FileBytesMaxAndHaltAt(bytes, _) => Some(bytes),
            Self::Plain | Self::HaltAt(_) => None,
        }
    }

    fn halt_at(self) -> Option<&'a str> {
        match self {
            Self::HaltAt(point) | Self::FileBytesMaxAndHaltAt(_, point) => Some(point),
            Self::Plain | Self::FileBytesMax(_) => None,
        }
    }
}

/// The part `log` of a configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    pub(crate) filter: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum LogFormat {
    Json,
    Text,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Json, filter: "info,kedge_api=warn" }
    }
}

/// A backup as tests name it.
#[derive(Clone, Debug)]
pub(crate) struct Backup {
    pub(crate) checkpoint: String,
    pub(crate) item: String,
    pub(crate) holds: Disks,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Site {
    dir: TempDir,
    log: Log,
    runtime: Runtime,
    child: Option<Child>,
    client: Option<Client>,
    /// Of every login so far.
    tokens: Vec<String>,
    /// Where the log of the running process begins.
    log_begins: u64,
    pub(crate) kills: u32,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with_log(Log::default())
    }

    pub(crate) fn with_log(log: Log) -> Self {
        let site = Self {
            dir: tempfile::tempdir().unwrap(),
            log,
            runtime: Runtime::new().unwrap(),
            child: None,
            client: None,
            tokens: Vec::new(),
            log_begins: 0,
            kills: 0,
        };
        fs::create_dir_all(site.server_dir()).unwrap();
        fs::write(site.server_dir().join("server.toml"), declaration()).unwrap();
        site.write_config();
        site.write_users();
        site.put_disks(&Disks::of(1));
        site
    }

    /// Gives the server and both disks this name.
    pub(crate) fn name_everything(&self, name: &str) {
        let quoted = serde_json::to_string(name).unwrap();
        let mut text = declaration();
        for given in ["web", "system", "data"] {
            text = text.replace(&format!("name = \"{given}\""), &format!("name = {quoted}"));
        }
        fs::write(self.server_dir().join("server.toml"), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_config(&self) {
        let dir = self.dir.path().display();
        let (filter, format) = (self.log.filter, self.log.format);
        let format = match format {
            LogFormat::Json => "json",
            LogFormat::Text => "text",
        };
        let text = format!(
            "state_dir = \"{dir}/state\"\nusers = \"{dir}/users.toml\"\n\
             listen = \"127.0.0.1:0\"\nlease_secs = {LEASE_SECS}\n\
             [cloud]\nkind = \"local\"\nservers_dir = \"{dir}/servers\"\n\
             [log]\nformat = \"{format}\"\nfilter = \"{filter}\"\n"
        );
        fs::write(self.path("kedge.toml"), text).unwrap();
    }

    /// Adds to the configuration, before the program is started.
    pub(crate) fn configure(&self, more: &str) {
        let mut file = OpenOptions::new().append(true).open(self.path("kedge.toml")).unwrap();
        file.write_all(more.as_bytes()).unwrap();
    }

    fn write_users(&self) {
        let hash = hash_password_cheaply(PASSWORD).unwrap();
        let text = format!(
            "[[project]]\nid = \"{PROJECT}\"\nname = \"demo\"\n\
             [[user]]\nid = \"ann\"\nname = \"ann\"\npassword_hash = \"{hash}\"\n\
             [[user.grant]]\nproject = \"{PROJECT}\"\nrole = \"member\"\n"
        );
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        file.open(self.path("users.toml")).unwrap().write_all(text.as_bytes()).unwrap();
    }
}

/// Short, so that a paused process soon loses its jobs; the least the program takes.
pub(crate) const LEASE_SECS: u64 = 6;

fn declaration() -> String {
    format!(
        "id = \"{SERVER}\"\nproject = \"{PROJECT}\"\nname = \"web\"\nkind = \"kvm\"\n\
         zone = \"eu-de-01\"\nram_mb = 1024\nvcpus = 2\n\
         [[disk]]\nid = \"{SYSTEM_DISK}\"\nname = \"system\"\nfile = \"system.qcow2\"\n\
         format = \"qcow2\"\nrole = \"system\"\n\
         [[disk]]\nid = \"{DATA_DISK}\"\nname = \"data\"\nfile = \"data.img\"\n\
         format = \"raw\"\nrole = \"data\"\n"
    )
}

/// The process.
impl Site {
    pub(crate) fn start(&mut self, how: Start<'_>) {
        assert!(self.child.is_none(), "it runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        self.log_begins = log.metadata().unwrap().len();
        self.release();
        let program = env!("CARGO_BIN_EXE_kedge");
        let mut command = match how.file_bytes_max() {
            None => Command::new(program),
            Some(bytes) => {
                let mut shell = Command::new("sh");
                let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes / 512);
                shell.args(["-c", &script, "sh", program]);
                shell
            }
        };
        command.arg("serve").arg("--config").arg(self.path("kedge.toml"));
        if let Some(point) = how.halt_at() {
            command.env("KEDGE_TEST_HALT_AT", point);
            command.env("KEDGE_TEST_HALT_FILE", self.halt_file());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        self.client = None;
    }

    /// Ends it as a power cut would, whatever it does.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
        self.kills += 1;
    }

    pub(crate) fn restart(&mut self, how: Start<'_>) {
        self.stop();
        self.start(how);
    }

    /// Ends it as an operator would.
    pub(crate) fn stop(&mut self) {
        self.log_line("serving on");
        self.signal(Signal::SIGTERM);
        let mut child = self.child.take().expect("it runs");
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log_tail());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().expect("it runs").id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    pub(crate) fn halt_file(&self) -> PathBuf {
        self.path("halted")
    }

    pub(crate) fn is_halted(&self) -> bool {
        self.halt_file().exists()
    }

    /// Waits until a job has come to the point where it halts.
    pub(crate) fn wait_until_halted(&mut self) {
        self.wait_for("a job halts", |site| site.is_halted().then_some(()));
    }

    /// Lets a halted job go on.
    pub(crate) fn release(&self) {
        let _ = fs::remove_file(self.halt_file());
    }

    /// Looks until there is something to see, or the process is gone.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        for _ in 0..LOOKS_MAX {
            if let Some(seen) = look(self) {
                return seen;
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
            if let Some(status) = ended {
                panic!("it ended ({status}) before {what}\n{}", self.log_tail());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        panic!("waited in vain until {what}\n{}", self.log_tail());
    }

    /// What the running process has logged so far, whole lines only. A line of text is an
    /// event that is all message.
    pub(crate) fn log(&self) -> Vec<Value> {
        let mut file = File::open(self.path("log")).unwrap();
        file.seek(SeekFrom::Start(self.log_begins)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let event = |line: &str| match self.log.format {
            LogFormat::Json => serde_json::from_str(line).ok(),
            LogFormat::Text => Some(serde_json::json!({ "message": line })),
        };
        whole.lines().filter_map(event).collect()
    }

    /// Waits for a message and returns its event.
    pub(crate) fn log_line(&mut self, part: &str) -> Value {
        self.wait_for(&format!("the log says {part:?}"), |site| {
            site.log().into_iter().find(|event| message(event).contains(part))
        })
    }

    /// The whole log as it lies there.
    pub(crate) fn log_bytes(&self) -> Vec<u8> {
        fs::read(self.path("log")).unwrap()
    }

    /// Whether any process of this site has logged this.
    pub(crate) fn has_logged(&self, part: &str) -> bool {
        fs::read_to_string(self.path("log")).unwrap().contains(part)
    }

    /// How often a process found a job that a dead one had been running.
    pub(crate) fn takeovers(&self) -> u32 {
        let log = fs::read_to_string(self.path("log")).unwrap();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let opened = events.filter(|event| message(event) == "the catalogue is open");
        opened.map(|event| u32::try_from(event["jobs"].as_u64().unwrap()).unwrap()).sum()
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

pub(crate) fn message(event: &Value) -> &str {
    event["message"].as_str().unwrap_or_default()
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The client.
impl Site {
    /// Calls the service, logging in first where that was not done yet.
    fn try_call<T>(
        &mut self,
        call: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => self.login(),
        };
        let answer = self.runtime.block_on(call(&client));
        self.client = Some(client);
        answer
    }

    fn call<T>(&mut self, call: impl AsyncFnOnce(&Client) -> Result<T, ClientError>) -> T {
        let answer = self.try_call(call);
        answer.unwrap_or_else(|error| panic!("{error}\n{}", self.log_tail()))
    }

    /// Calls until it is admitted: a backup is available some moments before its job has
    /// tidied up and given back its claims. A claim that stays fails the test.
    fn call_until_admitted<T>(
        &mut self,
        call: impl AsyncFn(&Client) -> Result<T, ClientError>,
    ) -> T {
        self.wait_for("a call is admitted", |site| match site.try_call(&call) {
            Ok(answer) => Some(answer),
            Err(ClientError::Refused { .. }) => None,
            Err(error) => panic!("{error}\n{}", site.log_tail()),
        })
    }

    fn login(&mut self) -> Client {
        let mut client = self.stranger();
        let project = ProjectName::Id(PROJECT.to_owned());
        self.runtime.block_on(client.login("ann", PASSWORD, &project)).unwrap();
        self.tokens.push(client.token().unwrap().to_owned());
        client
    }

    /// A client that is not logged in.
    fn stranger(&mut self) -> Client {
        let serving = self.log_line("serving on");
        let (_, url) = message(&serving).split_once("serving on ").unwrap();
        Client::new(url.split_whitespace().next().unwrap()).unwrap()
    }

    /// A login that must be refused.
    pub(crate) fn fail_to_login(&mut self, password: &str) {
        let mut client = self.stranger();
        let project = ProjectName::Id(PROJECT.to_owned());
        let refused = self.runtime.block_on(client.login("ann", password, &project));
        let is_refused = matches!(refused, Err(ClientError::Refused { status: 401, .. }));
        assert!(is_refused, "{refused:?}");
    }

    /// The tokens of every login so far.
    pub(crate) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// Asks for a backup of what lies on the disks now.
    pub(crate) fn protect(&mut self) -> Backup {
        let holds = self.disks();
        let asked = async |client: &Client| client.protect(SERVER, Protect::default()).await;
        let checkpoint = self.call_until_admitted(asked).id;
        let items = self.items();
        let item = items.into_iter().find(|item| item.checkpoint_id == checkpoint).unwrap().id;
        Backup { checkpoint, item, holds }
    }

    /// Asks for a restore to where the backup came from; returns its id.
    pub(crate) fn restore(&mut self, backup: &Backup) -> String {
        let volumes = self.mapping(backup);
        let parameters = RestoreParameters {
            checkpoint_item_id: backup.item.clone(),
            power_on: true,
            targets: RestoreTargets { server_id: SERVER.to_owned(), volumes, resource_type: None },
            plan_id: None,
        };
        self.call_until_admitted(async |client| {
            client.restore(&backup.checkpoint, parameters.clone()).await
        })
        .id
    }

    pub(crate) fn delete(&mut self, backup: &Backup) {
        self.call_until_admitted(async |client| {
            client.delete_checkpoint(&backup.checkpoint, &[]).await
        });
    }

    /// Could the backup be restored to where it came from?
    pub(crate) fn check_restorable(&mut self, backup: &Backup) -> CheckResp {
        let question = self.question(backup);
        let answers = self.call(async |client| client.check_restorable(vec![question]).await);
        answers.into_iter().next().unwrap()
    }

    /// The same, explained.
    fn explain_restorable(&mut self, backup: &Backup) -> CheckResp {
        let question = self.question(backup);
        let answers = self.call(async |client| client.explain_restorable(vec![question]).await);
        answers.into_iter().next().unwrap()
    }

    /// The same, kept as a signed record; returns what was signed.
    pub(crate) fn receipt_restorable(&mut self, backup: &Backup) -> String {
        let question = self.question(backup);
        let answer = self.call(async |client| client.receipt_restorable(vec![question]).await);
        answer.receipt.unwrap().body
    }

    /// What could not be restored, asked over a socket and read as it comes.
    pub(crate) fn ask_fleet(&mut self, fleet: &FleetParam) -> Vec<FleetLine> {
        self.call(async |client| {
            let mut lines = Vec::new();
            client.ask_fleet(fleet.clone(), |line| lines.push(line)).await?;
            Ok(lines)
        })
    }

    fn question(&mut self, backup: &Backup) -> RestorableParam {
        RestorableParam {
            checkpoint_item_id: backup.item.clone(),
            target: RestorableTarget {
                resource_id: SERVER.to_owned(),
                resource_type: "OS::Nova::Server".to_owned(),
                volumes: self.mapping(backup),
            },
        }
    }

    fn mapping(&mut self, backup: &Backup) -> Vec<RestoreVolumeMapping> {
        let pair = |volume: kedge_wire::checkpoint_item::VolumeBackup| RestoreVolumeMapping {
            backup_id: volume.id,
            volume_id: volume.source_volume_id,
        };
        self.item(backup).extend_info.volume_backups.into_iter().map(pair).collect()
    }

    pub(crate) fn items(&mut self) -> Vec<CheckpointItem> {
        self.call(async |client| client.list_items(&[]).await)
    }

    pub(crate) fn item(&mut self, backup: &Backup) -> CheckpointItem {
        self.call(async |client| client.get_item(&backup.item).await)
    }

    pub(crate) fn restore_status(&mut self, restore: &str) -> String {
        self.call(async |client| client.get_restore(restore).await).status
    }

    /// Drills a backup, and waits for what comes of it.
    pub(crate) fn drill(&mut self, backup: &Backup) -> Proof {
        let item = backup.item.clone();
        let asked = self.call(async |client| client.create_proof(&item, "drill").await);
        self.wait_for("the drill ends", |site| {
            let proofs = site.call(async |client| client.list_proofs(&item).await);
            proofs.into_iter().find(|proof| proof.id == asked.id && proof.status == "done")
        })
    }

    /// What is known of a backup's bytes, by its letter.
    pub(crate) fn grade(&mut self, backup: &Backup) -> String {
        let answer = self.explain_restorable(backup);
        answer.explanation.unwrap().evidence.unwrap().grade
    }

    /// Waits until nothing happens to a backup any more, and says how it ended.
    pub(crate) fn settled(&mut self, backup: &Backup) -> CheckpointItem {
        self.wait_for("the backup settles", |site| {
            Some(site.item(backup)).filter(|item| matches!(&*item.status, "available" | "error"))
        })
    }

    pub(crate) fn wait_until_available(&mut self, backup: &Backup) {
        let item = self.settled(backup);
        let why = item.extend_info.fail_reason;
        assert_eq!(item.status, "available", "{why}\n{}", self.log_tail());
    }

    /// Waits for the end of a restore that must succeed, and compares every byte.
    pub(crate) fn wait_until_restored(&mut self, backup: &Backup, restore: &str) {
        self.wait_until_available(backup);
        let status = self.restore_status(restore);
        assert_eq!(status, "success", "{}", self.log_tail());
        assert!(self.disks() == backup.holds, "restored bytes differ");
        assert_eq!(self.cloud_state()["power"], "active");
    }

    pub(crate) fn wait_until_deleted(&mut self, backup: &Backup) {
        self.wait_for("the backup is gone", |site| {
            site.items().iter().all(|item| item.id != backup.item).then_some(())
        });
    }
}

/// The disks.
impl Site {
    fn server_dir(&self) -> PathBuf {
        self.path("servers/web")
    }

    pub(crate) fn system_disk(&self) -> PathBuf {
        self.server_dir().join("system.qcow2")
    }

    pub(crate) fn data_disk(&self) -> PathBuf {
        self.server_dir().join("data.img")
    }

    /// Puts bytes onto both disks, as sparse as they can be.
    pub(crate) fn put_disks(&self, disks: &Disks) {
        let raw = self.path("disk.raw");
        write_sparse(&raw, &disks.0[0]);
        let new = self.path("new.qcow2");
        run(Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &new]));
        fs::rename(&new, self.system_disk()).unwrap();
        write_sparse(&raw, &disks.0[1]);
        fs::rename(&raw, self.data_disk()).unwrap();
    }

    /// What lies on both disks, read by other programs than the one under test.
    pub(crate) fn disks(&self) -> Disks {
        let raw = self.path("read.raw");
        let mut convert = Command::new("qemu-img");
        convert.args(["convert", "-U", "-f", "qcow2", "-O", "raw"]);
        run(convert.arg(self.system_disk()).arg(&raw));
        let disks = Disks([fs::read(&raw).unwrap(), fs::read(self.data_disk()).unwrap()]);
        fs::remove_file(raw).unwrap();
        disks
    }

    /// What the local cloud keeps about the server.
    pub(crate) fn cloud_state(&self) -> Value {
        let text = fs::read(self.server_dir().join("kedge-state.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// How many of the server's disks are marked as half written.
    pub(crate) fn marks(&self) -> usize {
        self.cloud_state()["marks"].as_object().unwrap().len()
    }

    fn assert_nothing_left_in_the_cloud(&self) {
        let state = self.cloud_state();
        assert_eq!(state["marks"], serde_json::json!({}), "{}", self.log_tail());
        assert_eq!(state["snapshots"], serde_json::json!({}), "{}", self.log_tail());
        assert_eq!(state["lock_holder"], Value::Null, "{}", self.log_tail());
        let names = names_in(&self.server_dir());
        let is_leftover = |name: &&String| name.contains("partial") || name.contains("time");
        assert_eq!(names.iter().find(is_leftover), None);
        let clones = self.server_dir().join(".kedge");
        assert_eq!(names_in(&clones), BTreeSet::new(), "clones");
    }
}

fn write_sparse(path: &Path, bytes: &[u8]) {
    let file = File::create(path).unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (number, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, number as u64 * 4096).unwrap();
        }
    }
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    output
}

/// The repository.
impl Site {
    pub(crate) fn repository(&self) -> PathBuf {
        self.path("state/repositories").join(PROJECT)
    }

    /// The objects of a kind, by their names.
    pub(crate) fn objects(&self, kind: &str) -> BTreeSet<String> {
        names_in(&self.repository().join(kind))
    }

    /// What a recovery kit tells restic.
    pub(crate) fn recovery_kit(&self) -> BTreeMap<String, String> {
        let mut kit = Command::new(env!("CARGO_BIN_EXE_kedge"));
        kit.args(["repo", "recovery-kit", "--stdout", "--project", PROJECT, "--config"]);
        let kit = String::from_utf8(run(kit.arg(self.path("kedge.toml"))).stdout).unwrap();
        let told = kit.lines().filter(|line| line.starts_with("RESTIC_"));
        let pairs = told.map(|line| line.split_once('=').unwrap());
        pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned())).collect()
    }

    /// Stock restic, with what a recovery kit tells.
    pub(crate) fn restic(&self, arguments: &[&str]) -> Vec<u8> {
        let mut restic = Command::new("restic");
        restic.envs(self.recovery_kit());
        run(restic.args(["--no-cache", "--no-lock"]).args(arguments)).stdout
    }

    /// Nothing is left of jobs that ended, and there is a snapshot for each of these
    /// backups and no other. Lock objects of dead attempts are removed at the next start.
    pub(crate) fn assert_clean(&mut self, backups: &[&Backup]) {
        self.restart(Start::Plain);
        self.wait_for("no lock object is left", |site| {
            site.objects("locks").is_empty().then_some(())
        });
        assert_eq!(self.restic(&["list", "locks"]), b"");
        let snapshots: Value =
            serde_json::from_slice(&self.restic(&["snapshots", "--json"])).unwrap();
        let mut found: Vec<_> = snapshots
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|snapshot| snapshot["tags"].as_array().unwrap())
            .filter_map(|tag| tag.as_str()?.strip_prefix("kedge-item:"))
            .collect();
        found.sort_unstable();
        let mut expected: Vec<_> = backups.iter().map(|backup| backup.item.as_str()).collect();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(snapshots.as_array().unwrap().len(), expected.len());
        let listed = self.items();
        let available = listed.iter().filter(|item| item.status == "available");
        let mut available: Vec<_> = available.map(|item| item.id.as_str()).collect();
        available.sort_unstable();
        assert_eq!(available, expected);
        self.assert_nothing_left_in_the_cloud();
    }

    /// Stock restic finds nothing wrong.
    pub(crate) fn assert_sound(&self) {
        self.restic(&["check"]);
    }

    /// Stock restic has read every byte and finds nothing wrong.
    pub(crate) fn assert_sound_to_the_last_byte(&self) {
        self.restic(&["check", "--read-data"]);
    }
}
