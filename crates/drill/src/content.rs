//! Recognises what a partition holds by the blocks that describe it, and checks that these
//! add up.
//!
//! Disks of running servers are frozen without warning, so only what holds at every moment
//! may be a problem: checksums, sizes and magic numbers, not copies that are written one
//! after the other.

use std::rc::Rc;

use kedge_core::drill::Depth;

use crate::bytes::{Bytes, be16, be32, be64, byte, has, le16, le32, le64, read, without32};
use crate::crc::{crc32_raw, crc32c};
use crate::ext;
use crate::problems::note;

/// Reaches over every describing block that is recognised here.
const HEAD_BYTES: usize = 128 << 10;
/// A partition whose first so many bytes are zero is called empty.
const EMPTY_BYTES: u64 = 1 << 20;
/// Copies of the superblock that are looked for in an XFS, whose usual number is 4.
const XFS_GROUPS_MAX: u32 = 256;
const BTRFS_SUPERBLOCK: usize = 64 << 10;
const ISO_DESCRIPTOR: usize = 32 << 10;
/// Page sizes of the machines that may have made a swap area.
const PAGE_BYTES: [usize; 4] = [4 << 10, 8 << 10, 16 << 10, 64 << 10];

/// What a partition holds.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) name: String,
    pub(crate) depth: Depth,
    pub(crate) files: u64,
    pub(crate) problems: Vec<String>,
}

impl Content {
    /// Something of which no more than the name is known.
    pub(crate) fn recognised(name: &str) -> Self {
        Self { name: name.to_owned(), depth: Depth::Recognised, files: 0, problems: Vec::new() }
    }

    /// Something whose describing blocks were checked: in order if there is no problem.
    fn described(name: &str, problems: Vec<String>) -> Self {
        Self { depth: Depth::Described, problems, ..Self::recognised(name) }
    }
}

/// Recognises a content by the partition and its first bytes.
type Recognise = fn(&dyn Bytes, &[u8]) -> Option<Content>;

/// Looks at a partition.
pub(crate) fn look(part: &Rc<dyn Bytes>) -> Content {
    match look_at_head(part) {
        Ok(content) => content,
        Err(text) => {
            let problems = vec![format!("it could not be read: {text}")];
            Content { problems, ..Content::recognised("unknown") }
        }
    }
}

fn look_at_head(part: &Rc<dyn Bytes>) -> Result<Content, String> {
    let there = usize::try_from(part.size()).unwrap_or(usize::MAX).min(HEAD_BYTES);
    let mut head = read(&**part, 0, there)?;
    head.resize(HEAD_BYTES, 0);
    let of_head: [Recognise; 11] =
        [raid, xfs, luks, btrfs, lvm, swap, iso9660, ntfs, exfat, vfat, raid_damaged];
    if raid(&**part, &head).is_none()
        && let Some(content) = ext::look(part, &head)
    {
        return Ok(content);
    }
    match of_head.iter().find_map(|look| look(&**part, &head)) {
        Some(content) => Ok(content),
        None if is_empty(&**part, &head)? => Ok(Content::recognised("empty")),
        None => Ok(Content::recognised("unknown")),
    }
}

fn is_empty(part: &dyn Bytes, head: &[u8]) -> Result<bool, String> {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if !is_zero(head) {
        return Ok(false);
    }
    let length = usize::try_from(part.size().min(EMPTY_BYTES)).unwrap_or(0);
    Ok(is_zero(&read(part, 0, length)?))
}

/// Notes a content that says it is larger than where it lies.
pub(crate) fn check_fits(problems: &mut Vec<String>, what: &str, needs: Option<u64>, has: u64) {
    match needs {
        Some(bytes) if bytes <= has => {}
        Some(bytes) => note(problems, format!("{what} has {bytes} bytes, its place {has}")),
        None => note(problems, format!("{what} has an impossible size")),
    }
}

fn xfs(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    if !has(head, 0, b"XFSB") {
        return None;
    }
    let mut problems = Vec::new();
    let (block, sector) = (be32(head, 4), be16(head, 102));
    if !block.is_power_of_two() || !(512..=65536).contains(&block) {
        note(&mut problems, format!("blocks of {block} bytes are impossible"));
        return Some(Content::described("xfs", problems));
    }
    let superblock = head.get(..usize::from(sector)).filter(|_| (512..=32768).contains(&sector));
    match superblock {
        None => note(&mut problems, format!("sectors of {sector} bytes are impossible")),
        // The fifth format is the first to have a checksum.
        Some(bytes) if be16(head, 100) & 0xf == 5 => {
            if crc32c(&without32(bytes, 224)) != le32(bytes, 224) {
                note(&mut problems, "the superblock's checksum is wrong");
            }
        }
        Some(_) => {}
    }
    check_xfs_size(part, head, &mut problems);
    Some(Content::described("xfs", problems))
}

fn check_xfs_size(part: &dyn Bytes, head: &[u8], problems: &mut Vec<String>) {
    let (block, blocks) = (u64::from(be32(head, 4)), be64(head, 8));
    let (group_blocks, groups) = (u64::from(be32(head, 84)), be32(head, 88));
    let before_last = group_blocks * u64::from(groups.saturating_sub(1));
    if blocks <= before_last || blocks > before_last + group_blocks {
        note(problems, "its size and that of its allocation groups do not match");
    }
    check_fits(problems, "the file system", blocks.checked_mul(block), part.size());
    for group in 1..groups.min(XFS_GROUPS_MAX) {
        let at = (u64::from(group) * group_blocks).checked_mul(block);
        match at.map(|at| read(part, at, 4)) {
            Some(Ok(magic)) if magic == b"XFSB" => {}
            Some(Err(text)) => note(problems, format!("allocation group {group}: {text}")),
            _ => note(problems, format!("allocation group {group} has no superblock")),
        }
    }
}

fn btrfs(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    let superblock = head.get(BTRFS_SUPERBLOCK..BTRFS_SUPERBLOCK + 4096)?;
    if !has(superblock, 0x40, b"_BHRfS_M") {
        return None;
    }
    let mut problems = Vec::new();
    // Other kinds of checksum are longer than this field; they are left unchecked.
    let is_crc32c = le16(superblock, 0xc4) == 0;
    if is_crc32c && superblock.get(0x20..).map(crc32c) != Some(le32(superblock, 0)) {
        note(&mut problems, "the superblock's checksum is wrong");
    }
    if le64(superblock, 0x30) != 64 << 10 {
        note(&mut problems, "the superblock belongs to another place");
    }
    // The size of this device; the file system may have others.
    check_fits(&mut problems, "the file system", Some(le64(superblock, 0xd1)), part.size());
    let depth = if is_crc32c { Depth::Described } else { Depth::Recognised };
    Some(Content { depth, ..Content::described("btrfs", problems) })
}

/// Not examined further: the header of the second version has a cryptographic checksum,
/// the first has none.
fn luks(_: &dyn Bytes, head: &[u8]) -> Option<Content> {
    has(head, 0, b"LUKS\xba\xbe").then(|| Content::recognised("crypto_LUKS"))
}

fn lvm(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    const SEED: u32 = 0xf597_a6cf;
    let labels = head.chunks_exact(512).take(4);
    let (sector, label) = (0_u64..).zip(labels).find(|(_, label)| has(label, 0, b"LABELONE"))?;
    let mut problems = Vec::new();
    if label.get(20..).map(|rest| crc32_raw(SEED, rest)) != Some(le32(label, 16)) {
        note(&mut problems, "the label's checksum is wrong");
    }
    if le64(label, 8) != sector {
        note(&mut problems, "the label belongs to another place");
    }
    let volume = usize::try_from(le32(label, 20)).unwrap_or(usize::MAX);
    let needs = le64(label, volume.saturating_add(32));
    check_fits(&mut problems, "the physical volume", Some(needs), part.size());
    Some(Content::described("LVM2_member", problems))
}

fn swap(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    let page = PAGE_BYTES.into_iter().find(|page| has(head, page - 10, b"SWAPSPACE2"))?;
    let mut problems = Vec::new();
    if le32(head, 1024) != 1 {
        note(&mut problems, "its version is unknown");
    }
    let pages = u64::from(le32(head, 1028)) + 1;
    let needs = u64::try_from(page).ok().and_then(|page| pages.checked_mul(page));
    check_fits(&mut problems, "the swap area", needs, part.size());
    Some(Content::described("swap", problems))
}

fn iso9660(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    let descriptor = head.get(ISO_DESCRIPTOR..ISO_DESCRIPTOR + 2048)?;
    if !has(descriptor, 1, b"CD001") {
        return None;
    }
    let mut problems = Vec::new();
    let needs = u64::from(le32(descriptor, 80)) * u64::from(le16(descriptor, 128));
    check_fits(&mut problems, "the file system", Some(needs), part.size());
    Some(Content::described("iso9660", problems))
}

fn ntfs(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    if !has(head, 3, b"NTFS    ") {
        return None;
    }
    let mut problems = Vec::new();
    let sector = u64::from(le16(head, 11));
    if !(512..=4096).contains(&sector) || !sector.is_power_of_two() {
        note(&mut problems, format!("sectors of {sector} bytes are impossible"));
        return Some(Content::described("ntfs", problems));
    }
    let end = le64(head, 0x28).checked_mul(sector);
    // The last sector of the partition, past those that are counted, has the copy.
    let needs = end.and_then(|end| end.checked_add(sector));
    check_fits(&mut problems, "the file system", needs, part.size());
    match end.map(|end| read(part, end, 512)) {
        Some(Ok(copy)) if has(head, 0, &copy) => {}
        _ => note(&mut problems, "the backup of the boot sector is missing or differs"),
    }
    let files_at = ntfs_cluster(head, sector).and_then(|size| size.checked_mul(le64(head, 0x30)));
    match files_at.map(|at| read(part, at, 4)) {
        Some(Ok(magic)) if magic == b"FILE" => {}
        _ => note(&mut problems, "the table of files does not begin where it should"),
    }
    Some(Content::described("ntfs", problems))
}

/// Large clusters are written as a negative power of two.
fn ntfs_cluster(head: &[u8], sector: u64) -> Option<u64> {
    let factor = byte(head, 13);
    match factor {
        0..=0x80 => Some(u64::from(factor) * sector),
        _ => 1_u64.checked_shl(u32::from(factor.wrapping_neg()))?.checked_mul(sector),
    }
}

fn exfat(_: &dyn Bytes, head: &[u8]) -> Option<Content> {
    has(head, 3, b"EXFAT   ").then(|| Content::recognised("exfat"))
}

fn vfat(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    let sector = u64::from(le16(head, 11));
    let (cluster, reserved) = (byte(head, 13), u64::from(le16(head, 14)));
    let (tables, media) = (byte(head, 16), byte(head, 21));
    let is_boot_sector = has(head, 510, &[0x55, 0xaa]) && [0xeb, 0xe9].contains(&byte(head, 0));
    let is_plausible = (512..=4096).contains(&sector)
        && sector.is_power_of_two()
        && cluster.is_power_of_two()
        && reserved > 0
        && (1..=2).contains(&tables)
        && media >= 0xf0;
    if !is_boot_sector || !is_plausible {
        return None;
    }
    let mut problems = Vec::new();
    let or_wide =
        |narrow: u16, wide| if narrow == 0 { u64::from(le32(head, wide)) } else { narrow.into() };
    let needs = or_wide(le16(head, 19), 32) * sector;
    check_fits(&mut problems, "the file system", Some(needs), part.size());
    // Only how they begin is compared: the copies are written one after the other, and a
    // frozen disk may have been caught between.
    let table_sectors = or_wide(le16(head, 22), 36);
    for table in 0..u64::from(tables) {
        let at = (reserved + table * table_sectors) * sector;
        if read(part, at, 1).is_ok_and(|first| first != [media]) {
            note(&mut problems, format!("allocation table {} does not begin as one", table + 1));
        }
    }
    Some(Content::described("vfat", problems))
}

/// The superblock of a member of a Linux array, with where it was found. Older tools leave
/// what was there before, so it comes before the file systems if its checksum is right.
fn raid_superblock(part: &dyn Bytes, head: &[u8]) -> Option<Vec<u8>> {
    const MAGIC: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];
    let found = |bytes: &[u8]| has(bytes, 0, MAGIC) && le32(bytes, 4) == 1;
    let mut at_front = [0, 4096].into_iter().filter_map(|at| head.get(at..at + 4096));
    if let Some(superblock) = at_front.find(|bytes| found(bytes)) {
        return Some(superblock.to_vec());
    }
    let sectors = (part.size() / 512).checked_sub(16)?;
    let at_back = read(part, (sectors & !7) * 512, 4096).ok()?;
    found(&at_back).then_some(at_back)
}

fn is_raid_sum_right(superblock: &[u8]) -> bool {
    let devices = usize::try_from(le32(superblock, 220)).unwrap_or(usize::MAX);
    let length = devices.checked_mul(2).and_then(|bytes| bytes.checked_add(256));
    let Some(bytes) = length.and_then(|length| superblock.get(..length)) else { return false };
    let bytes = without32(bytes, 216);
    let words = bytes.chunks_exact(4);
    let rest = u64::from(le16(words.remainder(), 0));
    let sum = words.map(|word| u64::from(le32(word, 0))).sum::<u64>() + rest;
    let folded = (sum & 0xffff_ffff) + (sum >> 32);
    folded & 0xffff_ffff == u64::from(le32(superblock, 216))
}

fn raid(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    let superblock = raid_superblock(part, head).filter(|bytes| is_raid_sum_right(bytes))?;
    let mut problems = Vec::new();
    let sectors = le64(&superblock, 128).checked_add(le64(&superblock, 136));
    let needs = sectors.and_then(|sectors| sectors.checked_mul(512));
    check_fits(&mut problems, "the member", needs, part.size());
    Some(Content::described("linux_raid_member", problems))
}

/// The last to be asked: whatever else is there is more likely what is used.
fn raid_damaged(part: &dyn Bytes, head: &[u8]) -> Option<Content> {
    raid_superblock(part, head)?;
    let problems = vec!["the superblock's checksum is wrong".to_owned()];
    Some(Content { problems, ..Content::recognised("linux_raid_member") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blank() -> Vec<u8> {
        vec![0; 2 << 20]
    }

    fn put(disk: &mut [u8], at: usize, bytes: &[u8]) {
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn look_at(disk: &[u8]) -> Content {
        let part: Rc<dyn Bytes> = Rc::new(disk.to_vec());
        look(&part)
    }

    fn swap_area() -> Vec<u8> {
        let mut disk = blank();
        put(&mut disk, 4086, b"SWAPSPACE2");
        put(&mut disk, 1024, &1_u32.to_le_bytes());
        put(&mut disk, 1028, &511_u32.to_le_bytes());
        disk
    }

    fn xfs_of_two_groups() -> Vec<u8> {
        let mut disk = blank();
        put(&mut disk, 0, b"XFSB");
        put(&mut disk, 4, &4096_u32.to_be_bytes());
        put(&mut disk, 8, &512_u64.to_be_bytes());
        put(&mut disk, 84, &256_u32.to_be_bytes());
        put(&mut disk, 88, &2_u32.to_be_bytes());
        put(&mut disk, 100, &5_u16.to_be_bytes());
        put(&mut disk, 102, &512_u16.to_be_bytes());
        let sum = crc32c(&disk[..512]).to_le_bytes();
        put(&mut disk, 224, &sum);
        put(&mut disk, 1 << 20, b"XFSB");
        disk
    }

    fn physical_volume() -> Vec<u8> {
        let mut disk = blank();
        put(&mut disk, 512, b"LABELONE");
        put(&mut disk, 520, &1_u64.to_le_bytes());
        put(&mut disk, 532, &32_u32.to_le_bytes());
        put(&mut disk, 536, b"LVM2 001");
        put(&mut disk, 512 + 64, &(2_u64 << 20).to_le_bytes());
        let sum = crc32_raw(0xf597_a6cf, &disk[532..1024]).to_le_bytes();
        put(&mut disk, 528, &sum);
        disk
    }

    fn fat() -> Vec<u8> {
        let mut disk = blank();
        put(&mut disk, 0, &[0xeb, 0x3c, 0x90]);
        put(&mut disk, 11, &[0, 2, 4, 1, 0, 2, 0, 2, 0, 16, 0xf8, 8, 0]);
        put(&mut disk, 510, &[0x55, 0xaa]);
        put(&mut disk, 512, &[0xf8, 0xff, 0xff]);
        put(&mut disk, 512 + 8 * 512, &[0xf8, 0xff, 0xff]);
        disk
    }

    #[test]
    fn what_is_in_order_is_described_without_problems() {
        let rows = [
            ("swap", swap_area()),
            ("xfs", xfs_of_two_groups()),
            ("LVM2_member", physical_volume()),
            ("vfat", fat()),
        ];
        for (name, disk) in rows {
            let content = look_at(&disk);
            assert_eq!((content.name.as_str(), content.depth), (name, Depth::Described));
            assert_eq!(content.problems, [""; 0], "{name}");
        }
    }

    #[test]
    fn each_damage_is_a_problem() {
        let rows: [(&str, Vec<u8>, usize); 4] = [
            ("xfs", xfs_of_two_groups(), 300),
            ("xfs", xfs_of_two_groups(), 1 << 20),
            ("LVM2_member", physical_volume(), 600),
            ("vfat", fat(), 512 + 8 * 512),
        ];
        for (name, mut disk, at) in rows {
            disk[at] ^= 1;
            let content = look_at(&disk);
            assert_eq!(content.name, name);
            assert_eq!(content.problems.len(), 1, "{name} at {at}: {:?}", content.problems);
        }
    }

    #[test]
    fn what_is_larger_than_its_place_is_a_problem() {
        let mut disk = swap_area();
        disk.truncate(1 << 20);
        assert_eq!(look_at(&disk).problems.len(), 1);
    }

    #[test]
    fn nothing_is_empty_and_noise_is_unknown() {
        assert_eq!(look_at(&blank()).name, "empty");
        assert_eq!(look_at(&[]).name, "empty");
        let mut disk = blank();
        disk[(1 << 20) - 1] = 7;
        assert_eq!(look_at(&disk).name, "unknown");
    }

    #[test]
    fn no_content_makes_it_panic() {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |end: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % u64::try_from(end).unwrap()).unwrap()
        };
        for good in [swap_area(), xfs_of_two_groups(), physical_volume(), fat()] {
            let mut head = good[..HEAD_BYTES].to_vec();
            for round in 0..500 {
                if round % 10 == 0 {
                    head.copy_from_slice(&good[..HEAD_BYTES]);
                }
                head[random(1100)] = u8::try_from(random(256)).unwrap();
                let _ = look_at(&head);
            }
        }
    }
}
