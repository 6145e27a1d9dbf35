//! Receipts: a verdict kept as a signed record of what was asked, seen and answered, and on
//! what evidence. Each names the hash of the one before it in its project, so none can be
//! taken out, changed or put in between without its showing. Checking them takes this file's
//! [`verify`] and the public key, and nothing of the service.

use std::fmt::Write as _;

use kedge_core::evidence::Evidence;
use kedge_core::precondition::preconditions;
use kedge_core::refusal::Refusal;
use kedge_core::restore::{Facts, Question};
use kedge_core::time::Timestamp;
use kedge_store::ReceiptRow;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::app::{App, Parts};
use crate::context::Context;
use crate::error::Error;
use crate::explain::Explained;
use crate::keys::ServiceKey;

const FORMAT: u32 = 1;
/// Records loaded at once by whoever exports them.
const PAGE: u32 = 100;

/// Signs receipts. The key is made of the service key, and goes with it.
pub(crate) struct Signer(Ed25519KeyPair);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer(..)")
    }
}

/// A record as it is exported: one line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// What was signed, to the letter.
    pub body: String,
    /// Ed25519 over the bytes of `body`, hexadecimal.
    pub signature: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    format: u32,
    project: String,
    sequence: u64,
    /// SHA-256 of the body before, hexadecimal; empty for the first.
    previous: String,
    /// The key that signs, hexadecimal.
    public_key: String,
    at: String,
    verdicts: Vec<VerdictBody>,
}

#[derive(Serialize, Deserialize)]
struct VerdictBody {
    checkpoint_item_id: String,
    resource_id: String,
    volumes: Vec<(String, String)>,
    result: bool,
    error_code: String,
    error_msg: String,
    seen: Vec<kedge_core::precondition::Precondition>,
    grade: Option<String>,
    read_since: Option<String>,
    present_at: Option<String>,
    drilled_at: Option<String>,
}

/// Why a chain of receipts is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record {number}: {what}")]
pub struct Broken {
    /// Which record, from 1.
    pub number: u64,
    /// What is wrong with it.
    pub what: String,
}

/// What a chain that holds says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Records in it.
    pub records: u64,
    /// The hash of the last one. Whoever noted it earlier can tell that nothing was cut off.
    pub head: String,
    /// The project it is of.
    pub project: String,
    /// The keys that signed, in the order in which they first did.
    pub keys: Vec<String>,
}

impl Signer {
    pub(crate) fn of(key: &ServiceKey) -> Result<Self, Error> {
        let seed = key.receipt_seed();
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed[..]);
        pair.map(Self).map_err(|_| Error::Internal("no key for receipts".to_owned()))
    }

    fn public_key(&self) -> String {
        hex(self.0.public_key().as_ref())
    }

    fn sign(&self, body: &str) -> String {
        hex(self.0.sign(body.as_bytes()).as_ref())
    }
}

impl App {
    /// As [`App::explain_restorable`]; and what was asked, seen and answered is kept. Returns
    /// the receipt beside the answers.
    pub async fn receipt_restorable(
        &self,
        context: &Context,
        questions: Vec<Question>,
    ) -> Result<(Vec<Explained<kedge_core::restore::RestorePlan>>, Receipt), Error> {
        let facts = self.parts.facts_for_check(context, &questions).await?;
        let explained = self.explain_seen(context, &questions, facts.clone()).await?;
        let verdicts = questions.iter().zip(&facts).zip(&explained);
        let verdicts = verdicts.map(|((question, facts), explained)| {
            let verdict = explained.explanation.verdict.as_ref().map(|_| ());
            told(question, facts, verdict, explained.evidence.as_ref())
        });
        let receipt = self.parts.keep_receipt(context, verdicts.collect()).await?;
        Ok((explained, receipt))
    }

    /// The receipts of the project after a number, in their order, some at a time.
    pub async fn list_receipts(
        &self,
        context: &Context,
        after: u64,
    ) -> Result<Vec<Receipt>, Error> {
        let rows = self.parts.store.list_receipts(context.project(), after, PAGE).await?;
        Ok(rows.into_iter().map(Receipt::from).collect())
    }
}

impl From<ReceiptRow> for Receipt {
    fn from(row: ReceiptRow) -> Self {
        Self { body: row.body, signature: row.signature }
    }
}

impl Parts {
    async fn keep_receipt(
        &self,
        context: &Context,
        verdicts: Vec<VerdictBody>,
    ) -> Result<Receipt, Error> {
        let signer = self.repositories.receipt_signer()?;
        let at = self.clock.now();
        let project = context.project();
        let sign = |sequence: u64, previous: &str| {
            let body = Body {
                format: FORMAT,
                project: project.as_str().to_owned(),
                sequence,
                previous: previous.to_owned(),
                public_key: signer.public_key(),
                at: at.to_string(),
                verdicts,
            };
            // Plain texts and numbers always serialise.
            let body = serde_json::to_string(&body).unwrap_or_default();
            let (hash, signature) = (hash(&body), signer.sign(&body));
            ReceiptRow { sequence, body, hash, signature }
        };
        Ok(self.store.append_receipt(project, sign).await?.into())
    }
}

fn told(
    question: &Question,
    facts: &Facts,
    verdict: Result<(), &Refusal>,
    evidence: Option<&Evidence>,
) -> VerdictBody {
    let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
    let pairs = question.mapping.pairs().iter();
    VerdictBody {
        checkpoint_item_id: question.item.to_string(),
        resource_id: question.server.to_string(),
        volumes: pairs.map(|pair| (pair.backup.to_string(), pair.volume.to_string())).collect(),
        result: verdict.is_ok(),
        error_code: verdict.err().map(|no| no.code().to_string()).unwrap_or_default(),
        error_msg: verdict.err().map(ToString::to_string).unwrap_or_default(),
        seen: preconditions(question, facts),
        grade: evidence.map(|evidence| evidence.grade.as_str().to_owned()),
        read_since: text(evidence.and_then(|evidence| evidence.read_since)),
        present_at: text(evidence.and_then(|evidence| evidence.present_at)),
        drilled_at: text(evidence.and_then(|evidence| evidence.drilled).map(|drill| drill.at)),
    }
}

/// Whether these receipts, in their order and from the first on, are one project's whole
/// chain: every signature is that of the key it names, every record names the one before.
///
/// # Errors
/// The first record that is wrong.
pub fn verify(receipts: impl IntoIterator<Item = Receipt>) -> Result<Chain, Broken> {
    let (project, keys, head) = (String::new(), Vec::new(), String::new());
    let mut chain = Chain { records: 0, head, project, keys };
    for receipt in receipts {
        let number = chain.records + 1;
        let wrong = |what: &str| Broken { number, what: what.to_owned() };
        let body: Body =
            serde_json::from_str(&receipt.body).map_err(|error| wrong(&error.to_string()))?;
        if body.format != FORMAT {
            return Err(wrong("its format is not known"));
        }
        let (key, signature) = (unhex(&body.public_key), unhex(&receipt.signature));
        let (key, signature) = key.zip(signature).ok_or_else(|| wrong("it is not hexadecimal"))?;
        UnparsedPublicKey::new(&ED25519, key)
            .verify(receipt.body.as_bytes(), &signature)
            .map_err(|_| wrong("its signature is not of the key it names"))?;
        if body.sequence != number || body.previous != chain.head {
            return Err(wrong("it does not follow the one before it"));
        }
        if number == 1 {
            chain.project.clone_from(&body.project);
        }
        if body.project != chain.project {
            return Err(wrong("it is of another project"));
        }
        if !chain.keys.contains(&body.public_key) {
            chain.keys.push(body.public_key);
        }
        (chain.records, chain.head) = (number, hash(&receipt.body));
    }
    Ok(chain)
}

fn hash(body: &str) -> String {
    hex(&Sha256::digest(body.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map(byte).collect()
}
