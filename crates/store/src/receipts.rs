//! Verdicts that were kept as signed records, a chain for each project.

use kedge_core::ids::ProjectId;

use crate::db::Store;
use crate::error::Result;

/// A record as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptRow {
    /// Its number in the project's chain, from 1.
    pub sequence: u64,
    /// What was signed, to the letter.
    pub body: String,
    /// The hash of that, which the next one names.
    pub hash: String,
    /// The signature.
    pub signature: String,
}

impl Store {
    /// Adds a record to a project's chain. `sign` makes it of its number and of the hash of
    /// the one before, which is empty for the first.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn append_receipt(
        &self,
        project: &ProjectId,
        sign: impl FnOnce(u64, &str) -> ReceiptRow,
    ) -> Result<ReceiptRow> {
        let mut tx = self.write().await?;
        let last: Option<(i64, String)> = tx
            .query_as(
                "SELECT sequence, hash FROM receipts WHERE project_id = $1 \
                 ORDER BY sequence DESC LIMIT 1",
            )
            .bind(project.as_str().to_owned())
            .fetch_optional(tx.conn())
            .await?;
        let (sequence, previous) = last.unwrap_or_default();
        let row = sign(u64::try_from(sequence).unwrap_or(0) + 1, &previous);
        tx.query(
            "INSERT INTO receipts (project_id, sequence, body, hash, signature) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(project.as_str().to_owned())
        .bind(sequence + 1)
        .bind(row.body.clone())
        .bind(row.hash.clone())
        .bind(row.signature.clone())
        .execute(tx.conn())
        .await?;
        tx.commit().await?;
        Ok(row)
    }

    /// Records of a project's chain after a number, at most so many.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn list_receipts(
        &self,
        project: &ProjectId,
        after: u64,
        limit: u32,
    ) -> Result<Vec<ReceiptRow>> {
        let mut tx = self.read_one().await?;
        let rows: Vec<(i64, String, String, String)> = tx
            .query_as(
                "SELECT sequence, body, hash, signature FROM receipts \
                 WHERE project_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3",
            )
            .bind(project.as_str().to_owned())
            .bind(i64::try_from(after).unwrap_or(i64::MAX))
            .bind(i64::from(limit))
            .fetch_all(tx.conn())
            .await?;
        let row = |(sequence, body, hash, signature)| ReceiptRow {
            sequence: u64::try_from(sequence).unwrap_or(0),
            body,
            hash,
            signature,
        };
        Ok(rows.into_iter().map(row).collect())
    }
}
