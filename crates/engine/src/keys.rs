//! Key objects: the master key, wrapped by a key derived from a password.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    backend::{Backend, ObjectKind, ObjectName},
    base64,
    crypto::{KdfCost, Key, Password, fill_random},
    document,
    error::EngineError,
    id::{KeyId, sha256},
    time::Timestamp,
};

const KEY_OBJECT_BYTES_MAX: u64 = 64 << 10;
/// Each costs a scrypt; restic tries as many.
const KEYS_MAX: usize = 20;
const SALT_BYTES: usize = 64;
const KDF_NAME: &str = "scrypt";
/// Who a key object of ours says made it. restic writes the user and the host.
const USERNAME: &str = "kedge";

#[derive(Serialize, Deserialize)]
struct KeyFile {
    #[serde(default)]
    created: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    hostname: String,
    kdf: String,
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
    salt: String,
    data: String,
}

#[derive(Serialize, Deserialize)]
struct MasterKeyFile {
    mac: MacKeyFile,
    encrypt: Zeroizing<String>,
}

#[derive(Serialize, Deserialize)]
struct MacKeyFile {
    k: Zeroizing<String>,
    r: Zeroizing<String>,
}

/// Stores `master` wrapped by a password.
pub(crate) fn put(
    backend: &dyn Backend,
    master: &Key,
    password: &Password,
    kdf: KdfCost,
    created_at: Timestamp,
) -> Result<KeyId, EngineError> {
    let mut salt = [0; SALT_BYTES];
    fill_random(&mut salt)?;
    let (encrypt, k, r) = master.parts();
    let plain = document::to_json(&MasterKeyFile {
        mac: MacKeyFile { k: base64::encode(k), r: base64::encode(r) },
        encrypt: base64::encode(encrypt),
    })?;
    let sealed = kdf.derive(password, &salt)?.seal(&plain)?;
    let object = document::to_json(&KeyFile {
        created: created_at.to_string(),
        username: USERNAME.into(),
        hostname: String::new(),
        kdf: KDF_NAME.into(),
        n: kdf.n(),
        r: kdf.r(),
        p: kdf.p(),
        salt: base64::encode(&salt).to_string(),
        data: base64::encode(&sealed).to_string(),
    })?;
    let id = KeyId(sha256(&object));
    let name = ObjectName::Key(id);
    backend.put(&name, &object).map_err(|error| EngineError::writing(&name, error))?;
    Ok(id)
}

/// Stores `master` wrapped by one more password, and opens it as the next reader will:
/// only so many key objects are tried, and one beyond them would open nothing.
pub(crate) fn add(
    backend: &dyn Backend,
    master: &Key,
    password: &Password,
    kdf: KdfCost,
    created_at: Timestamp,
) -> Result<KeyId, EngineError> {
    let id = put(backend, master, password, kdf, created_at)?;
    match open(backend, &list(backend)?, password) {
        Ok(_) => Ok(id),
        Err(error) => {
            let name = ObjectName::Key(id);
            backend.delete(&name).map_err(|error| EngineError::writing(&name, error))?;
            Err(error)
        }
    }
}

/// Removes the key objects that this engine made, but for one; says how many there were.
/// Those that others added stay, and so do those that cannot be read: they open nothing.
pub(crate) fn remove_own_but(backend: &dyn Backend, keep: KeyId) -> Result<usize, EngineError> {
    let mut removed = 0;
    for listed in backend.list(ObjectKind::Key).map_err(EngineError::List)? {
        let name = listed.name;
        if name != ObjectName::Key(keep) && is_own(backend, &name)? {
            backend.delete(&name).map_err(|error| EngineError::writing(&name, error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn is_own(backend: &dyn Backend, name: &ObjectName) -> Result<bool, EngineError> {
    let object = match backend.get(name, KEY_OBJECT_BYTES_MAX) {
        Ok(object) => object,
        Err(error) => {
            return match EngineError::reading(name, error) {
                EngineError::Damaged { .. } => Ok(false),
                error => Err(error),
            };
        }
    };
    let file: Result<KeyFile, _> = document::from_json(&object);
    Ok(file.is_ok_and(|file| file.username == USERNAME && file.hostname.is_empty()))
}

/// The names of the key objects, sorted so that every opening tries them alike.
pub(crate) fn list(backend: &dyn Backend) -> Result<Vec<ObjectName>, EngineError> {
    let listed = backend.list(ObjectKind::Key).map_err(EngineError::List)?;
    let mut names: Vec<_> = listed.into_iter().map(|listed| listed.name).collect();
    names.sort_unstable();
    names.truncate(KEYS_MAX);
    Ok(names)
}

/// The master key, from the first key object the password opens.
pub(crate) fn open(
    backend: &dyn Backend,
    names: &[ObjectName],
    password: &Password,
) -> Result<Key, EngineError> {
    let mut first_damage = None;
    for name in names {
        match open_one(backend, name, password) {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => {}
            Err(error @ EngineError::Damaged { .. }) => {
                first_damage.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Err(first_damage.unwrap_or(EngineError::WrongPassword))
}

/// `None` when the key object is whole but of another password.
fn open_one(
    backend: &dyn Backend,
    name: &ObjectName,
    password: &Password,
) -> Result<Option<Key>, EngineError> {
    let object = backend.get(name, KEY_OBJECT_BYTES_MAX);
    let object = object.map_err(|error| EngineError::reading(name, error))?;
    if !name.is_hash(&sha256(&object)) {
        return Err(EngineError::damaged(name, "does not have the hash it is named by"));
    }
    let (cost, salt, sealed) = parse(&object).map_err(|what| EngineError::damaged(name, what))?;
    match cost.derive(password, &salt)?.open(&sealed) {
        Ok(plain) => match parse_master(&plain) {
            Some(key) => Ok(Some(key)),
            None => Err(EngineError::damaged(name, "does not hold a master key")),
        },
        Err(_) => Ok(None),
    }
}

type Bytes = Zeroizing<Vec<u8>>;

fn parse(object: &[u8]) -> Result<(KdfCost, Bytes, Bytes), String> {
    let file: KeyFile = document::from_json(object)?;
    if file.kdf != KDF_NAME {
        return Err("names an unknown key derivation".into());
    }
    let cost = KdfCost::from_stored(file.n, file.r, file.p).ok_or("asks for a senseless cost")?;
    let salt = base64::decode(&file.salt).ok_or("has a salt that is not base64")?;
    let data = base64::decode(&file.data).ok_or("has data that is not base64")?;
    Ok((cost, salt, data))
}

fn parse_master(plain: &[u8]) -> Option<Key> {
    let file: MasterKeyFile = document::from_json(plain).ok()?;
    let encrypt = base64::decode(&file.encrypt)?;
    let (k, r) = (base64::decode(&file.mac.k)?, base64::decode(&file.mac.r)?);
    Key::from_parts(&encrypt, &k, &r)
}
