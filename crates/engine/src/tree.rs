//! Trees: directories as JSON blobs.
//!
//! The root of our snapshots holds a directory per volume, whose only file `disk.raw`
//! is the volume, and files beside them.

use std::io;

use serde::{Deserialize, Serialize, Serializer};

use crate::{
    error::EngineError,
    id::{BlobId, TreeId},
    list::BlobList,
    time::Timestamp,
};

/// The name of a volume's bytes in its directory.
pub(crate) const VOLUME_FILE: &str = "disk.raw";
/// Beside it, the fingerprints of its chunks.
pub(crate) const FINGERPRINT_FILE: &str = "disk.raw.fingerprints";

/// Go's `ModeDir` with 0700, as restic writes modes.
const DIR_MODE: u32 = 1 << 31 | 0o700;
const FILE_MODE: u32 = 0o600;
/// What file systems allow.
const NAME_BYTES_MAX: usize = 255;

/// A tree as read; of its nodes only what the engine needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Tree {
    #[serde(default)]
    pub(crate) nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: NodeKind,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) content: Option<BlobList>,
    #[serde(default)]
    pub(crate) subtree: Option<TreeId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NodeKind {
    File,
    Dir,
    /// Links, devices and the like, which only others write.
    #[serde(other)]
    Other,
}

impl Tree {
    /// Reads a tree; the error says what is wrong with it.
    pub(crate) fn read(json: impl io::Read) -> Result<Self, String> {
        let tree: Self = crate::document::read_json(json)?;
        match tree.nodes.iter().find(|node| !is_safe_name(&node.name)) {
            Some(node) => Err(format!("has a node named {:?}", node.name)),
            None => Ok(tree),
        }
    }

    pub(crate) fn find(&self, name: &str, kind: NodeKind) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name && node.kind == kind)
    }
}

/// Whether a name read from a tree stays inside its directory.
fn is_safe_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Refuses names that are unsafe as file names, or that restic would write escaped.
pub(crate) fn require_writable_name(name: &str) -> Result<(), EngineError> {
    let is_plain = !name.contains(|c: char| c.is_control() || matches!(c, '\\' | '"'));
    if is_safe_name(name) && is_plain && name.len() <= NAME_BYTES_MAX {
        Ok(())
    } else {
        Err(EngineError::InvalidName { name: name.into() })
    }
}

/// A node to be written.
#[derive(Serialize)]
pub(crate) struct NewNode<'a, C: Serialize> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: u32,
    mtime: String,
    atime: String,
    ctime: String,
    uid: u32,
    gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    content: Option<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtree: Option<TreeId>,
}

impl<'a, C: Serialize> NewNode<'a, C> {
    pub(crate) fn file(name: &'a str, size: u64, content: C, modified_at: Timestamp) -> Self {
        Self {
            size: Some(size),
            content: Some(content),
            ..Self::any(name, "file", FILE_MODE, modified_at)
        }
    }

    pub(crate) fn dir(name: &'a str, subtree: TreeId, modified_at: Timestamp) -> Self {
        Self { subtree: Some(subtree), ..Self::any(name, "dir", DIR_MODE, modified_at) }
    }

    fn any(name: &'a str, kind: &'static str, mode: u32, modified_at: Timestamp) -> Self {
        let time = modified_at.to_string();
        Self {
            name,
            kind,
            mode,
            mtime: time.clone(),
            atime: time.clone(),
            ctime: time,
            uid: 0,
            gid: 0,
            size: None,
            content: None,
            subtree: None,
        }
    }

    pub(crate) fn name(&self) -> &'a str {
        self.name
    }
}

/// Writes the JSON of a tree, with the newline restic ends it with. Nodes come sorted by
/// name.
pub(crate) fn write_json<C: Serialize>(
    nodes: &[NewNode<'_, C>],
    to: &mut impl io::Write,
) -> Result<(), EngineError> {
    #[derive(Serialize)]
    struct NewTree<'n, N> {
        nodes: &'n [N],
    }
    let json = serde_json::to_writer(&mut *to, &NewTree { nodes }).map_err(io::Error::from);
    json.and_then(|()| to.write_all(b"\n"))
        .map_err(|error| EngineError::bug(format!("a tree has no JSON: {error}")))
}

/// A content list that is produced while it is written.
pub(crate) struct Content<I>(pub(crate) I);

impl<I: Iterator<Item = BlobId> + Clone> Serialize for Content<I> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_their_directory_are_damage_when_read_and_invalid_when_written() {
        for name in ["", ".", "..", "a/b", "/", "a\0b"] {
            let json = serde_json::json!({"nodes": [{"name": name, "type": "file"}]});
            assert!(Tree::read(json.to_string().as_bytes()).is_err(), "{name:?}");
            assert!(require_writable_name(name).is_err(), "{name:?}");
        }
        for name in ["a\nb", "\u{1b}[2J", "a\\b", "\"", &"x".repeat(256)] {
            assert!(require_writable_name(name).is_err(), "{name:?}");
        }
        for name in ["disk.raw", "0b7e-volume (Grüße)", &"x".repeat(255)] {
            assert!(require_writable_name(name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn nodes_of_unknown_kinds_are_read() {
        let tree =
            Tree::read(&br#"{"nodes":[{"name":"x","type":"symlink","linktarget":"y"}]}"#[..]);
        assert_eq!(tree.unwrap().nodes[0].kind, NodeKind::Other);
    }
}
