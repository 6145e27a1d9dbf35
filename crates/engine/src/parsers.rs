//! Every parser of stored bytes, fed with anything: arbitrary bytes, and documents that
//! were right before something in them was replaced. What they may do is fail.

use std::{path::PathBuf, process::Command, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    Backend, CancelFlag, CreateOptions, EngineError, Indexed, KdfCost, KeyId, LockId,
    MemoryBackend, NoProgress, ObjectKind, ObjectName, OpenGate, Password, ReadData, Repository,
    Session, SnapshotId, SnapshotMeta, Source, StoreOptions, Timestamp, TreeId,
    blob::{BlobKind, Decoder},
    id::{IndexId, MarkId, sha256},
    index::Location,
    pack,
    source::{Extent, ExtentKind, SourceError},
};

const PASSWORD: &str = "x";

/// A repository with one backup, to plant objects in.
struct Lab {
    backend: Arc<MemoryBackend>,
    repo: Arc<Repository<Indexed>>,
    snapshot: SnapshotId,
}

struct Bytes(Vec<u8>);

impl Source for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn next_extent(&self, offset: u64) -> Result<Extent, SourceError> {
        Ok(Extent { offset, len: self.size_bytes() - offset, kind: ExtentKind::Data })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), SourceError> {
        let start = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&self.0[start..start + buf.len()]);
        Ok(())
    }
}

fn now() -> Timestamp {
    Timestamp::from_micros(1_795_471_871_000_000)
}

fn meta(tree: TreeId) -> SnapshotMeta {
    SnapshotMeta {
        time: now(),
        tree,
        identity_tag: "tag".into(),
        tags: vec![],
        paths: vec!["/server".into()],
        hostname: "server".into(),
        username: "kedge".into(),
        parent: None,
        program_version: "kedge".into(),
    }
}

impl Lab {
    fn new() -> Self {
        let backend = Arc::new(MemoryBackend::new());
        let password = Password::new(PASSWORD);
        let options = CreateOptions {
            password: &password,
            kdf: KdfCost::CHEAP,
            created_at: now(),
            access: None,
        };
        let shared = Arc::clone(&backend) as Arc<dyn Backend>;
        let repo = Repository::create(shared, &options).unwrap().load_index().unwrap();
        let repo = Arc::new(repo);
        let session = begin(&repo).unwrap();
        let options = StoreOptions {
            chunk_size: None,
            zstd_level: 1,
            verify_before_store: true,
            threads: std::num::NonZeroUsize::MIN,
            modified_at: now(),
        };
        let source = Bytes(b"a volume".repeat(100));
        let stored = session.store_volume(&source, None, &options, &NoProgress).unwrap();
        let volumes = [("vol", stored.subtree)];
        let tree = session.finish_tree(&volumes, &[("server.json", b"{}")], now()).unwrap();
        let snapshot = session.write_snapshot(&meta(tree)).unwrap();
        session.close().unwrap();
        Self { backend, repo, snapshot }
    }

    /// The plain JSON of an object the repository holds.
    fn json_of(&self, kind: ObjectKind) -> Value {
        let name = self.backend.list(kind).unwrap()[0].name;
        self.repo.vault.get_document(&name).unwrap()
    }

    fn sealed(&self, plain: &[u8]) -> Vec<u8> {
        self.repo.vault.key.seal(plain).unwrap()
    }

    /// Plants an object, uses it in every way, and takes it out again.
    fn try_object(&self, kind: ObjectKind, bytes: &[u8]) {
        let hash = sha256(bytes);
        let name = match kind {
            ObjectKind::Config => ObjectName::Config,
            ObjectKind::Access => ObjectName::Access,
            ObjectKind::Key => ObjectName::Key(KeyId(hash)),
            ObjectKind::Pack => ObjectName::Pack(crate::PackId(hash)),
            ObjectKind::Index => ObjectName::Index(IndexId(hash)),
            ObjectKind::Snapshot => ObjectName::Snapshot(SnapshotId(hash)),
            ObjectKind::Lock => ObjectName::Lock(LockId(hash)),
            ObjectKind::Mark => ObjectName::Mark(MarkId(hash)),
        };
        let before = self.backend.get(&name, u64::MAX).ok();
        self.backend.put(&name, bytes).unwrap();
        // Errors are answers; only a panic fails the test.
        let _ = self.use_all();
        match before {
            Some(before) => self.backend.put(&name, &before).unwrap(),
            None => self.backend.delete(&name).unwrap(),
        }
    }

    fn use_all(&self) -> Result<(), EngineError> {
        let backend = Arc::clone(&self.backend) as Arc<dyn Backend>;
        let _ = Repository::find_access(&*backend);
        let repo = Repository::open(backend, &Password::new(PASSWORD))?.load_index()?;
        let repo = Arc::new(repo);
        let _ = repo.check(ReadData::Yes, &CancelFlag::new());
        let _ = repo.survey_snapshots();
        let _ = repo.list_sessions();
        let _ = begin(&repo).map(Session::close);
        for snapshot in repo.survey_snapshots()?.0 {
            let _ = read_snapshot(&repo, snapshot.id);
        }
        Ok(())
    }

    /// Stores bytes as a tree, and as what a root calls a volume, and reads them.
    fn try_tree(&self, json: &[u8]) -> Result<(), EngineError> {
        let session = begin(&self.repo)?;
        let tree = session.store_tree_json(json)?;
        let root = session.finish_tree(&[("vol", tree)], &[], now())?;
        for tree in [tree, root] {
            let name = self.repo.vault.put_document(
                |hash| ObjectName::Snapshot(SnapshotId(hash)),
                &json!({"time": now().to_string(), "tree": tree.to_string()}),
            )?;
            if let ObjectName::Snapshot(id) = name {
                let _ = read_snapshot(&self.repo, id);
                let _ = self.repo.check(ReadData::No, &CancelFlag::new());
            }
            self.backend.delete(&name).unwrap();
        }
        session.close()
    }
}

fn begin(repo: &Arc<Repository<Indexed>>) -> Result<Session, EngineError> {
    repo.begin_session("session", now(), Arc::new(OpenGate), CancelFlag::new())
}

fn read_snapshot(repo: &Arc<Repository<Indexed>>, id: SnapshotId) -> Result<(), EngineError> {
    let snapshot = repo.open_snapshot(id)?;
    for name in snapshot.volume_names() {
        let volume = snapshot.volume(name)?;
        assert!(volume.size_bytes() < u64::MAX || volume.chunk_size().is_none());
    }
    for name in snapshot.file_names() {
        let _ = snapshot.file(name);
    }
    Ok(())
}

/// What a replaced part of a document becomes.
fn a_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![0, 1, 32, 33, 1 << 31, (1 << 32) - 1, 1 << 32, u64::MAX])
            .prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        "[0-9a-f]{64}".prop_map(Value::from),
        prop::sample::select(vec!["", "..", "/", "dir", "file", "data", "tree", "disk.raw"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z]{0,6}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Replaces, removes or repeats the part the numbers lead to.
fn mutate(value: &mut Value, path: &[usize], by: &Value, how: u8) {
    let [first, rest @ ..] = path else {
        *value = by.clone();
        return;
    };
    match value {
        Value::Array(items) if !items.is_empty() => {
            let at = first % items.len();
            if !rest.is_empty() {
                mutate(&mut items[at], rest, by, how);
            } else if how == 0 {
                items.remove(at);
            } else if how == 1 {
                let again = items[at].clone();
                items.extend(std::iter::repeat_n(again, 3));
            } else {
                items[at] = by.clone();
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let key = fields.keys().nth(first % fields.len()).unwrap().clone();
            if !rest.is_empty() {
                mutate(&mut fields[&key], rest, by, how);
            } else if how == 0 {
                fields.remove(&key);
            } else {
                fields[&key] = by.clone();
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => *value = by.clone(),
    }
}

fn a_mutation() -> impl Strategy<Value = (Vec<usize>, Value, u8)> {
    (prop::collection::vec(any::<usize>(), 0..7), a_value(), 0..4_u8)
}

/// The JSON of a document with some bytes replaced.
fn spoil(json: &mut [u8], bytes: &[(usize, u8)]) {
    let len = json.len().max(1);
    for (at, byte) in bytes {
        if let Some(place) = json.get_mut(at % len) {
            *place = *byte;
        }
    }
}

fn compressed(json: &[u8]) -> Vec<u8> {
    [&[2], zstd::bulk::compress(json, 1).unwrap().as_slice()].concat()
}

const DOCUMENTS: [ObjectKind; 4] =
    [ObjectKind::Index, ObjectKind::Snapshot, ObjectKind::Lock, ObjectKind::Mark];

/// A right document of each kind.
fn documents(lab: &Lab) -> Vec<(ObjectKind, Value)> {
    let blob = "07".repeat(32);
    let session = begin(&lab.repo).unwrap();
    let lock = lab.json_of(ObjectKind::Lock);
    session.close().unwrap();
    vec![
        (ObjectKind::Index, lab.json_of(ObjectKind::Index)),
        (ObjectKind::Snapshot, lab.json_of(ObjectKind::Snapshot)),
        (ObjectKind::Lock, lock),
        (ObjectKind::Mark, json!({"condemned": {"packs": [blob], "suspects": [blob]}})),
        (ObjectKind::Mark, json!({"awaited": {"mark": blob, "sessions": ["s"]}})),
        (ObjectKind::Mark, json!({"gone": {"packs": [blob]}})),
        (
            ObjectKind::Mark,
            json!({"damaged": {"pack": blob, "blobs": [blob], "whole": false, "what": "x"}}),
        ),
    ]
}

fn config(lab: &Lab) -> Value {
    let sealed = lab.backend.get(&ObjectName::Config, u64::MAX).unwrap();
    serde_json::from_slice(&lab.repo.vault.key.open(&sealed).unwrap()).unwrap()
}

fn key_object(lab: &Lab) -> Value {
    let name = lab.backend.list(ObjectKind::Key).unwrap()[0].name;
    serde_json::from_slice(&lab.backend.get(&name, u64::MAX).unwrap()).unwrap()
}

/// Whether trying a key of this cost would only heat the room.
fn is_costly(key: &Value) -> bool {
    let number = |field: &str| key.get(field).and_then(Value::as_u64).unwrap_or(0);
    let memory = number("N").saturating_mul(number("r"));
    memory.saturating_mul(number("p").max(1)) > 1 << 12
}

fn trees(lab: &Lab) -> Vec<Value> {
    let snapshot = lab.repo.get_snapshot(lab.snapshot).unwrap();
    let load = |tree: TreeId| -> Value {
        let open = |sealed: &[u8], location: Location| {
            let mut decoder = Decoder::new().map_err(|error| error.to_string())?;
            let (key, id) = (&lab.repo.vault.key, tree.blob());
            let plain = decoder.decode_verified(key, sealed, location.shape, id);
            plain.map(<[u8]>::to_vec).map_err(|fault| fault.to_string())
        };
        let json = lab.repo.load_blob(BlobKind::Tree, tree.blob(), open).unwrap();
        serde_json::from_slice(&json).unwrap()
    };
    let volume = lab.repo.open_snapshot(lab.snapshot).unwrap().volume("vol").unwrap();
    vec![load(snapshot.tree), load(volume.subtree())]
}

#[test]
fn arbitrary_bytes_make_no_parser_panic() {
    let lab = Lab::new();
    let all = [
        ObjectKind::Config,
        ObjectKind::Access,
        ObjectKind::Key,
        ObjectKind::Pack,
        ObjectKind::Index,
        ObjectKind::Snapshot,
        ObjectKind::Lock,
        ObjectKind::Mark,
    ];
    proptest!(|(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..all.len())| {
        lab.try_object(all[kind], &bytes);
        lab.try_object(all[kind], &lab.sealed(&bytes));
        let with_version = [&[2], bytes.as_slice()].concat();
        lab.try_object(all[kind], &lab.sealed(&with_version));
        lab.try_object(all[kind], &lab.sealed(&compressed(&bytes)));
        lab.try_tree(&bytes).unwrap();
        let _ = pack::parse_header(&bytes);
    });
}

#[test]
fn documents_with_a_part_replaced_make_no_parser_panic() {
    let lab = Lab::new();
    let documents = documents(&lab);
    assert!(DOCUMENTS.iter().all(|kind| documents.iter().any(|(other, _)| other == kind)));
    for (kind, value) in &documents {
        lab.try_object(*kind, &lab.sealed(value.to_string().as_bytes()));
    }
    proptest!(|(
        which in 0..documents.len(),
        (path, by, how) in a_mutation(),
        bytes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..3),
    )| {
        let (kind, mut value) = documents[which].clone();
        mutate(&mut value, &path, &by, how);
        let mut json = value.to_string().into_bytes();
        lab.try_object(kind, &lab.sealed(&compressed(&json)));
        spoil(&mut json, &bytes);
        lab.try_object(kind, &lab.sealed(&json));
    });
}

#[test]
fn configs_and_keys_with_a_part_replaced_make_no_parser_panic() {
    let lab = Lab::new();
    let (config, key) = (config(&lab), key_object(&lab));
    proptest!(|(
        (path, by, how) in a_mutation(),
        bytes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..3),
    )| {
        let mut value = config.clone();
        mutate(&mut value, &path, &by, how);
        let mut json = value.to_string().into_bytes();
        spoil(&mut json, &bytes);
        lab.try_object(ObjectKind::Config, &lab.sealed(&json));

        let mut value = key.clone();
        mutate(&mut value, &path, &by, how);
        let mut json = value.to_string().into_bytes();
        spoil(&mut json, &bytes);
        if !serde_json::from_slice(&json).is_ok_and(|value| is_costly(&value)) {
            lab.try_object(ObjectKind::Key, &json);
        }
    });
}

/// The part of a key object that only the password opens.
#[test]
fn a_master_key_with_a_part_replaced_makes_no_parser_panic() {
    let lab = Lab::new();
    let object = key_object(&lab);
    let text = |field: &str| crate::base64::decode(object[field].as_str().unwrap()).unwrap();
    let wrapping = KdfCost::CHEAP.derive(&Password::new(PASSWORD), &text("salt")).unwrap();
    let master: Value = serde_json::from_slice(&wrapping.open(&text("data")).unwrap()).unwrap();
    let name = lab.backend.list(ObjectKind::Key).unwrap()[0].name;
    lab.backend.delete(&name).unwrap();
    proptest!(|((path, by, how) in a_mutation())| {
        let mut value = master.clone();
        mutate(&mut value, &path, &by, how);
        let sealed = wrapping.seal(value.to_string().as_bytes()).unwrap();
        let mut object = object.clone();
        object["data"] = crate::base64::encode(&sealed).as_str().into();
        lab.try_object(ObjectKind::Key, object.to_string().as_bytes());
    });
}

#[test]
fn trees_with_a_part_replaced_make_no_parser_panic() {
    let lab = Lab::new();
    let trees = trees(&lab);
    proptest!(|(
        which in 0..trees.len(),
        (path, by, how) in a_mutation(),
        bytes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..3),
    )| {
        let mut value = trees[which].clone();
        mutate(&mut value, &path, &by, how);
        let mut json = value.to_string().into_bytes();
        spoil(&mut json, &bytes);
        lab.try_tree(&json).unwrap();
    });
}

proptest! {
    #[test]
    fn a_pack_header_is_whole_or_refused(
        count in 0..40_usize,
        kinds in prop::collection::vec(0..6_u8, 40),
        lengths in prop::collection::vec(any::<u32>(), 80),
        cut in 0..3_usize,
    ) {
        let mut header = Vec::new();
        for number in 0..count {
            header.push(kinds[number]);
            header.extend_from_slice(&lengths[number].to_le_bytes());
            if kinds[number] >= 2 {
                header.extend_from_slice(&lengths[number + 40].to_le_bytes());
            }
            header.extend_from_slice(&[7; 32]);
        }
        header.truncate(header.len().saturating_sub(cut));
        if let Some(blobs) = pack::parse_header(&header) {
            prop_assert_eq!(blobs.len(), count);
            let ends = blobs.windows(2).all(|pair| {
                pair[0].offset.checked_add(pair[0].shape.length) == Some(pair[1].offset)
            });
            prop_assert!(ends);
        }
    }
}

/// Everything in here claims to be huge, or is when unpacked.
#[test]
fn greedy_documents_are_refused() {
    let lab = Lab::new();
    let nested = "[".repeat(1 << 20).into_bytes();
    let mut bomb = vec![2];
    let zeroes = vec![b' '; 1 << 20];
    {
        use std::io::Write;
        let mut encoder = zstd::stream::write::Encoder::new(&mut bomb, 1).unwrap();
        for _ in 0..520 {
            encoder.write_all(&zeroes).unwrap();
        }
        encoder.finish().unwrap();
    }
    for kind in DOCUMENTS {
        lab.try_object(kind, &lab.sealed(&nested));
        lab.try_object(kind, &lab.sealed(&compressed(&nested)));
        lab.try_object(kind, &lab.sealed(&bomb));
    }
    lab.try_tree(&nested).unwrap();
    let blob = "ab".repeat(32);
    for length in [33_u64, 1 << 20, (1 << 32) - 1, 1 << 32, u64::MAX] {
        for plain in [0, 1 << 26, 1 << 30, (1 << 32) - 1, u64::MAX] {
            let index = json!({"packs": [{"id": blob, "blobs": [
                {"id": blob, "type": "tree", "offset": 0, "length": length,
                 "uncompressed_length": plain},
            ]}]});
            lab.try_object(ObjectKind::Index, &lab.sealed(index.to_string().as_bytes()));
        }
    }
    for (cost, r, p) in [(1_u64 << 40, 8, 1), (1 << 63, 1, 1), (16, 1 << 30, 1), (16, 8, 1 << 31)] {
        let mut key = key_object(&lab);
        key["N"] = Value::from(cost);
        key["r"] = Value::from(r);
        key["p"] = Value::from(p);
        let object = key.to_string();
        let name = ObjectName::Key(KeyId(sha256(object.as_bytes())));
        let ours = lab.backend.list(ObjectKind::Key).unwrap()[0].name;
        let original = lab.backend.get(&ours, u64::MAX).unwrap();
        lab.backend.delete(&ours).unwrap();
        lab.backend.put(&name, object.as_bytes()).unwrap();
        let backend = Arc::clone(&lab.backend) as Arc<dyn Backend>;
        let opened = Repository::open(backend, &Password::new(PASSWORD));
        assert!(matches!(opened, Err(EngineError::Damaged { .. })), "{opened:?}");
        lab.backend.delete(&name).unwrap();
        lab.backend.put(&ours, &original).unwrap();
    }
}

/// The test above once more, in a process that may not have more than this.
#[test]
fn greedy_documents_are_refused_in_two_gib_of_address_space() {
    const KIB_MAX: u64 = 2 << 20;
    let program: PathBuf = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -v {KIB_MAX} && exec \"$0\" \"$@\"")])
        .arg(program)
        .args(["--exact", "parsers::greedy_documents_are_refused"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
