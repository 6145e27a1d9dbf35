//! Lists of what is wrong: for people, so they end before nobody reads on.

use kedge_core::drill::DiskReport;

/// As many as tell what kind of damage it is.
const TEXTS_MAX: usize = 20;
/// A path may be eight times as long, but says no more.
const TEXT_CHARS_MAX: usize = 500;
/// More than every table that is read here can hold.
const PARTITIONS_MAX: usize = 128;
/// Of all texts of a disk together: reports are kept, and many are shown at once.
const REPORT_CHARS_MAX: usize = 16 << 10;
const CONTENT_CHARS_MAX: usize = 32;
const MORE: &str = "and more";

/// Adds to a list that ends with "and more".
pub(crate) fn note(problems: &mut Vec<String>, text: impl Into<String>) {
    match problems.len() {
        0..TEXTS_MAX => problems.push(plain(&text.into(), TEXT_CHARS_MAX)),
        TEXTS_MAX => problems.push(MORE.to_owned()),
        _ => {}
    }
}

/// Makes a report of a child that may have been taken over harmless to show and to keep.
pub(crate) fn cap(report: &mut DiskReport) {
    report.partitions.truncate(PARTITIONS_MAX);
    cap_list(&mut report.problems);
    for partition in &mut report.partitions {
        partition.content = plain(&partition.content, CONTENT_CHARS_MAX);
        cap_list(&mut partition.problems);
    }
    let mut left = REPORT_CHARS_MAX;
    let lists = report.partitions.iter_mut().map(|partition| &mut partition.problems);
    for list in std::iter::once(&mut report.problems).chain(lists) {
        list.retain(|text| {
            let chars = text.chars().count();
            let fits = chars <= left;
            left = left.saturating_sub(chars);
            fits
        });
    }
}

fn cap_list(problems: &mut Vec<String>) {
    problems.truncate(TEXTS_MAX + 1);
    for text in problems {
        *text = plain(text, TEXT_CHARS_MAX);
    }
}

/// Text without control characters, of at most so many characters.
pub(crate) fn plain(text: &str, chars_max: usize) -> String {
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(chars_max).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use kedge_core::drill::{Depth, PartitionReport};

    use super::*;

    #[test]
    fn however_many_partitions_complain_a_report_stays_small() {
        let partition = |number| PartitionReport {
            number,
            offset_bytes: 0,
            size_bytes: 1,
            content: "ext4".to_owned(),
            depth: Depth::Walked,
            files: 1,
            problems: vec!["\u{1f980}".repeat(500); 20],
        };
        let partitions = (0..300).map(partition).collect();
        let mut report = DiskReport { partitions, ..DiskReport::default() };
        cap(&mut report);
        let chars: usize = report.problems().map(|text| text.chars().count()).sum();
        assert!(chars < 2 * REPORT_CHARS_MAX, "{chars}");
        assert!(report.problems().next().is_some());
    }

    #[test]
    fn a_list_ends_with_and_more() {
        let mut problems = Vec::new();
        for number in 0..1000 {
            note(&mut problems, format!("{number}"));
        }
        assert_eq!(problems.len(), 21);
        assert_eq!(problems.last().map(String::as_str), Some(MORE));
    }

    #[test]
    fn text_is_short_and_printable() {
        assert_eq!(plain("a\x1b[2Jb\n", 4), "a\u{fffd}[2");
    }
}
