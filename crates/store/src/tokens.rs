//! Tokens of the built-in identity, stored only as hashes: who reads the catalogue gets
//! none of them.

use std::fmt;

use kedge_core::ids::ProjectId;
use kedge_core::time::Timestamp;
use sqlx::FromRow;

use crate::db::Store;
use crate::error::Result;
use crate::text::hex;

/// SHA-256 of a token. Its `Debug` shows nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// A token as the catalogue knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRow {
    /// Its hash.
    pub hash: TokenHash,
    /// Whose it is.
    pub user_id: String,
    /// The project it is for, if any.
    pub project_id: Option<ProjectId>,
    /// When it was given out.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
}

#[derive(FromRow)]
struct Row {
    user_id: String,
    project_id: Option<String>,
    issued_at: i64,
    expires_at: i64,
}

impl Store {
    /// Records a new token.
    ///
    /// # Errors
    /// [`crate::StoreError::Exists`] when its hash is known.
    pub async fn create_token(&self, token: &TokenRow) -> Result<()> {
        let mut tx = self.write().await?;
        tx.query(
            "INSERT INTO tokens (hash, user_id, project_id, issued_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(hex(&token.hash.0))
        .bind(token.user_id.clone())
        .bind(token.project_id.as_ref().map(ToString::to_string))
        .bind(token.issued_at.as_micros())
        .bind(token.expires_at.as_micros())
        .execute(tx.conn())
        .await?;
        tx.commit().await
    }

    /// The token with this hash, expired or not: the caller knows the time.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn find_token(&self, hash: &TokenHash) -> Result<Option<TokenRow>> {
        let mut tx = self.read_one().await?;
        let row: Option<Row> = tx
            .query_as(
                "SELECT user_id, project_id, issued_at, expires_at FROM tokens WHERE hash = $1",
            )
            .bind(hex(&hash.0))
            .fetch_optional(tx.conn())
            .await?;
        Ok(row.map(|row| TokenRow {
            hash: *hash,
            user_id: row.user_id,
            project_id: row.project_id.map(ProjectId::new),
            issued_at: Timestamp::from_micros(row.issued_at),
            expires_at: Timestamp::from_micros(row.expires_at),
        }))
    }

    /// Revokes a token; one that is not there is revoked already.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn delete_token(&self, hash: &TokenHash) -> Result<()> {
        let mut tx = self.write().await?;
        tx.query("DELETE FROM tokens WHERE hash = $1")
            .bind(hex(&hash.0))
            .execute(tx.conn())
            .await?;
        tx.commit().await
    }

    /// Revokes every token of a user; says how many.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn delete_tokens_of_user(&self, user_id: &str) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = tx
            .query("DELETE FROM tokens WHERE user_id = $1")
            .bind(user_id.to_owned())
            .execute(tx.conn())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Forgets tokens that have ended; says how many.
    ///
    /// # Errors
    /// The catalogue does not answer.
    pub async fn purge_tokens(&self, now: Timestamp) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = tx
            .query("DELETE FROM tokens WHERE expires_at <= $1")
            .bind(now.as_micros())
            .execute(tx.conn())
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }
}
