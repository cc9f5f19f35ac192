//! A writer: takes what waits as soon as it is free, commits it, answers.
//!
//! Natural batching: there is no timer; the batch is what arrived while the writer was busy. Rows whose
//! connection broke while a commit may have been under way are in doubt: they are sent again under the same
//! ids until their deadlines, and never refused. A statement once sent is waited for, whoever still listens.

use std::{sync::Arc, time::Duration};

use sqlx::PgConnection;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    batch::Batch,
    channel::Entry,
    connection,
    refusal::jittered,
    session::Session,
    shared::{Shared, Target},
};

/// A connection that was idle longer is tried before rows are handed to it: a server that went away while
/// nothing was to do must not put rows in doubt.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// Between attempts of a writer to connect to a database that others are connected to.
const RECONNECT_DELAY: Duration = Duration::from_millis(500);

/// A writer's task.
pub(super) struct Writer {
    shared: Arc<Shared>,
    target: watch::Receiver<Option<Target>>,
    /// Rows that outlived their connection.
    pending: Vec<Entry>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            target: shared.target(),
            shared,
            pending: Vec::new(),
        }
    }

    /// Works until the store is closed and nothing is left to do.
    pub(super) async fn run(mut self) {
        while let Some((connection, generation)) = self.connect().await {
            self.shared.writer_connected(generation);
            self.shared.metrics.connections_idle.inc();
            let mut session = Session::new(connection, self.shared.statements.clone(), self.shared.limits);
            self.serve(&mut session, generation).await;
            self.shared.metrics.connections_idle.dec();
            self.shared.writer_disconnected();
            if !session.broken {
                connection::close(session.into_connection()).await;
            }
        }
    }

    /// Waits for a database that takes rows, and connects to it. None when there is nothing left to do.
    async fn connect(&mut self) -> Option<(PgConnection, u64)> {
        loop {
            self.review_pending();
            let shutting_down = self.shared.shutdown.is_cancelled();
            if shutting_down && self.pending.is_empty() {
                return None;
            }
            let target = self.target.borrow_and_update().clone();
            let Some(target) = target else {
                self.wait_for_target().await;
                continue;
            };
            match connection::connect(&target.options, self.shared.limits, self.source()).await {
                Ok(connection) => return Some((connection, target.generation)),
                Err(refusal) if self.shared.has_writers() => {
                    tracing::warn!(reason = ?refusal.reason, message = refusal.message, "a writer cannot connect");
                    sleep(jittered(RECONNECT_DELAY)).await;
                }
                Err(refusal) => self.shared.fail(target.generation, refusal),
            }
        }
    }

    fn source(&self) -> &str {
        &self.shared.config.database.url_source
    }

    /// Without a connection: what was never handed over is refused, what is in doubt waits for its deadline.
    fn review_pending(&mut self) {
        let now = Instant::now();
        // Past its deadline nobody waits: the requester answered that it does not know.
        self.pending.retain(|row| !row.in_doubt || row.deadline > now);
        if let Some(refusal) = self.shared.refusal() {
            let handed_over: Vec<_> = self.pending.extract_if(.., |row| !row.in_doubt).collect();
            handed_over
                .into_iter()
                .for_each(|row| row.answer(refusal.outcome()));
        }
    }

    async fn wait_for_target(&mut self) {
        let shutdown = self.shared.shutdown.clone();
        let next_deadline = self.pending.iter().map(|row| row.deadline).min();
        let deadline = async {
            match next_deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => shutdown.cancelled().await,
            }
        };
        tokio::select! {
            // The sender lives in `shared`.
            _ = self.target.changed() => {}
            () = deadline => {}
        }
    }

    /// Writes batches until the connection is of no use any more.
    async fn serve(&mut self, session: &mut Session, generation: u64) {
        let mut last_answer = Instant::now();
        while !session.broken && self.is_current(generation) {
            if self.pending.is_empty() && !self.wait_for_rows().await {
                return;
            }
            if last_answer.elapsed() > TRUSTED_IDLE && session.ping().await.is_err() {
                self.shared.channel.pass_on();
                return;
            }
            let rows = self.next_rows();
            if !rows.is_empty() {
                self.write(session, generation, rows).await;
            }
            last_answer = Instant::now();
        }
    }

    fn is_current(&self, generation: u64) -> bool {
        self.target
            .borrow()
            .as_ref()
            .is_some_and(|target| target.generation == generation)
    }

    /// Waits for rows; false where the connection is to be given up instead.
    async fn wait_for_rows(&mut self) -> bool {
        let shutdown = self.shared.shutdown.clone();
        tokio::select! {
            biased;
            () = self.shared.channel.arrival() => true,
            _ = self.target.changed() => false,
            () = shutdown.cancelled() => false,
        }
    }

    fn next_rows(&mut self) -> Vec<Entry> {
        if !self.pending.is_empty() {
            let now = Instant::now();
            let mut rows = std::mem::take(&mut self.pending);
            rows.retain(|row| !row.in_doubt || row.deadline > now);
            self.shared
                .metrics
                .resent
                .inc_by(rows.iter().filter(|row| row.in_doubt).count() as u64);
            return rows;
        }
        let take = self.shared.channel.take();
        let metrics = &self.shared.metrics;
        metrics
            .channel_rows
            .set(i64::try_from(self.shared.channel.len()).unwrap_or(i64::MAX));
        if let Some(oldest) = take.oldest {
            metrics.channel_wait.observe(oldest.elapsed().as_secs_f64());
            metrics
                .batch_rows
                .observe(f64::from(u32::try_from(take.rows.len()).unwrap_or(u32::MAX)));
        }
        take.rows
    }

    async fn write(&mut self, session: &mut Session, generation: u64, rows: Vec<Entry>) {
        let metrics = &self.shared.metrics;
        metrics.connections_idle.dec();
        metrics.connections_active.inc();
        let start = Instant::now();
        let batch = Batch::new(&self.shared, session, generation);
        self.pending = batch.write(rows).await;
        metrics.database_latency.observe(start.elapsed().as_secs_f64());
        metrics.connections_active.dec();
        metrics.connections_idle.inc();
    }
}
