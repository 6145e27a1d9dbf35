//! Password hashes, and how many of them are computed at once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::phc::{Output, PasswordHash, Salt};
use argon2::password_hash::{self, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zeroize::Zeroizing;

use crate::error::Error;

/// Logins that may wait per hash being computed: half a second's worth of them.
const WAITING_PER_HASH: usize = 16;

/// Most memory a hash may ask for, in KiB: a slip in the users file must not take the
/// machine down at the next login.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;

/// Most passes over that memory, for the same reason.
const PASSES_MAX: u32 = 64;

/// Hashes a password for the users file: argon2id, 19 MiB, two passes, a random salt.
pub fn hash_password(password: &str) -> Result<String, Error> {
    hash_with(Params::DEFAULT, password)
}

/// Hashes a password at next to no cost, for tests, whose passwords guard nothing.
pub fn hash_password_cheaply(password: &str) -> Result<String, Error> {
    let params = Params::new(Params::MIN_M_COST, Params::MIN_T_COST, Params::MIN_P_COST, None)
        .map_err(|trouble| Error::Internal(format!("argon2 parameters: {trouble}")))?;
    hash_with(params, password)
}

fn hash_with(params: Params, password: &str) -> Result<String, Error> {
    use argon2::password_hash::PasswordHasher as _;
    let hash: Result<PasswordHash, _> =
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password(password.as_bytes());
    hash.map(|hash| hash.to_string())
        .map_err(|trouble| Error::Internal(format!("hashing a password: {trouble}")))
}

/// A user's argon2id hash, known to be one that can be verified.
#[derive(Clone)]
pub(super) struct StoredHash(PasswordHash);

impl fmt::Debug for StoredHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredHash(..)")
    }
}

/// What verifying a hash costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashCost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

impl StoredHash {
    /// Reads a PHC string; the error says what was expected and never quotes it.
    pub(super) fn parse(text: &str) -> Result<(Self, HashCost), &'static str> {
        const SHAPE: &str =
            "expected $argon2id$v=19$m=…,t=…,p=…$salt$hash, as `kedge user hash` prints it";
        let hash = PasswordHash::new(text).map_err(|_| SHAPE)?;
        let params = Params::try_from(&hash).map_err(|_| SHAPE)?;
        let is_whole = hash.salt.is_some() && hash.hash.is_some();
        let is_current = hash.version == Some(Version::V0x13.into());
        if hash.algorithm.as_str() != Algorithm::Argon2id.as_str() || !is_whole || !is_current {
            return Err(SHAPE);
        }
        if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
            return Err("costs more than 1 GiB of memory or 64 passes");
        }
        let cost = HashCost {
            memory_kib: params.m_cost(),
            passes: params.t_cost(),
            lanes: params.p_cost(),
        };
        Ok((Self(hash), cost))
    }

    /// A hash no password is known for, which costs as much to verify as this one.
    pub(super) fn decoy(&self) -> Result<Self, password_hash::Error> {
        let mut salt = [0_u8; 16];
        let mut output = [0_u8; 32];
        getrandom::fill(&mut salt).map_err(|_| password_hash::Error::Crypto)?;
        getrandom::fill(&mut output).map_err(|_| password_hash::Error::Crypto)?;
        let hash = PasswordHash {
            salt: Some(Salt::new(&salt)?),
            hash: Some(Output::new(&output)?),
            ..self.0.clone()
        };
        Ok(Self(hash))
    }

    /// Names this hash without telling it; another password has another.
    pub(super) fn fingerprint(&self) -> String {
        hex::encode(&Sha256::digest(self.0.to_string())[..16])
    }

    fn verify(&self, password: &str) -> Result<Verdict, Error> {
        match Argon2::default().verify_password(password.as_bytes(), &self.0) {
            Ok(()) => Ok(Verdict::Right),
            Err(password_hash::Error::PasswordInvalid) => Ok(Verdict::Wrong),
            Err(trouble) => Err(Error::Internal(format!("verifying a password: {trouble}"))),
        }
    }
}

/// What a password turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
}

/// Computes hashes on threads that may block, a few at a time, with a short queue.
#[derive(Debug)]
pub(super) struct Hasher {
    /// One for each login that computes or waits; who gets none is turned away.
    seats: Arc<Semaphore>,
    /// One for each hash being computed.
    running: Arc<Semaphore>,
    computed: Arc<AtomicU64>,
}

/// The right to compute one hash.
#[derive(Debug)]
pub(super) struct Turn {
    _seat: OwnedSemaphorePermit,
    _running: OwnedSemaphorePermit,
}

impl Hasher {
    pub(super) fn new(at_once_max: usize) -> Self {
        let at_once_max = at_once_max.max(1);
        Self {
            seats: Arc::new(Semaphore::new(at_once_max * (1 + WAITING_PER_HASH))),
            running: Arc::new(Semaphore::new(at_once_max)),
            computed: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Waits for a turn, unless too many wait already.
    pub(super) async fn turn(&self) -> Result<Turn, Error> {
        let seat = Arc::clone(&self.seats).try_acquire_owned().map_err(|_| Error::Busy)?;
        let running = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(|closed| Error::Internal(format!("hashing: {closed}")))?;
        Ok(Turn { _seat: seat, _running: running })
    }

    /// Verifies a password and gives the turn back. When the caller has gone the turn lasts
    /// until the computation is done, so that cancelled logins cannot pile up work.
    pub(super) async fn verify(
        &self,
        turn: Turn,
        password: Zeroizing<String>,
        hash: StoredHash,
    ) -> Result<(Verdict, Turn), Error> {
        let computed = Arc::clone(&self.computed);
        let computation = tokio::task::spawn_blocking(move || {
            computed.fetch_add(1, Ordering::Relaxed);
            (hash.verify(&password), turn)
        });
        let (verdict, turn) =
            computation.await.map_err(|trouble| Error::Internal(format!("hashing: {trouble}")))?;
        Ok((verdict?, turn))
    }

    #[cfg(test)]
    pub(super) fn computed(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_hash_has_the_published_cost_and_is_never_the_same_twice() {
        let hash = hash_password("correct horse").unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, hash_password("correct horse").unwrap());
        let (stored, _) = StoredHash::parse(&hash).unwrap();
        assert_eq!(stored.verify("correct horse").unwrap(), Verdict::Right);
        assert_eq!(stored.verify("correct horsf").unwrap(), Verdict::Wrong);
    }

    #[test]
    fn a_decoy_costs_what_the_original_costs_and_no_one_has_its_password() {
        let (stored, cost) = StoredHash::parse(&hash_password_cheaply("secret").unwrap()).unwrap();
        let decoy = stored.decoy().unwrap();
        assert_eq!(StoredHash::parse(&decoy.0.to_string()).unwrap().1, cost);
        assert_eq!(decoy.verify("secret").unwrap(), Verdict::Wrong);
        assert_ne!(decoy.fingerprint(), stored.fingerprint());
    }

    #[test]
    fn what_is_no_whole_argon2id_hash_is_refused_without_quoting_it() {
        let hash = hash_password_cheaply("secret").unwrap();
        let (without_output, _) = hash.rsplit_once('$').unwrap();
        let rows = [
            "hunter2",
            "",
            without_output,
            &hash.replace("argon2id", "argon2i"),
            &hash.replace("v=19", "v=16"),
            &hash.replace("m=8,", "m=4194304,"),
            &hash.replace("t=1,", "t=1000000,"),
        ];
        for text in rows {
            let complaint = StoredHash::parse(text).unwrap_err();
            assert!(text.is_empty() || !complaint.contains(text), "{complaint}");
        }
    }

    #[tokio::test]
    async fn hashes_at_once_and_logins_waiting_are_capped() {
        let hasher = Hasher::new(1);
        let running = hasher.turn().await.unwrap();
        let mut waiting: Vec<_> = (0..WAITING_PER_HASH).map(|_| Box::pin(hasher.turn())).collect();
        for turn in &mut waiting {
            assert!(futures::poll!(turn).is_pending());
        }
        assert!(matches!(hasher.turn().await, Err(Error::Busy)));
        drop(waiting.pop());
        assert!(futures::poll!(Box::pin(hasher.turn())).is_pending());
        drop(running);
        assert!(waiting.swap_remove(0).await.is_ok());
    }
}
