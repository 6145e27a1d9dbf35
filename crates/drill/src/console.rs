//! Judges a machine by what it prints on its serial console.
//!
//! Invariant: every byte is looked at a bounded number of times and little of it is kept,
//! however much a machine prints.

use std::collections::VecDeque;

use crate::problems::plain;

/// Said by firmware, boot loaders and early user space that will not go on by themselves.
const FAILURES: [&str; 12] = [
    "Kernel panic",
    "No bootable device",
    "Boot failed",
    "VFS: Cannot open root device",
    "Unable to mount root",
    "Gave up waiting for root",
    "You are in emergency mode",
    "(initramfs)",
    "grub rescue>",
    "error: no such partition",
    "Missing operating system",
    "Operating system not found",
];
/// Longer lines are no messages.
const LINE_BYTES_MAX: usize = 4096;
const CONSOLE_LINES: usize = 5;
const CONSOLE_LINE_CHARS_MAX: usize = 200;

/// What a console said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// In this line, that the machine is up.
    Booted(String),
    /// In this line, that it will not be.
    Failed(String),
}

/// Reads a console as it is printed.
#[derive(Debug)]
pub(crate) struct Judge {
    markers: Vec<String>,
    longest: usize,
    line: Vec<u8>,
    /// How much of the line has been searched.
    searched: usize,
    /// The last lines that were not empty.
    last: VecDeque<String>,
    state: State,
    /// Where the cursor was last put. Firmware begins lines that way.
    row: u32,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Text,
    Escape,
    /// A control sequence with its first number, and whether that has ended.
    Control {
        number: u32,
        has_ended: bool,
    },
    /// A title or the like, up to its end.
    Hidden,
    /// One more byte of an escape sequence.
    Last,
}

impl Judge {
    /// A judge who takes any of these for a machine that is up. Empty ones mean nothing.
    pub(crate) fn new(markers: &[String]) -> Self {
        let markers: Vec<String> =
            markers.iter().filter(|marker| !marker.is_empty()).cloned().collect();
        let lengths = markers.iter().map(String::len).chain(FAILURES.map(str::len));
        Self {
            longest: lengths.max().unwrap_or(0),
            markers,
            line: Vec::new(),
            searched: 0,
            last: VecDeque::new(),
            state: State::Text,
            row: 0,
        }
    }

    /// Whether there is anything that would mean success.
    pub(crate) fn has_markers(&self) -> bool {
        !self.markers.is_empty()
    }

    /// Takes what was printed next. A line need not have ended to be judged: a prompt does
    /// not end.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Option<Verdict> {
        bytes.iter().find_map(|byte| self.take(*byte)).or_else(|| self.search())
    }

    /// The last lines.
    pub(crate) fn console(&self) -> Vec<String> {
        let unfinished = readable(&self.line);
        let all: Vec<String> = self.last.iter().cloned().chain(unfinished).collect();
        all[all.len().saturating_sub(CONSOLE_LINES)..].to_vec()
    }

    /// Whether there was any text.
    pub(crate) fn has_printed(&self) -> bool {
        !self.last.is_empty() || readable(&self.line).is_some()
    }

    fn take(&mut self, byte: u8) -> Option<Verdict> {
        match self.state {
            State::Text => return self.take_text(byte),
            State::Escape => self.state = after_escape(byte),
            State::Control { number, has_ended } => {
                return self.take_control(byte, number, has_ended);
            }
            State::Hidden if byte == 0x07 => self.state = State::Text,
            State::Hidden if byte == 0x1b => self.state = State::Escape,
            State::Hidden => {}
            State::Last => self.state = State::Text,
        }
        None
    }

    fn take_text(&mut self, byte: u8) -> Option<Verdict> {
        match byte {
            b'\n' => return self.end_line(),
            0x1b => self.state = State::Escape,
            b'\t' => self.line.push(b' '),
            0..0x20 | 0x7f => {}
            _ => self.line.push(byte),
        }
        if self.line.len() < LINE_BYTES_MAX { None } else { self.end_line() }
    }

    fn take_control(&mut self, byte: u8, number: u32, has_ended: bool) -> Option<Verdict> {
        let number = match byte {
            b'0'..=b'9' if !has_ended => {
                number.saturating_mul(10).saturating_add(u32::from(byte - b'0'))
            }
            _ => number,
        };
        if !(0x40..=0x7e).contains(&byte) {
            let has_ended = has_ended || !byte.is_ascii_digit();
            self.state = State::Control { number, has_ended };
            return None;
        }
        self.state = State::Text;
        if !matches!(byte, b'H' | b'f') || number == self.row {
            return None;
        }
        self.row = number;
        self.end_line()
    }

    fn end_line(&mut self) -> Option<Verdict> {
        let verdict = self.search();
        if let Some(text) = readable(&self.line) {
            self.last.push_back(text);
            if self.last.len() > CONSOLE_LINES {
                self.last.pop_front();
            }
        }
        self.line.clear();
        self.searched = 0;
        verdict
    }

    /// Searches what is new of the line, and as much before it as a text may have begun in.
    fn search(&mut self) -> Option<Verdict> {
        let from = self.searched.saturating_sub(self.longest);
        let fresh = self.line.get(from..).unwrap_or(&[]);
        let holds = |text: &str| fresh.windows(text.len()).any(|window| window == text.as_bytes());
        let has_failed = FAILURES.iter().any(|text| holds(text));
        let has_booted = self.markers.iter().any(|text| holds(text));
        self.searched = self.line.len();
        let text = || readable(&self.line).unwrap_or_default();
        match (has_failed, has_booted) {
            (true, _) => Some(Verdict::Failed(text())),
            (false, true) => Some(Verdict::Booted(text())),
            (false, false) => None,
        }
    }
}

fn after_escape(byte: u8) -> State {
    match byte {
        b'[' => State::Control { number: 0, has_ended: false },
        b']' | b'P' | b'X' | b'^' | b'_' => State::Hidden,
        b' '..=b'/' => State::Last,
        _ => State::Text,
    }
}

/// A line as it is shown, unless there is nothing to see.
fn readable(line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim();
    (!text.is_empty()).then(|| plain(text, CONSOLE_LINE_CHARS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge() -> Judge {
        Judge::new(&["login:".to_owned(), String::new()])
    }

    #[test]
    fn a_prompt_need_not_end_its_line() {
        let mut judge = judge();
        assert_eq!(judge.feed(b"Welcome\r\n\r\nhost log"), None);
        assert_eq!(judge.feed(b"in: "), Some(Verdict::Booted("host login:".to_owned())));
    }

    #[test]
    fn a_byte_at_a_time_makes_no_difference() {
        let mut judge = judge();
        let text = b"\x1b[2J\x1b[1;1HBooting from Hard Disk...\r\n\x1b[0mNo bootable device.\r\n";
        let verdicts: Vec<Verdict> = text.iter().filter_map(|byte| judge.feed(&[*byte])).collect();
        assert!(matches!(&verdicts[0], Verdict::Failed(line) if line == "No bootable device"));
    }

    #[test]
    fn the_first_to_be_said_counts() {
        let said = b"Kernel panic - not syncing\r\nhost login: ";
        let verdict = judge().feed(said);
        assert_eq!(verdict, Some(Verdict::Failed("Kernel panic - not syncing".to_owned())));
    }

    #[test]
    fn colours_and_titles_are_not_text() {
        let mut judge = judge();
        judge.feed(b"\x1b]0;login:\x07\x1b(B\x1b[1;31mred\x1b[0m\n");
        assert_eq!(judge.console(), ["red"]);
    }

    #[test]
    fn a_cursor_put_elsewhere_begins_a_line() {
        let mut judge = judge();
        judge.feed(b"\x1b[3;1Hone\x1b[3;4H two\x1b[4;1Hthree");
        assert_eq!(judge.console(), ["one two", "three"]);
    }

    #[test]
    fn the_console_keeps_its_last_lines_only() {
        let mut judge = judge();
        for number in 0..100 {
            judge.feed(format!("line {number}\n\n").as_bytes());
        }
        judge.feed(&[b'x'; 1000]);
        let console = judge.console();
        assert_eq!(console.len(), 5);
        assert_eq!(console[3], "line 99");
        assert_eq!(console[4].len(), 200);
    }

    #[test]
    fn a_line_without_end_is_cut_and_nothing_is_kept() {
        let mut judge = judge();
        for _ in 0..1000 {
            assert_eq!(judge.feed(&[0xff; 1000]), None);
        }
        assert!(judge.line.len() <= LINE_BYTES_MAX);
    }
}
