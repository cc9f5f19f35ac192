//! The database: commits rows, looks messages up, and keeps the tables as the spec says.

use std::time::Duration;

use nomnom_crds::runtime::state::DatabaseReason;
use uuid::Uuid;

use crate::record::Row;

/// A record on its way to the database.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its id, the primary key of its row.
    pub id: Uuid,
    /// The hash of its idempotency key, where the client gave one; the id is derived from key and payload then.
    pub key_hash: Option<[u8; 32]>,
    /// The record.
    pub row: Row,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its row is committed.
    Persisted,
    /// The database refuses this row, and always will: it failed alone. Not stored.
    Rejected {
        /// The column, where the database names one.
        column: Option<String>,
        /// The SQLSTATE.
        code: String,
        /// What the database says, without values.
        message: String,
    },
    /// Its key was used for another payload. Not stored.
    KeyConflict,
    /// A message without a key has the id of another row: a new id is needed. Not stored.
    IdTaken,
    /// The database takes no rows now. Not stored, and never will be.
    Unavailable {
        /// Why.
        reason: DatabaseReason,
        /// When to try again.
        retry_after: Duration,
    },
    /// The deadline passed while the row's commit was in flight: it is stored, or will be, or not.
    Unknown,
}
