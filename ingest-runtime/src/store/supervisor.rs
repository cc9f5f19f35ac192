//! Watches over the database: connects, verifies, lets the writers work, and looks again when something fails.
//!
//! It has a connection of its own. While the database takes no rows it tries again, at most 5 seconds later,
//! with the URL read anew, so that every fault that is repaired outside heals without a restart.

use std::{sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    connection,
    error::Failure,
    refusal::{Refusal, jittered},
    schema,
    shared::{Shared, Verdict},
    statement::EXPIRY_CHUNK,
};

/// Between a failed attempt and the next: none after the first, then a second, doubling up to 5 (design).
const BACKOFF_SECONDS: [u64; 5] = [0, 1, 2, 4, 5];
/// How often the file of the URL is read, and the connection tried.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Every so many looks the tables are compared with the spec: each 30 s.
const LOOKS_PER_VERIFICATION: u32 = 6;
/// How long a verification may take, waits for locks included.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long keys are removed at a time; the supervisor has more to do.
const EXPIRY_TIME: Duration = Duration::from_secs(2);

/// The task.
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    verdicts: mpsc::Receiver<Verdict>,
    failures: usize,
}

/// A connection to a verified database.
struct Established {
    connection: PgConnection,
    url: String,
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>, verdicts: mpsc::Receiver<Verdict>) -> Self {
        Self {
            shared,
            verdicts,
            failures: 0,
        }
    }

    /// Works until the store is closed.
    pub(super) async fn run(mut self) {
        let shutdown = self.shared.shutdown.clone();
        let _ = shutdown.run_until_cancelled(self.supervise()).await;
    }

    async fn supervise(&mut self) {
        loop {
            match self.establish().await {
                Ok(mut established) => {
                    self.watch(&mut established).await;
                    connection::close(established.connection).await;
                    if self.shared.take_committed() {
                        self.failures = 0;
                    }
                }
                Err(refusal) => self.shared.unverified(self.with_delay(refusal)),
            }
            self.back_off().await;
        }
    }

    /// Clients are told to come back when the next attempt is over.
    fn with_delay(&self, mut refusal: Refusal) -> Refusal {
        refusal.retry_after = self.delay().max(refusal.retry_after);
        refusal
    }

    fn delay(&self) -> Duration {
        Duration::from_secs(BACKOFF_SECONDS[self.failures.min(BACKOFF_SECONDS.len() - 1)])
    }

    async fn back_off(&mut self) {
        let delay = sleep(jittered(self.delay()));
        self.failures += 1;
        tokio::pin!(delay);
        loop {
            tokio::select! {
                () = &mut delay => return,
                Some(verdict) = self.verdicts.recv() => {
                    // Nothing is known of the tables now, but that rows are refused.
                    let _ = verdict.send(self.shared.refusal().map_or(Ok(()), Err));
                }
            }
        }
    }

    /// Connects, verifies, and lets the writers connect.
    async fn establish(&mut self) -> Result<Established, Refusal> {
        let url = connection::read_url(&self.shared.url_file, self.source()).await?;
        let (connection, options) = self.connect_and_verify(&url).await?;
        self.shared.verified(options);
        Ok(Established { connection, url })
    }

    async fn connect_and_verify(&self, url: &str) -> Result<(PgConnection, PgConnectOptions), Refusal> {
        let options = connection::options(url, self.source(), &self.shared.config)?;
        let mut connection = connection::connect(&options, self.shared.limits, self.source()).await?;
        self.verify(&mut connection).await?;
        Ok((connection, options))
    }

    async fn verify(&self, connection: &mut PgConnection) -> Result<(), Refusal> {
        let verification = schema::Verification {
            config: &self.shared.config,
            statements: &self.shared.statements,
            receipt_key_fingerprint: &self.shared.receipt_key_fingerprint,
        };
        match timeout(VERIFY_TIMEOUT, verification.run(connection)).await {
            Ok(report) => {
                self.shared
                    .set_receipt_key_fingerprint(report.receipt_key_fingerprint);
                report.result
            }
            Err(_) => Err(Failure::lost("no answer to the verification of the tables").refusal()),
        }
    }

    fn source(&self) -> &str {
        &self.shared.config.database.url_source
    }

    /// Returns when the database has to be established anew.
    async fn watch(&mut self, established: &mut Established) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.tick().await;
        let mut look_count = 0;
        loop {
            let result = tokio::select! {
                biased;
                () = self.shared.failed.notified() => return,
                Some(verdict) = self.verdicts.recv() => self.give_verdicts(verdict, established).await,
                _ = looks.tick() => {
                    look_count += 1;
                    self.look(established, look_count).await
                }
            };
            if let Err(refusal) = result {
                return self.shared.unverified(self.with_delay(refusal));
            }
        }
    }

    /// One comparison answers all who ask now.
    async fn give_verdicts(&mut self, first: Verdict, established: &mut Established) -> Result<(), Refusal> {
        let mut verdicts = vec![first];
        while let Ok(verdict) = self.verdicts.try_recv() {
            verdicts.push(verdict);
        }
        let result = self.verify(&mut established.connection).await;
        for verdict in verdicts {
            // Whoever asked may have been dropped with its runtime; the result is used all the same.
            let _ = verdict.send(result.clone());
        }
        result
    }

    async fn look(&mut self, established: &mut Established, look_count: u32) -> Result<(), Refusal> {
        self.look_at_url(established).await;
        if !look_count.is_multiple_of(LOOKS_PER_VERIFICATION) {
            return schema::check_server(&mut established.connection).await;
        }
        self.verify(&mut established.connection).await?;
        self.shared.end_trial();
        self.failures = 0;
        self.expire_keys(&mut established.connection).await;
        Ok(())
    }

    /// Takes another URL up; what works is not given up for one that does not.
    async fn look_at_url(&self, established: &mut Established) {
        let read = connection::read_url(&self.shared.url_file, self.source()).await;
        if read.as_ref().is_ok_and(|url| *url == established.url) {
            return self.shared.set_notice(None);
        }
        let connected = match read {
            Ok(url) => self
                .connect_and_verify(&url)
                .await
                .map(|connected| (url, connected)),
            Err(refusal) => Err(refusal),
        };
        match connected {
            Ok((url, (connection, options))) => {
                tracing::info!("the database's URL changed");
                self.shared.verified(options);
                let former = std::mem::replace(established, Established { connection, url });
                connection::close(former.connection).await;
            }
            Err(refusal) => self.shared.set_notice(Some(format!(
                "still connected with the former URL, but the present one is of no use: {}",
                refusal.message
            ))),
        }
    }

    async fn expire_keys(&self, connection: &mut PgConnection) {
        let statement = &self.shared.statements.expire_keys;
        let expire = async {
            loop {
                let result = sqlx::query(AssertSqlSafe(statement.clone()))
                    .execute(&mut *connection)
                    .await;
                match result {
                    Ok(removed) if removed.rows_affected() == EXPIRY_CHUNK => {}
                    Ok(_) => return,
                    // Keys that stay longer do no harm; a lost connection is noticed by the next look.
                    Err(error) => return tracing::warn!(%error, "failed to remove old idempotency keys"),
                }
            }
        };
        // What is cut short here is finished by the server, and the connection waits for it.
        let _ = timeout(EXPIRY_TIME, expire).await;
    }
}
