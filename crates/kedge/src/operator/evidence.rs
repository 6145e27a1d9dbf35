//! `kedge evidence`: receipts taken out of the catalogue, and checked without it.

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use kedge_core::ids::ProjectId;
use kedge_service::receipts::{Receipt, verify};
use kedge_store::Store;

use super::{Found, say};
use crate::arguments::{EvidenceVerb, ExportOptions, ReceiptsOptions};
use crate::config::Checked;
use crate::failure::{Failure, OrFail as _};

const PAGE: u32 = 500;

pub(crate) async fn run(verb: EvidenceVerb) -> Result<Found, Failure> {
    match verb {
        EvidenceVerb::Export(options) => export(&options).await,
        EvidenceVerb::Verify(options) => check(&options),
    }
}

/// Writes a project's chain, a record a line. Reads the catalogue beside a running service.
async fn export(options: &ExportOptions) -> Result<Found, Failure> {
    let config = Checked::read(&options.config)?;
    let path = config.state_dir.join("catalogue.sqlite");
    let store = Store::open_to_read(&path).await.or_fail("catalogue")?;
    let project = ProjectId::new(&options.project);
    let mut new = OpenOptions::new();
    let file = new.write(true).create_new(true).mode(0o600).open(&options.out);
    let mut file = file.or_fail(options.out.display())?;
    let mut records = 0;
    loop {
        let rows = store.list_receipts(&project, records, PAGE).await.or_fail("catalogue")?;
        let Some(last) = rows.last() else { break };
        records = last.sequence;
        for row in rows {
            let line = serde_json::to_string(&Receipt::from(row)).or_fail("a receipt")?;
            writeln!(file, "{line}").or_fail(options.out.display())?;
        }
    }
    file.sync_all().or_fail(options.out.display())?;
    store.close().await;
    say(&format!("{records} records in {}", options.out.display()))?;
    Ok(Found::Good)
}

/// Checks an exported chain: no catalogue, no key but the public one.
fn check(options: &ReceiptsOptions) -> Result<Found, Failure> {
    let receipts = read(&options.file)?;
    let chain = match verify(receipts) {
        Ok(chain) => chain,
        Err(broken) => {
            say(&format!("{}: {broken}", options.file.display()))?;
            return Ok(Found::Problems);
        }
    };
    let stranger = options.key.as_ref().filter(|key| chain.keys.iter().any(|one| one != *key));
    if let Some(key) = stranger {
        say(&format!("signed by other keys than {key}: {}", chain.keys.join(", ")))?;
        return Ok(Found::Problems);
    }
    let missing = options.head.as_ref().filter(|head| **head != chain.head);
    if let Some(head) = missing {
        say(&format!("the last record is {}, not {head}", chain.head))?;
        return Ok(Found::Problems);
    }
    say(&format!(
        "{} records of project {} hold; signed by {}; the last is {}",
        chain.records,
        chain.project,
        chain.keys.join(", "),
        chain.head
    ))?;
    Ok(Found::Good)
}

fn read(path: &Path) -> Result<Vec<Receipt>, Failure> {
    let file = std::fs::File::open(path).or_fail(path.display())?;
    let lines = BufReader::new(file).lines().enumerate();
    lines
        .map(|(number, line)| {
            let doing = format!("{}, line {}", path.display(), number + 1);
            serde_json::from_str(&line.or_fail(&doing)?).or_fail(&doing)
        })
        .collect()
}
