//! What the tasks of a store share: the channel, and one status of the database that all of them act on.
//!
//! The status is `verified` (writers may connect), or a refusal. Whoever sees that the database takes no rows
//! says so here, with the generation of connections that it saw it on: late news change nothing.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use nomnom_crds::runtime::{
    RuntimeConfig,
    state::{DatabaseReason, DatabaseState},
};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    channel::Channel, connection::Limits, metrics::Metrics, refusal::Refusal, statement::Statements,
};

/// A database that was verified.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Counts verifications: connections of another generation are not used any more.
    pub(super) generation: u64,
    pub(super) options: Arc<PgConnectOptions>,
}

/// The answer to a question for the schema: none where tables are as they should be.
pub(super) type Verdict = oneshot::Sender<Result<(), Refusal>>;

#[derive(Debug, Default)]
struct Status {
    generation: u64,
    /// Why rows are refused, or, while they are taken on trial, were.
    refusal: Option<Refusal>,
    /// Whether only rows can show that the cause is gone.
    needs_trial: bool,
    /// What does not stop rows, but an admin should know.
    notice: Option<String>,
    receipt_key_fingerprint: Option<String>,
}

/// What the tasks share.
pub(super) struct Shared {
    pub(super) config: Arc<RuntimeConfig>,
    pub(super) url_file: PathBuf,
    pub(super) receipt_key_fingerprint: String,
    pub(super) statements: Arc<Statements>,
    pub(super) limits: Limits,
    pub(super) channel: Channel,
    pub(super) metrics: Metrics,
    pub(super) shutdown: CancellationToken,
    /// Wakes the supervisor.
    pub(super) failed: Notify,
    verdicts: mpsc::Sender<Verdict>,
    target: watch::Sender<Option<Target>>,
    status: Mutex<Status>,
    connected_writers: AtomicUsize,
    committed: AtomicBool,
    on_trial: AtomicBool,
}

/// What a [`Shared`] is made of.
pub(super) struct Parts {
    pub(super) config: Arc<RuntimeConfig>,
    pub(super) url_file: PathBuf,
    pub(super) receipt_key_fingerprint: String,
    pub(super) metrics: Metrics,
    pub(super) verdicts: mpsc::Sender<Verdict>,
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let config = parts.config;
        let unknown = Refusal::new(DatabaseReason::DatabaseUnknown, "not connected to PostgreSQL yet");
        parts.metrics.breaker_open.set(1);
        Self {
            statements: Arc::new(Statements::new(&config.database.schema, &config.records)),
            limits: Limits::new(config.limits.timeout.as_std()),
            channel: Channel::closed(unknown.clone()),
            metrics: parts.metrics,
            shutdown: CancellationToken::new(),
            failed: Notify::new(),
            verdicts: parts.verdicts,
            target: watch::Sender::new(None),
            status: Mutex::new(Status {
                refusal: Some(unknown),
                ..Status::default()
            }),
            connected_writers: AtomicUsize::new(0),
            committed: AtomicBool::new(false),
            on_trial: AtomicBool::new(false),
            url_file: parts.url_file,
            receipt_key_fingerprint: parts.receipt_key_fingerprint,
            config,
        }
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        // Nothing panics while it holds the lock.
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to connect to, as it changes.
    pub(super) fn target(&self) -> watch::Receiver<Option<Target>> {
        self.target.subscribe()
    }

    /// Lets the writers connect; the first that succeeds opens the channel.
    pub(super) fn verified(&self, options: PgConnectOptions, notice: Option<String>) {
        let mut status = self.status();
        status.generation += 1;
        status.notice = notice;
        self.target.send_replace(Some(Target {
            generation: status.generation,
            options: Arc::new(options),
        }));
    }

    /// Whether writers may connect.
    pub(super) fn is_verified(&self) -> bool {
        self.target.borrow().is_some()
    }

    /// A writer has a connection of this generation.
    pub(super) fn writer_connected(&self, generation: u64) {
        self.connected_writers.fetch_add(1, Ordering::AcqRel);
        let mut status = self.status();
        if status.generation != generation || !self.is_verified() || !self.channel.is_closed() {
            return;
        }
        if !status.needs_trial {
            status.refusal = None;
        }
        self.on_trial.store(status.needs_trial, Ordering::Release);
        self.metrics.breaker_open.set(0);
        self.channel.open();
        tracing::info!("the database takes rows");
    }

    /// A writer has none any more.
    pub(super) fn writer_disconnected(&self) {
        self.connected_writers.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether any writer has a connection.
    pub(super) fn has_writers(&self) -> bool {
        self.connected_writers.load(Ordering::Acquire) > 0
    }

    /// The database of this generation takes no rows: refuses what waits and what comes, and has it verified anew.
    pub(super) fn fail(&self, generation: u64, refusal: Refusal) {
        let mut status = self.status();
        if status.generation != generation || !self.is_verified() {
            return;
        }
        self.target.send_replace(None);
        status.needs_trial = is_seen_by_rows_only(refusal.reason);
        self.refuse(&mut status, refusal);
        drop(status);
        self.failed.notify_one();
    }

    /// The database cannot be verified.
    pub(super) fn unverified(&self, refusal: Refusal) {
        let mut status = self.status();
        self.target.send_replace(None);
        status.needs_trial = false;
        self.refuse(&mut status, refusal);
    }

    fn refuse(&self, status: &mut Status, refusal: Refusal) {
        let is_known = |known: &Refusal| (known.reason, &known.message) == (refusal.reason, &refusal.message);
        if !status.refusal.as_ref().is_some_and(is_known) {
            tracing::warn!(reason = ?refusal.reason, message = refusal.message, "the database takes no rows");
        }
        self.on_trial.store(false, Ordering::Release);
        self.metrics.breaker_open.set(1);
        self.metrics.channel_rows.set(0);
        self.channel.close(&refusal);
        status.refusal = Some(refusal);
    }

    /// Rows were committed.
    pub(super) fn committed(&self) {
        self.committed.store(true, Ordering::Release);
        if self.on_trial.load(Ordering::Acquire) {
            self.end_trial();
        }
    }

    /// What was seen of rows only has not been seen again.
    pub(super) fn end_trial(&self) {
        let mut status = self.status();
        if self.on_trial.swap(false, Ordering::AcqRel) {
            status.needs_trial = false;
            status.refusal = None;
        }
    }

    /// Whether every row failed lately, and none was committed since: one row is enough to say so again.
    pub(super) fn suspects_drift(&self) -> bool {
        self.on_trial.load(Ordering::Acquire)
            && self.status().refusal.as_ref().map(|refusal| refusal.reason)
                == Some(DatabaseReason::SchemaDrift)
    }

    /// Whether rows were committed since this was asked last.
    pub(super) fn take_committed(&self) -> bool {
        self.committed.swap(false, Ordering::AcqRel)
    }

    /// Has the tables compared with the spec now. The refusal where they differ, or cannot be compared.
    pub(super) async fn verify_tables(&self) -> Result<(), Refusal> {
        let ask = async {
            let (verdict, answer) = oneshot::channel();
            self.verdicts.send(verdict).await.ok()?;
            answer.await.ok()
        };
        match tokio::time::timeout(self.limits.answer, ask).await {
            Ok(Some(verdict)) => verdict,
            _ => Err(Refusal::unverified()),
        }
    }

    pub(super) fn set_notice(&self, notice: Option<String>) {
        self.status().notice = notice;
    }

    pub(super) fn set_receipt_key_fingerprint(&self, fingerprint: Option<String>) {
        if fingerprint.is_some() {
            self.status().receipt_key_fingerprint = fingerprint;
        }
    }

    /// Why nothing can be read or written now; none where it can.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        if self.is_verified() && !self.channel.is_closed() {
            return None;
        }
        self.status().refusal.clone()
    }

    pub(super) fn state(&self) -> DatabaseState {
        let status = self.status();
        let fingerprint = status.receipt_key_fingerprint.clone();
        status.refusal.as_ref().map_or_else(
            || DatabaseState {
                ready: true,
                reason: DatabaseReason::Connected,
                message: status.notice.clone().unwrap_or_default(),
                differences: Vec::new(),
                receipt_key_fingerprint: fingerprint.clone(),
            },
            |refusal| refusal.state(fingerprint.clone()),
        )
    }
}

/// Whether only rows show that it is over; all else, a verification sees.
const fn is_seen_by_rows_only(reason: DatabaseReason) -> bool {
    matches!(
        reason,
        DatabaseReason::SchemaDrift | DatabaseReason::DatabaseError
    )
}
