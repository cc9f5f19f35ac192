//! The database: commits rows, looks messages up, and keeps the tables as the spec says.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nomnom_crds::runtime::{
    RuntimeConfig,
    state::{DatabaseReason, DatabaseState},
};
use prometheus_client::registry::Registry;
use tokio::{task::JoinSet, time::Instant};
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

/// What a store is started with.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The pipeline.
    pub config: Arc<RuntimeConfig>,
    /// The file of the database's URL.
    pub database_url_file: PathBuf,
    /// The fingerprint of the receipt key.
    pub receipt_key_fingerprint: String,
}

/// A look-up that cannot be made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unavailable {
    /// Why.
    pub reason: DatabaseReason,
    /// When to try again.
    pub retry_after: Duration,
}

/// The tasks of a store; one that ends early ends the process.
pub type StoreTasks = JoinSet<()>;

/// The handle of the database.
#[derive(Clone, Debug)]
pub struct Store {
    _options: Arc<StoreOptions>,
}

impl Store {
    /// Starts the writers.
    pub fn start(options: StoreOptions, _registry: &mut Registry) -> (Self, StoreTasks) {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending());
        (
            Self {
                _options: Arc::new(options),
            },
            tasks,
        )
    }

    /// Commits a message.
    #[allow(clippy::unused_async)]
    pub async fn write(&self, _message: Message, _deadline: Instant) -> Outcome {
        Outcome::Unavailable {
            reason: DatabaseReason::DatabaseUnknown,
            retry_after: Duration::from_secs(1),
        }
    }

    /// Whether a row with this id is stored.
    #[allow(clippy::unused_async)]
    pub async fn find(&self, _id: Uuid) -> Result<bool, Unavailable> {
        Err(Unavailable {
            reason: DatabaseReason::DatabaseUnknown,
            retry_after: Duration::from_secs(1),
        })
    }

    /// The database as it is seen now.
    #[must_use]
    pub fn state(&self) -> DatabaseState {
        DatabaseState {
            ready: false,
            reason: DatabaseReason::DatabaseUnknown,
            message: String::new(),
            differences: Vec::new(),
            receipt_key_fingerprint: None,
        }
    }

    /// Ends the writers.
    #[allow(clippy::unused_async)]
    pub async fn close(self) {}
}
