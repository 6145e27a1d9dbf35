//! The demo's system disk: it must be what `crates/kedge/assets/system-disk.json` says, and
//! stay a sound file system through the changes that the demo makes.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::disk_image::{DESCRIPTION, Description, IMAGE};
use crate::{process, tree};

fn description() -> Description {
    serde_json::from_str(&tree::read(Path::new(DESCRIPTION)).unwrap()).unwrap()
}

fn image() -> Vec<u8> {
    let compressed = std::fs::read(tree::root().join(IMAGE)).unwrap();
    zstd::decode_all(compressed.as_slice()).unwrap()
}

#[test]
fn the_demo_disk_is_as_long_as_described_and_small_to_ship() {
    assert_eq!(image().len() as u64, description().image_bytes);
    let shipped_bytes = std::fs::metadata(tree::root().join(IMAGE)).unwrap().len();
    assert!(shipped_bytes < 300 * 1024, "the asset has {shipped_bytes} bytes");
}

#[test]
fn the_listed_blocks_of_the_demo_disk_lie_apart_and_within_it() {
    let Description { image_bytes, block_bytes, offsets, .. } = description();
    let distinct: BTreeSet<u64> = offsets.iter().copied().collect();
    assert_eq!(distinct.len(), offsets.len());
    for offset in offsets {
        assert_eq!(offset % block_bytes, 0);
        assert!(offset + block_bytes <= image_bytes);
    }
}

#[test]
fn the_demo_disk_stays_sound_when_its_listed_blocks_are_rewritten() {
    let mut image = image();
    assert_sound(&image);

    let Description { block_bytes, offsets, .. } = description();
    for offset in offsets {
        let start = usize::try_from(offset).unwrap();
        image[start..][..usize::try_from(block_bytes).unwrap()].fill(0xA5);
    }
    assert_sound(&image);
}

fn assert_sound(image: &[u8]) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(image).unwrap();
    let e2fsck = process::tool("e2fsck").unwrap();
    let judged = Command::new(e2fsck).arg("-fn").arg(file.path()).output().unwrap();
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
}
