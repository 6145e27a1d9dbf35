//! Puts together what is found on a disk.

use std::rc::Rc;

use kedge_core::drill::{DiskReport, PartitionReport, TableKind};

use crate::bytes::{Bytes, Window};
use crate::content::look;
use crate::table::{Part, read_table};

/// Looks at a disk's table and at each of its partitions. What cannot be read is a problem
/// of the disk.
pub fn inspect(disk: &Rc<dyn Bytes>) -> DiskReport {
    let table = match read_table(&**disk) {
        Ok(table) => table,
        Err(text) => {
            let problems = vec![format!("its first sector could not be read: {text}")];
            return DiskReport { problems, ..DiskReport::default() };
        }
    };
    let whole = [Part { number: 0, offset: 0, size: disk.size() }];
    let parts = if table.kind == TableKind::None { &whole[..] } else { &table.parts };
    DiskReport {
        table: table.kind,
        partitions: parts.iter().map(|part| inspect_part(disk, *part)).collect(),
        problems: table.problems,
    }
}

fn inspect_part(disk: &Rc<dyn Bytes>, part: Part) -> PartitionReport {
    // What reaches past the end is already a problem of the table.
    let size = part.size.min(disk.size().saturating_sub(part.offset));
    let window: Rc<dyn Bytes> =
        Rc::new(Window { disk: Rc::clone(disk), offset: part.offset, size });
    let content = look(&window);
    PartitionReport {
        number: part.number,
        offset_bytes: part.offset,
        size_bytes: part.size,
        content: content.name,
        depth: content.depth,
        files: content.files,
        problems: content.problems,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Unreadable;

    impl Bytes for Unreadable {
        fn size(&self) -> u64 {
            1 << 30
        }

        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), String> {
            Err("the repository is gone".to_owned())
        }
    }

    #[test]
    fn what_cannot_be_read_is_a_problem() {
        let disk: Rc<dyn Bytes> = Rc::new(Unreadable);
        let report = inspect(&disk);
        assert!(report.problems[0].contains("the repository is gone"));
    }

    #[test]
    fn a_disk_without_a_table_is_one_partition() {
        let disk: Rc<dyn Bytes> = Rc::new(vec![0; 2 << 20]);
        let report = inspect(&disk);
        assert_eq!(report.partitions.len(), 1);
        assert_eq!(
            (report.partitions[0].number, report.partitions[0].content.as_str()),
            (0, "empty")
        );
        assert_eq!(report.problems().count(), 0);
    }
}
