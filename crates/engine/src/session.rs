//! Writing into a repository.
//!
//! A session deduplicates only against blobs in durable index objects and against its
//! own. Its order is: packs, index objects, then snapshots, so that no snapshot ever
//! names a blob a crash could take away.
//!
//! Invariant: once a blob is claimed it is in a pack of this session, or the session
//! has failed and writes no index object and no snapshot any more.

use std::{
    collections::HashSet,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde::Serialize;

use crate::{
    backend::ObjectName,
    blob::{BlobKind, Encoder, Shape},
    control::{CancelFlag, Gate},
    error::EngineError,
    id::{BlobId, SnapshotId, TreeId},
    index::{self, INDEX_BLOBS_MAX},
    lock::{self, Held, Mode},
    pack::{PackBuilder, PackEntry},
    pages::PageBuffer,
    repository::{Indexed, Repository},
    snapshot::{SnapshotFile, SnapshotMeta},
    stream,
    time::Timestamp,
    tree::{self, Content, NewNode},
};

/// Files beside the volumes are cut into blobs of this length.
const FILE_CHUNK_BYTES: usize = 512 << 10;
/// Files beside the volumes are small.
const FILE_ZSTD_LEVEL: i32 = 3;

/// The right to write into a repository, made visible to others by a restic lock
/// object. Usable from several threads. When it is dropped or closed the lock object
/// is removed.
pub struct Session {
    pub(crate) repository: Arc<Repository<Indexed>>,
    name: String,
    gate: Arc<dyn Gate>,
    cancel: CancelFlag,
    lock: Held,
    failed: AtomicBool,
    claims: Mutex<Claims>,
    /// Packs of data nobody is filling at the moment.
    data_packs: Mutex<Vec<PackBuilder>>,
    tree_pack: Mutex<PackBuilder>,
    pending: Mutex<Vec<PackEntry>>,
    /// Read while volumes are stored, written to finish a tree.
    storing: RwLock<()>,
    finished: Mutex<HashSet<TreeId>>,
    stored_bytes: AtomicU64,
}

/// Blobs that are in packs of this session, or about to be, and in no index object yet.
#[derive(Default)]
struct Claims {
    data: HashSet<BlobId>,
    trees: HashSet<BlobId>,
}

impl Claims {
    fn of(&mut self, kind: BlobKind) -> &mut HashSet<BlobId> {
        match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        }
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Repository<Indexed> {
    /// Begins to write. `session_name` stands in the lock object, so that a session
    /// whose process died can be told from others. Others' exclusive locks are honoured
    /// by restic's rules: one that is exclusive keeps a session from beginning until it is
    /// gone. A prune of ours does not. The index is refreshed.
    pub fn begin_session(
        self: &Arc<Self>,
        session_name: &str,
        now: Timestamp,
        gate: Arc<dyn Gate>,
        cancel: CancelFlag,
    ) -> Result<Session, EngineError> {
        cancel.check()?;
        lock::require_not_exclusive(&self.vault)?;
        gate.may_write()?;
        let cleaned = self.vault.backend.remove_leftovers();
        cleaned.map_err(|error| EngineError::writing(&ObjectName::Config, error))?;
        let session = Session {
            repository: Arc::clone(self),
            name: session_name.into(),
            gate,
            cancel,
            lock: Held::put(&self.vault, session_name, Mode::Shared, now)?,
            failed: AtomicBool::new(false),
            claims: Mutex::default(),
            data_packs: Mutex::default(),
            tree_pack: Mutex::new(PackBuilder::new(BlobKind::Tree)),
            pending: Mutex::default(),
            storing: RwLock::default(),
            finished: Mutex::default(),
            stored_bytes: AtomicU64::new(0),
        };
        // Someone may have locked between the look and our lock; then one of the two
        // sees the other, and dropping the session gives way.
        lock::require_not_exclusive(&self.vault)?;
        // After the lock: a prune that does not see it yet has written its mark before.
        self.refresh()?;
        self.require_sound_marks()?;
        Ok(session)
    }

    /// Removes the lock objects of a session whose process died; says how many there
    /// were. The caller knows that the session is over.
    pub fn remove_session_locks(&self, session_name: &str) -> Result<usize, EngineError> {
        lock::remove_of_session(&self.vault, session_name)
    }

    /// The names of all sessions that have lock objects, living or dead.
    pub fn list_sessions(&self) -> Result<Vec<String>, EngineError> {
        lock::list_sessions(&self.vault)
    }
}

impl Session {
    /// The name in the lock object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes put into the repository so far: packs, with everything in them.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }

    /// Renews the lock object, so that nobody takes it for forgotten; call it every few
    /// minutes. When someone removed it the session is over: [`EngineError::LockLost`],
    /// here and from every later write.
    pub fn refresh_lock(&self, now: Timestamp) -> Result<(), EngineError> {
        self.permit()?;
        self.lock.renew(&self.repository.vault, now)
    }

    /// Removes the lock object and ends the session. Packs that no finished tree made
    /// durable are left to prune.
    pub fn close(self) -> Result<(), EngineError> {
        self.remove_locks()
    }

    fn remove_locks(&self) -> Result<(), EngineError> {
        self.lock.remove(&self.repository.vault)
    }

    fn require_lock(&self) -> Result<(), EngineError> {
        self.lock.require(&self.repository.vault)
    }

    /// Asked before every write and between chunks.
    pub(crate) fn permit(&self) -> Result<(), EngineError> {
        self.cancel.check()?;
        if self.lock.is_lost() {
            return Err(EngineError::LockLost);
        }
        if self.failed.load(Ordering::Relaxed) {
            return Err(EngineError::SessionFailed);
        }
        Ok(self.gate.may_write()?)
    }

    /// Keeps the session's promise to [`Self::finish_tree`]: whoever stores a volume
    /// holds this meanwhile.
    pub(crate) fn storing(&self) -> &RwLock<()> {
        &self.storing
    }

    /// Whether the caller must store the blob: it is neither in the repository nor
    /// claimed by anyone in this session.
    pub(crate) fn claim(&self, kind: BlobKind, id: BlobId) -> Result<bool, EngineError> {
        Ok(!self.repository.state.index.contains(kind, id)?
            && guard(&self.claims).of(kind).insert(id))
    }

    /// Runs a step after which claimed blobs may be lost if it fails.
    pub(crate) fn or_fail<T>(
        &self,
        step: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        step().inspect_err(|_| self.failed.store(true, Ordering::Relaxed))
    }

    /// A pack of data someone has begun to fill; give it back by [`Self::return_pack`].
    pub(crate) fn lend_pack(&self) -> Option<PackBuilder> {
        guard(&self.data_packs).pop()
    }

    pub(crate) fn return_pack(&self, pack: PackBuilder) {
        if !pack.is_empty() {
            guard(&self.data_packs).push(pack);
        }
    }

    /// Puts a claimed blob into `pack`. When there is no room for it, `change` first takes
    /// the pack away to be stored and leaves an empty one.
    pub(crate) fn add(
        &self,
        pack: &mut PackBuilder,
        encoder: &mut Encoder,
        id: BlobId,
        plain: &[u8],
        change: impl FnOnce(&mut PackBuilder) -> Result<(), EngineError>,
    ) -> Result<Shape, EngineError> {
        self.or_fail(|| {
            if !pack.has_room(plain.len()) {
                change(pack)?;
            }
            pack.push(encoder, &self.repository.vault.key, id, plain)
        })
    }

    /// Stores a full pack at once and leaves an empty one.
    fn change_pack(&self, pack: &mut PackBuilder) -> Result<(), EngineError> {
        let full = mem::replace(pack, PackBuilder::new(pack.kind()));
        self.store_pack(full).map(drop)
    }

    /// Puts a pack into the store. Gives its buffer back, to be filled again.
    pub(crate) fn store_pack(&self, pack: PackBuilder) -> Result<PageBuffer, EngineError> {
        self.or_fail(|| {
            let vault = &self.repository.vault;
            let (bytes, entry) = pack.finish(&vault.key)?;
            self.permit()?;
            vault.put(&ObjectName::Pack(entry.id), bytes.as_slice())?;
            self.stored_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let full = {
                let mut pending = guard(&self.pending);
                pending.push(entry);
                let blobs: usize = pending.iter().map(|pack| pack.blobs.len()).sum();
                (blobs >= INDEX_BLOBS_MAX).then(|| mem::take(&mut *pending))
            };
            full.map_or(Ok(()), |packs| self.store_index(&packs))?;
            Ok(bytes)
        })
    }

    /// The lock is looked for right before: of packs that a prune took for forsaken and
    /// removed meanwhile nobody should hear. Whoever reads marks would not believe it, but
    /// other programs read none.
    fn store_index(&self, packs: &[PackEntry]) -> Result<(), EngineError> {
        self.permit()?;
        self.require_lock()?;
        let object = index::store_object(&self.repository.vault, packs)?;
        self.repository.state.index.add_durable(object, packs)?;
        let mut claims = guard(&self.claims);
        for blob in packs.iter().flat_map(|pack| &pack.blobs) {
            claims.of(blob.kind).remove(&blob.id);
        }
        Ok(())
    }

    /// Stores a blob of data unless it is there already.
    pub(crate) fn store_data(
        &self,
        plain: &[u8],
        encoder: &mut Encoder,
    ) -> Result<BlobId, EngineError> {
        let id = BlobId::of(plain);
        if self.claim(BlobKind::Data, id)? {
            let lent = self.lend_pack();
            let mut pack = lent.unwrap_or_else(|| PackBuilder::new(BlobKind::Data));
            let added = self.add(&mut pack, encoder, id, plain, |full| self.change_pack(full));
            self.return_pack(pack);
            added?;
        }
        Ok(id)
    }

    /// Stores a tree unless it is there already. It is written twice, once for its
    /// hash and once into its pack, so that it is never held whole.
    pub(crate) fn store_tree<C: Serialize>(
        &self,
        nodes: &[NewNode<'_, C>],
    ) -> Result<TreeId, EngineError> {
        let (id, bytes) = stream::hash_tree(nodes)?;
        if self.claim(BlobKind::Tree, id.blob())? {
            self.or_fail(|| {
                let mut pack = guard(&self.tree_pack);
                let key = &self.repository.vault.key;
                if !pack.has_room(usize::try_from(bytes).unwrap_or(usize::MAX)) {
                    self.change_pack(&mut pack)?;
                }
                pack.push_sealed(id.blob(), |out| stream::seal_tree(key, nodes, id, bytes, out))
            })?;
        }
        Ok(id)
    }

    /// Stores bytes as a tree, whatever they are.
    #[cfg(test)]
    pub(crate) fn store_tree_json(&self, json: &[u8]) -> Result<TreeId, EngineError> {
        let id = BlobId::of(json);
        if self.claim(BlobKind::Tree, id)? {
            let mut encoder = Encoder::new(FILE_ZSTD_LEVEL)?;
            let mut pack = guard(&self.tree_pack);
            self.add(&mut pack, &mut encoder, id, json, |full| self.change_pack(full))?;
        }
        Ok(TreeId(id.0))
    }

    /// Writes the root tree: a directory per volume and the files beside them. When it
    /// returns, everything the tree names is in durable index objects. The same
    /// arguments give the same tree.
    pub fn finish_tree(
        &self,
        volumes: &[(&str, TreeId)],
        files: &[(&str, &[u8])],
        modified_at: Timestamp,
    ) -> Result<TreeId, EngineError> {
        self.permit()?;
        require_distinct_names(volumes, files)?;
        let _nobody_stores = self.storing.write().unwrap_or_else(PoisonError::into_inner);
        self.require_trees(volumes)?;
        let mut encoder = Encoder::new(FILE_ZSTD_LEVEL)?;
        let mut nodes = Vec::new();
        for (name, subtree) in volumes {
            nodes.push(NewNode::dir(name, *subtree, modified_at));
        }
        for (name, bytes) in files {
            let chunks = bytes.chunks(FILE_CHUNK_BYTES);
            let ids = chunks.map(|chunk| self.store_data(chunk, &mut encoder));
            let ids = ids.collect::<Result<Vec<_>, _>>()?;
            let content = Content(ids.into_iter());
            nodes.push(NewNode::file(name, bytes.len() as u64, content, modified_at));
        }
        nodes.sort_by_key(NewNode::name);
        let root = self.store_tree(&nodes)?;
        self.flush()?;
        guard(&self.finished).insert(root);
        Ok(root)
    }

    /// A volume's tree comes from this session, or from the repository.
    fn require_trees(&self, volumes: &[(&str, TreeId)]) -> Result<(), EngineError> {
        for (_, subtree) in volumes {
            let blob = subtree.blob();
            let is_known = self.repository.state.index.contains(BlobKind::Tree, blob)?
                || guard(&self.claims).trees.contains(&blob);
            if !is_known {
                return Err(EngineError::damaged(format!("tree {subtree}"), "not stored"));
            }
        }
        Ok(())
    }

    /// Puts everything begun into the store, in as few packs as it fits.
    fn flush(&self) -> Result<(), EngineError> {
        self.or_fail(|| {
            let mut joined = PackBuilder::new(BlobKind::Data);
            for pack in mem::take(&mut *guard(&self.data_packs)) {
                if joined.can_take(&pack) {
                    joined.take(pack)?;
                } else {
                    self.store_pack(pack)?;
                }
            }
            let trees =
                mem::replace(&mut *guard(&self.tree_pack), PackBuilder::new(BlobKind::Tree));
            for pack in [joined, trees] {
                if !pack.is_empty() {
                    self.store_pack(pack)?;
                }
            }
            let packs = mem::take(&mut *guard(&self.pending));
            if packs.is_empty() { Ok(()) } else { self.store_index(&packs) }
        })
    }

    /// Writes a snapshot of a finished tree. When there is one with the same identity
    /// tag and tree, it is returned instead (the lowest id, should there be several), so
    /// that a repeated call after a crash leaves one. A tree finished by another session
    /// is walked first: a prune in between may have taken its blobs, or be about to.
    ///
    /// The session's lock is looked for once more after the snapshot is written. A prune
    /// that goes on without this session takes the lock away before it looks at the
    /// snapshots, so either it has seen this one or the call fails. The snapshot stays
    /// then: the next session of the same job may have found it whole, and taken it.
    pub fn write_snapshot(&self, meta: &SnapshotMeta) -> Result<SnapshotId, EngineError> {
        self.permit()?;
        let same = self.find_same(meta)?;
        if !guard(&self.finished).contains(&meta.tree) {
            self.repository.refresh()?;
            self.repository.require_complete(meta.tree, &self.cancel)?;
        }
        self.require_lock()?;
        if let Some(id) = same {
            return Ok(id);
        }
        self.permit()?;
        let mut id = SnapshotId([0; 32]);
        self.repository.vault.put_document(
            |hash| {
                id = SnapshotId(hash);
                ObjectName::Snapshot(id)
            },
            &SnapshotFile::from(meta),
        )?;
        self.require_lock()?;
        Ok(id)
    }

    fn find_same(&self, meta: &SnapshotMeta) -> Result<Option<SnapshotId>, EngineError> {
        let tagged = self.repository.find_snapshots_by_tag(&meta.identity_tag)?;
        let same = tagged.into_iter().filter(|snapshot| snapshot.tree == meta.tree);
        Ok(same.map(|snapshot| snapshot.id).min())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whoever ends without closing cannot be told; a lock that stays is removed by
        // name later, and grows stale by restic's rules.
        let _ = self.remove_locks();
    }
}

fn require_distinct_names(
    volumes: &[(&str, TreeId)],
    files: &[(&str, &[u8])],
) -> Result<(), EngineError> {
    let names = volumes.iter().map(|(name, _)| *name).chain(files.iter().map(|(name, _)| *name));
    let mut seen = HashSet::new();
    for name in names {
        tree::require_writable_name(name)?;
        if !seen.insert(name) {
            return Err(EngineError::InvalidName { name: name.into() });
        }
    }
    Ok(())
}
