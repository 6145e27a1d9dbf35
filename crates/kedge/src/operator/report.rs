//! What a verb tells of each repository: lines for people, or one JSON document.
//!
//! Progress goes to standard error, as a bar where that is a terminal and as a line where
//! it is not; results go to standard output. `docs/repository-commands.md` describes the
//! document's fields.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kedge_core::ids::ProjectId;
use serde_json::{Map, Value, json};

use super::{Found, say};
use crate::failure::Failure;

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// How results are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Lines,
    Json,
}

impl Form {
    pub(super) fn json_if(json: bool) -> Self {
        if json { Self::Json } else { Self::Lines }
    }
}

/// What came of one repository.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// In a few words, for people.
    pub(super) summary: String,
    /// The same for programs.
    pub(super) fields: Map<String, Value>,
    /// What is wrong: the object and what is wrong with it.
    pub(super) problems: Vec<(String, String)>,
}

impl Outcome {
    pub(super) fn new(summary: impl Into<String>, fields: Value) -> Self {
        let fields = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        Self { summary: summary.into(), fields, problems: Vec::new() }
    }

    pub(super) fn with_problems(self, problems: Vec<(String, String)>) -> Self {
        Self { problems, ..self }
    }
}

/// Collects what came of every repository, and tells it.
#[derive(Debug)]
pub(super) struct Report {
    command: &'static str,
    form: Form,
    documents: Vec<Value>,
    found: Found,
}

impl Report {
    pub(super) fn new(command: &'static str, form: Form) -> Self {
        Self { command, form, documents: Vec::new(), found: Found::Good }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Tells what came of a repository.
    pub(super) fn add(
        &mut self,
        project: &ProjectId,
        outcome: Result<Outcome, String>,
    ) -> Result<(), Failure> {
        let (outcome, error) = match outcome {
            Ok(outcome) => (outcome, None),
            Err(error) => (Outcome::default(), Some(error)),
        };
        let good = error.is_none() && outcome.problems.is_empty();
        if !good {
            self.found = Found::Problems;
        }
        match self.form {
            Form::Lines => tell_lines(project, &outcome, error.as_deref()),
            Form::Json => {
                self.documents.push(document(project, outcome, error));
                Ok(())
            }
        }
    }

    /// Ends the report; `more` are fields of the whole document.
    pub(super) fn end(self, more: Value) -> Result<Found, Failure> {
        if self.form == Form::Json {
            let mut whole = json!({
                "command": self.command,
                "good": self.found == Found::Good,
                "repositories": self.documents,
            });
            if let (Value::Object(whole), Value::Object(more)) = (&mut whole, more) {
                whole.extend(more);
            }
            say(&format!("{whole:#}"))?;
        }
        Ok(self.found)
    }
}

fn tell_lines(project: &ProjectId, outcome: &Outcome, error: Option<&str>) -> Result<(), Failure> {
    match error {
        Some(error) => say(&format!("{project}: failed: {}", printable(error)))?,
        None => say(&format!("{project}: {}", printable(&outcome.summary)))?,
    }
    for (object, what) in &outcome.problems {
        say(&format!("{project}: problem: {}: {}", printable(object), printable(what)))?;
    }
    Ok(())
}

fn document(project: &ProjectId, outcome: Outcome, error: Option<String>) -> Value {
    let problems: Vec<_> = outcome
        .problems
        .into_iter()
        .map(|(object, what)| json!({ "object": object, "what": what }))
        .collect();
    let mut document = Map::new();
    document.insert("project".to_owned(), json!(project.as_str()));
    document.insert("good".to_owned(), json!(error.is_none() && problems.is_empty()));
    document.insert("error".to_owned(), json!(error));
    document.insert("problems".to_owned(), json!(problems));
    document.extend(outcome.fields);
    Value::Object(document)
}

/// Text of a repository, with nothing that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// Work under way on one repository.
#[derive(Clone, Debug)]
pub(super) struct Progress(Option<ProgressBar>);

impl Progress {
    /// Shows nothing.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self(None)
    }

    /// Begins to show work whose end nobody knows.
    pub(super) fn begin(form: Form, doing: &str, project: &ProjectId) -> Self {
        Self::with(form, doing, project, || {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed}  {msg}");
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(TICK);
            style.map_or(bar.clone(), |style| bar.with_style(style))
        })
    }

    /// Begins to show work on so many bytes.
    pub(super) fn begin_bytes(form: Form, doing: &str, project: &ProjectId, bytes: u64) -> Self {
        Self::with(form, doing, project, || {
            let template = "{prefix} [{bar:30}] {bytes} of {total_bytes}  {bytes_per_sec}  {eta}";
            let style = ProgressStyle::with_template(template);
            let bar = ProgressBar::new(bytes);
            style.map_or(bar.clone(), |style| bar.with_style(style.progress_chars("=> ")))
        })
    }

    fn with(
        form: Form,
        doing: &str,
        project: &ProjectId,
        bar: impl FnOnce() -> ProgressBar,
    ) -> Self {
        let prefix = format!("{doing} {project}");
        match form {
            Form::Json => Self(None),
            Form::Lines if std::io::stderr().is_terminal() => Self(Some(bar().with_prefix(prefix))),
            Form::Lines => {
                // Nobody need read it.
                let _ = writeln!(std::io::stderr(), "{prefix} …");
                Self(None)
            }
        }
    }

    pub(super) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// What the engine tells of its progress goes to the bar.
impl kedge_engine::Progress for Progress {
    fn advance(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_repository_reaches_the_terminal_as_a_command() {
        assert_eq!(printable("a\u{1b}[2Jb\nc\u{9b}ä"), "a\\u{1b}[2Jb\\nc\\u{9b}ä");
    }

    #[test]
    fn a_document_says_what_is_good_and_what_is_not() {
        let project = ProjectId::new("p");
        let good = document(&project, Outcome::new("fine", json!({"packs": 3})), None);
        assert_eq!(
            good,
            json!({"project": "p", "good": true, "error": null, "problems": [], "packs": 3})
        );
        let problems = vec![("data/x".to_owned(), "missing".to_owned())];
        let bad = document(&project, Outcome::default().with_problems(problems), None);
        assert_eq!(bad["good"], json!(false));
        assert_eq!(bad["problems"], json!([{"object": "data/x", "what": "missing"}]));
        let failed = document(&project, Outcome::default(), Some("gone".to_owned()));
        assert_eq!((&failed["good"], &failed["error"]), (&json!(false), &json!("gone")));
    }
}
