//! The database: commits rows, looks messages up, and keeps the tables as the spec says.
//!
//! A [`Store`] is a handle on its tasks: four writers, which share a bounded channel, a supervisor, which
//! verifies the database and watches over it, and a look-up. Requests never touch a connection.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use nomnom_crds::runtime::{
    RuntimeConfig,
    state::{DatabaseReason, DatabaseState},
};
use prometheus_client::registry::Registry;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::record::Row;

mod batch;
mod catalog;
mod channel;
mod connection;
mod error;
mod lookup;
mod metrics;
mod plan;
mod refusal;
mod schema;
mod session;
mod shared;
mod statement;
mod supervisor;
mod writer;

use channel::SendError;
use lookup::{Lookup, Question};
use metrics::Metrics;
use refusal::Refusal;
use shared::{Parts, Shared};
use supervisor::Supervisor;
use writer::Writer;

/// Connections that rows are written on: PostgreSQL merges the flushes of so many (measured; see the bench).
const WRITERS: usize = 4;
/// Questions that wait for the look-up; further ones wait for room.
const QUESTIONS: usize = 1024;
/// Requests for a comparison of the tables: one for each writer.
const VERDICTS: usize = WRITERS;
/// How long a look-up may take, a new connection included.
const FIND_TIMEOUT: Duration = Duration::from_secs(8);

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

/// The database cannot be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the database cannot be asked now: {reason:?}")]
pub struct Unavailable {
    /// Why.
    pub reason: DatabaseReason,
    /// When to try again.
    pub retry_after: Duration,
}

/// What a store needs to know.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The pipeline's configuration.
    pub config: Arc<RuntimeConfig>,
    /// The file of the connection URL; it may be missing, and is read again.
    pub database_url_file: PathBuf,
    /// The fingerprint of the receipt key, which the database remembers.
    pub receipt_key_fingerprint: String,
}

/// A handle on the database.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    questions: mpsc::Sender<Question>,
    tracker: TaskTracker,
}

/// The tasks of a store. It is over when they are: after [`Store::close`], or too early, which is an error.
#[must_use = "a task that ends early must end the process"]
pub struct StoreTasks {
    shared: Arc<Shared>,
    tasks: FuturesUnordered<JoinHandle<()>>,
}

/// A task of the store ended although the store was not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task of the store ended early")]
pub struct TaskEnded;

impl Store {
    /// Starts the tasks of a store. It connects in the background, and refuses rows until it has.
    pub fn start(options: StoreOptions, registry: &mut Registry) -> (Self, StoreTasks) {
        let (verdicts, asked) = mpsc::channel(VERDICTS);
        let (questions, waiting) = mpsc::channel(QUESTIONS);
        let shared = Arc::new(Shared::new(Parts {
            config: options.config,
            url_file: options.database_url_file,
            receipt_key_fingerprint: options.receipt_key_fingerprint,
            metrics: Metrics::register(registry),
            verdicts,
        }));
        let tracker = TaskTracker::new();
        let tasks = FuturesUnordered::new();
        tasks.push(tracker.spawn(Supervisor::new(shared.clone(), asked).run()));
        tasks.push(tracker.spawn(Lookup::new(shared.clone(), waiting).run()));
        for _ in 0..WRITERS {
            tasks.push(tracker.spawn(Writer::new(shared.clone()).run()));
        }
        tracker.close();
        let store = Self {
            shared: shared.clone(),
            questions,
            tracker,
        };
        (store, StoreTasks { shared, tasks })
    }

    /// Commits a message and says what became of it, by the deadline. Dropped, it changes nothing: the row is
    /// written all the same.
    pub async fn write(&self, message: Message, deadline: Instant) -> Outcome {
        let ticket = match self.shared.channel.send(message, deadline).await {
            Ok(ticket) => ticket,
            Err(SendError::Closed(refusal)) => return refusal.outcome(),
            Err(SendError::Full) => return self.overdue().outcome(),
        };
        match timeout_at(deadline, ticket.wait()).await {
            Ok(outcome) => outcome,
            Err(_) if ticket.withdraw() => self.overdue().outcome(),
            Err(_) => ticket.outcome().unwrap_or(Outcome::Unknown),
        }
    }

    /// Whether a row with this id is in any of the tables.
    pub async fn find(&self, id: Uuid) -> Result<bool, Unavailable> {
        if let Some(refusal) = self.shared.refusal() {
            return Err(refusal.unavailable());
        }
        let (answer, answered) = oneshot::channel();
        let ask = async {
            self.questions.send(Question { id, answer }).await.ok()?;
            answered.await.ok()
        };
        match tokio::time::timeout(FIND_TIMEOUT, ask).await {
            Ok(Some(found)) => found.map_err(|refusal| refusal.unavailable()),
            _ => Err(self.overdue().unavailable()),
        }
    }

    /// The database as it is seen now.
    #[must_use]
    pub fn state(&self) -> DatabaseState {
        self.shared.state()
    }

    /// Ends the tasks, when the last write was answered.
    pub async fn close(self) {
        self.shared.shutdown.cancel();
        self.tracker.wait().await;
    }

    /// The refusal of what no connection came free for.
    fn overdue(&self) -> Refusal {
        let overdue = || Refusal::new(DatabaseReason::DatabaseError, "PostgreSQL is too slow");
        self.shared.refusal().unwrap_or_else(overdue)
    }
}

impl Future for StoreTasks {
    type Output = Result<(), TaskEnded>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.tasks.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(()))) if self.shared.shutdown.is_cancelled() => {}
                Poll::Ready(Some(_)) => return Poll::Ready(Err(TaskEnded)),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
