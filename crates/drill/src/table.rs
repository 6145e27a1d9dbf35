//! Reads how a disk is divided: MBR with its chain of logical partitions, or GPT with both
//! of its copies.
//!
//! Invariant: a partition that is handed out has at least one byte and no overflowing end.
//! It may well reach past the disk; that is then among the problems.

use kedge_core::drill::TableKind;

use crate::bytes::{Bytes, byte, has, le16, le32, le64, read, without32};
use crate::crc::crc32;
use crate::problems::note;

/// MBR counts in these.
const SECTOR_BYTES: u64 = 512;
/// A GPT counts in the disk's sectors, which no field of it tells.
const SECTOR_BYTES_OF_GPT: [u64; 2] = [512, 4096];
const BOOT_SIGNATURE: u16 = 0xaa55;
const GPT_SIGNATURE: &[u8] = b"EFI PART";
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// A longer chain of logical partitions is a loop; no tool makes as many.
const LOGICAL_MAX: u32 = 64;
/// Tables have 128; a checksum over more than this is nobody's partition table.
const GPT_ENTRIES_MAX: u32 = 4096;

/// A disk's division.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) kind: TableKind,
    pub(crate) parts: Vec<Part>,
    pub(crate) problems: Vec<String>,
}

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// Reads the table. The error says that the disk's first sector could not be read.
pub(crate) fn read_table(disk: &dyn Bytes) -> Result<Table, String> {
    if disk.size() < SECTOR_BYTES {
        return Ok(Table::default());
    }
    let sector = read(disk, 0, 512)?;
    if !is_mbr(&sector) {
        return Ok(read_lone_gpt(disk));
    }
    let is_protective = entries(&sector).iter().any(|entry| entry.kind == PROTECTIVE);
    Ok(if is_protective { read_gpt(disk) } else { read_mbr(disk, &sector) })
}

/// One of the four entries of a boot record.
#[derive(Clone, Copy, Debug)]
struct Entry {
    number: u32,
    flag: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.sectors != 0
    }

    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    /// Sectors have 32 bits, so none of this can overflow.
    fn part(self, number: u32, base: u64) -> Part {
        let offset = (base + u64::from(self.start)) * SECTOR_BYTES;
        Part { number, offset, size: u64::from(self.sectors) * SECTOR_BYTES }
    }
}

fn entries(sector: &[u8]) -> [Entry; 4] {
    [(1, 446), (2, 462), (3, 478), (4, 494)].map(|(number, at)| Entry {
        number,
        flag: byte(sector, at),
        kind: byte(sector, at + 4),
        start: le32(sector, at + 8),
        sectors: le32(sector, at + 12),
    })
}

/// The boot sector of a file system has the same signature. There, code or nothing stands
/// where a table has flags of two values and at least one partition.
fn is_mbr(sector: &[u8]) -> bool {
    let entries = entries(sector);
    le16(sector, 510) == BOOT_SIGNATURE
        && entries.iter().all(|entry| entry.flag & 0x7f == 0)
        && entries.iter().any(|entry| entry.is_used())
}

fn read_mbr(disk: &dyn Bytes, sector: &[u8]) -> Table {
    let mut table = Table { kind: TableKind::Mbr, ..Table::default() };
    let used = entries(sector).into_iter().filter(|entry| entry.is_used());
    let (extended, plain): (Vec<Entry>, Vec<Entry>) = used.partition(|entry| entry.is_extended());
    table.parts = plain.iter().map(|entry| entry.part(entry.number, 0)).collect();

    let containers = extended.iter().map(|entry| entry.part(entry.number, 0));
    let primary: Vec<Part> = table.parts.iter().copied().chain(containers).collect();
    check_layout(&primary, disk.size(), &mut table.problems);
    if let Some(container) = extended.first() {
        let logical = read_logical(disk, u64::from(container.start), &mut table.problems);
        check_layout(&logical, disk.size(), &mut table.problems);
        table.parts.extend(logical);
    }
    table
}

/// Follows the chain of boot records, each of which has one partition and names the next.
fn read_logical(disk: &dyn Bytes, container: u64, problems: &mut Vec<String>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut at = container;
    for number in (5..).take(LOGICAL_MAX as usize) {
        let sector = match read(disk, at * SECTOR_BYTES, 512) {
            Ok(sector) if le16(&sector, 510) == BOOT_SIGNATURE => sector,
            Ok(_) => {
                note(problems, format!("logical partition {number} has no boot record"));
                return parts;
            }
            Err(text) => {
                note(problems, format!("logical partition {number} could not be read: {text}"));
                return parts;
            }
        };
        let [own, next, ..] = entries(&sector);
        if own.is_used() {
            parts.push(own.part(number, at));
        }
        if !next.is_used() {
            return parts;
        }
        at = container + u64::from(next.start);
    }
    note(problems, format!("the chain of logical partitions is longer than {LOGICAL_MAX}"));
    parts
}

/// A GPT without the boot record that protects it, which no more than one tool ignores.
fn read_lone_gpt(disk: &dyn Bytes) -> Table {
    let found = |sector_bytes: &u64| Header::read(disk, 1, *sector_bytes).is_ok();
    if !SECTOR_BYTES_OF_GPT.iter().any(found) {
        return Table::default();
    }
    let mut table = read_gpt(disk);
    note(&mut table.problems, "the boot record that protects the partition table is missing");
    table
}

fn read_gpt(disk: &dyn Bytes) -> Table {
    let sector_bytes = sector_bytes_of_gpt(disk);
    let mut table = Table { kind: TableKind::Gpt, ..Table::default() };
    let last = disk.size() / sector_bytes - 1;
    let primary = Header::read(disk, 1, sector_bytes);
    // The backup lies at the end of the disk that the table was made for. A disk may have
    // grown since, and its table not been told.
    let backup_at = primary.as_ref().map_or(last, |header| header.other);
    let backup = Header::read(disk, backup_at, sector_bytes);
    let problems = &mut table.problems;
    let header = match (primary, backup) {
        (Ok(primary), Ok(backup)) => {
            if primary.parts != backup.parts {
                note(problems, "the two copies of the partition table differ");
            }
            primary
        }
        (Ok(primary), Err(why)) => {
            note(problems, format!("the backup partition table is damaged: {why}"));
            primary
        }
        (Err(why), Ok(backup)) => {
            note(problems, format!("the partition table is damaged, its backup is not: {why}"));
            backup
        }
        (Err(why), Err(_)) => {
            note(problems, format!("both copies of the partition table are damaged: {why}"));
            return table;
        }
    };
    header.problems.into_iter().for_each(|text| note(problems, text));
    check_layout(&header.parts, disk.size(), problems);
    table.parts = header.parts;
    table
}

/// The size at which a header is found, at the front or at the back.
fn sector_bytes_of_gpt(disk: &dyn Bytes) -> u64 {
    let has_signature = |offset| read(disk, offset, 8).is_ok_and(|found| found == GPT_SIGNATURE);
    let at_front = SECTOR_BYTES_OF_GPT.into_iter().find(|size| has_signature(*size));
    let at_back = || {
        let last = |size: u64| (disk.size() / size).saturating_sub(1) * size;
        SECTOR_BYTES_OF_GPT.into_iter().find(|size| has_signature(last(*size)))
    };
    at_front.or_else(at_back).filter(|size| disk.size() >= *size).unwrap_or(SECTOR_BYTES)
}

/// One copy of a GPT whose checksums are right.
#[derive(Debug)]
struct Header {
    /// Where the other copy is.
    other: u64,
    parts: Vec<Part>,
    problems: Vec<String>,
}

impl Header {
    fn read(disk: &dyn Bytes, at: u64, sector_bytes: u64) -> Result<Self, String> {
        let offset = at.checked_mul(sector_bytes).ok_or("it lies past the end")?;
        let sector = read(disk, offset, 512)?;
        if !has(&sector, 0, GPT_SIGNATURE) {
            return Err("it has no signature".to_owned());
        }
        let header = usize::try_from(le32(&sector, 12)).ok().and_then(|size| sector.get(..size));
        let header = header.filter(|header| header.len() >= 92).ok_or("its size is impossible")?;
        if crc32(&without32(header, 16)) != le32(header, 16) {
            return Err("its checksum is wrong".to_owned());
        }
        if le64(header, 24) != at {
            return Err("it belongs to another place".to_owned());
        }
        let list = Self::read_list(disk, header, sector_bytes)?;
        let (parts, problems) = Self::parts(&list, entry_bytes(header), sector_bytes);
        Ok(Self { other: le64(header, 32), parts, problems })
    }

    fn read_list(disk: &dyn Bytes, header: &[u8], sector_bytes: u64) -> Result<Vec<u8>, String> {
        let (count, each) = (le32(header, 80), entry_bytes(header));
        if count > GPT_ENTRIES_MAX || !(128..=512).contains(&each) {
            return Err("its list has an impossible size".to_owned());
        }
        let offset = le64(header, 72).checked_mul(sector_bytes).ok_or("its list is nowhere")?;
        let list = read(disk, offset, count as usize * each)?;
        if crc32(&list) == le32(header, 88) {
            Ok(list)
        } else {
            Err("the checksum of its list is wrong".to_owned())
        }
    }

    fn parts(list: &[u8], each: usize, sector_bytes: u64) -> (Vec<Part>, Vec<String>) {
        let (mut parts, mut problems) = (Vec::new(), Vec::new());
        for (number, entry) in (1..).zip(list.chunks_exact(each)) {
            if has(entry, 0, &[0; 16]) {
                continue;
            }
            match gpt_part(number, entry, sector_bytes) {
                Some(part) => parts.push(part),
                None => note(&mut problems, format!("partition {number} ends before it begins")),
            }
        }
        (parts, problems)
    }
}

fn entry_bytes(header: &[u8]) -> usize {
    le32(header, 84) as usize
}

fn gpt_part(number: u32, entry: &[u8], sector_bytes: u64) -> Option<Part> {
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let offset = first.checked_mul(sector_bytes)?;
    let size = sectors.checked_mul(sector_bytes)?;
    offset.checked_add(size)?;
    Some(Part { number, offset, size })
}

fn check_layout(parts: &[Part], disk_size: u64, problems: &mut Vec<String>) {
    for part in parts {
        if part.offset + part.size > disk_size {
            note(problems, format!("partition {} reaches past the end of the disk", part.number));
        }
    }
    let mut sorted = parts.to_vec();
    sorted.sort_by_key(|part| (part.offset, part.number));
    for pair in sorted.windows(2) {
        let [one, other] = pair else { continue };
        if other.offset < one.offset + one.size {
            let text = format!("partitions {} and {} overlap", one.number, other.number);
            note(problems, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTORS: u64 = 2048;

    fn put(disk: &mut [u8], at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).unwrap();
        disk[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn blank() -> Vec<u8> {
        vec![0; usize::try_from(SECTORS * 512).unwrap()]
    }

    fn put_entry(disk: &mut [u8], sector: u64, index: u64, kind: u8, start: u32, sectors: u32) {
        let at = sector * 512 + 446 + index * 16;
        put(disk, at + 4, &[kind]);
        put(disk, at + 8, &start.to_le_bytes());
        put(disk, at + 12, &sectors.to_le_bytes());
        put(disk, sector * 512 + 510, &[0x55, 0xaa]);
    }

    fn put_gpt_copy(disk: &mut [u8], at: u64, other: u64, list_at: u64, parts: &[(u64, u64)]) {
        let mut list = vec![0; 128 * 128];
        for (index, (first, last)) in (0..).zip(parts) {
            put(&mut list, index * 128, &[1; 32]);
            put(&mut list, index * 128 + 32, &first.to_le_bytes());
            put(&mut list, index * 128 + 40, &last.to_le_bytes());
        }
        let mut header = vec![0; 92];
        put(&mut header, 0, GPT_SIGNATURE);
        put(&mut header, 12, &92_u32.to_le_bytes());
        put(&mut header, 24, &at.to_le_bytes());
        put(&mut header, 32, &other.to_le_bytes());
        put(&mut header, 72, &list_at.to_le_bytes());
        put(&mut header, 80, &128_u32.to_le_bytes());
        put(&mut header, 84, &128_u32.to_le_bytes());
        put(&mut header, 88, &crc32(&list).to_le_bytes());
        let sum = crc32(&header);
        put(&mut header, 16, &sum.to_le_bytes());
        put(disk, at * 512, &header);
        put(disk, list_at * 512, &list);
    }

    fn gpt(parts: &[(u64, u64)]) -> Vec<u8> {
        let mut disk = blank();
        put_entry(&mut disk, 0, 0, PROTECTIVE, 1, u32::MAX);
        put_gpt_copy(&mut disk, 1, SECTORS - 1, 2, parts);
        put_gpt_copy(&mut disk, SECTORS - 1, 1, SECTORS - 33, parts);
        disk
    }

    fn mbr_with_logicals() -> Vec<u8> {
        let mut disk = blank();
        put_entry(&mut disk, 0, 0, 0x83, 100, 100);
        put_entry(&mut disk, 0, 1, 0x05, 200, 1000);
        put_entry(&mut disk, 200, 0, 0x83, 10, 90);
        put_entry(&mut disk, 200, 1, 0x05, 500, 500);
        put_entry(&mut disk, 700, 0, 0x82, 10, 20);
        disk
    }

    fn numbers(table: &Table) -> Vec<u32> {
        table.parts.iter().map(|part| part.number).collect()
    }

    #[test]
    fn a_good_gpt_has_its_partitions_and_no_problem() {
        let table = read_table(&gpt(&[(64, 127), (128, 1023)])).unwrap();
        assert_eq!(table.kind, TableKind::Gpt);
        assert_eq!(table.problems, [""; 0]);
        let second = Part { number: 2, offset: 128 * 512, size: 896 * 512 };
        assert_eq!(table.parts[1], second);
    }

    #[test]
    fn one_damaged_copy_is_a_problem_and_the_other_is_used() {
        for (at, text) in [(512 + 40, "its backup is not"), (2047 * 512 + 40, "backup")] {
            let mut disk = gpt(&[(64, 127)]);
            disk[at] ^= 1;
            let table = read_table(&disk).unwrap();
            assert_eq!(numbers(&table), [1]);
            assert_eq!(table.problems.len(), 1);
            assert!(table.problems[0].contains(text), "{:?}", table.problems);
        }
    }

    #[test]
    fn two_damaged_copies_leave_nothing() {
        let mut disk = gpt(&[(64, 127)]);
        disk[2 * 512] ^= 1;
        disk[(2048 - 33) * 512] ^= 1;
        let table = read_table(&disk).unwrap();
        assert_eq!((table.kind, table.parts.len()), (TableKind::Gpt, 0));
        assert!(table.problems[0].starts_with("both copies"), "{:?}", table.problems);
    }

    #[test]
    fn a_gpt_without_its_boot_record_is_read_and_complained_of() {
        let mut disk = gpt(&[(64, 127)]);
        disk[..512].fill(0);
        let table = read_table(&disk).unwrap();
        assert_eq!(numbers(&table), [1]);
        assert_eq!(table.problems.len(), 1);
    }

    #[test]
    fn a_shortened_disk_shows() {
        let mut disk = gpt(&[(64, 127), (128, 1900)]);
        disk.truncate(1024 * 512);
        let table = read_table(&disk).unwrap();
        assert_eq!(table.problems.len(), 2, "{:?}", table.problems);
        assert!(table.problems[1].contains("partition 2 reaches past the end"));
    }

    #[test]
    fn logical_partitions_are_followed() {
        let table = read_table(&mbr_with_logicals()).unwrap();
        assert_eq!(table.kind, TableKind::Mbr);
        assert_eq!(table.problems, [""; 0]);
        assert_eq!(numbers(&table), [1, 5, 6]);
        assert_eq!(table.parts[2].offset, 710 * 512);
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let mut disk = mbr_with_logicals();
        put_entry(&mut disk, 700, 1, 0x05, 500, 500);
        let table = read_table(&disk).unwrap();
        assert!(table.problems.iter().any(|text| text.contains("longer than 64")));
    }

    #[test]
    fn overlaps_and_ends_past_the_disk_are_problems() {
        let mut disk = blank();
        put_entry(&mut disk, 0, 0, 0x83, 100, 100);
        put_entry(&mut disk, 0, 1, 0x83, 150, 100);
        put_entry(&mut disk, 0, 2, 0x83, 1000, 5000);
        let table = read_table(&disk).unwrap();
        assert_eq!(table.problems.len(), 2, "{:?}", table.problems);
    }

    #[test]
    fn a_boot_sector_of_a_file_system_is_no_table() {
        let mut disk = blank();
        put(&mut disk, 446, b"Non-system disk, press any key to reboot");
        put(&mut disk, 510, &[0x55, 0xaa]);
        assert_eq!(read_table(&disk).unwrap().kind, TableKind::None);
        assert_eq!(read_table(&blank()).unwrap().kind, TableKind::None);
        assert_eq!(read_table(&vec![0_u8; 10]).unwrap().kind, TableKind::None);
    }

    /// Xorshift: the same mutations with every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % u64::try_from(end).unwrap()).unwrap()
        }
    }

    #[test]
    fn no_disk_makes_it_panic() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for good in [gpt(&[(64, 127), (128, 1023)]), mbr_with_logicals()] {
            let mut disk = good.clone();
            for round in 0..3000 {
                if round % 20 == 0 {
                    disk.clone_from(&good);
                }
                let sector = [0, 1, 2, 200, 700, 2015, 2047][random.below(7)];
                let at = sector * 512 + random.below(512);
                disk[at] = u8::try_from(random.below(256)).unwrap();
                let _ = read_table(&disk);
                let mut header = disk[512..512 + 92].to_vec();
                header = without32(&header, 16);
                let sum = crc32(&header).to_le_bytes();
                disk[528..532].copy_from_slice(&sum);
                let _ = read_table(&disk);
            }
        }
    }
}
