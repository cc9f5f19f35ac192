//! Watches over the database: connects, verifies, lets the writers work, and looks again when something fails.
//!
//! It has a connection of its own. While the database takes no rows it tries again, at most 5 seconds later,
//! with the URL read anew, so that every fault that is repaired outside heals without a restart.

use std::{sync::Arc, time::Duration};

use nomnom_crds::runtime::state::DatabaseReason;
use sqlx::{AssertSqlSafe, PgConnection, postgres::PgConnectOptions};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    connection::{self, Limits},
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
    /// The URL that worked last.
    last_good: Option<String>,
    /// An attempt with another URL, beside the work with the one that is established.
    candidate: JoinSet<Result<Established, Refusal>>,
}

/// A connection to a verified database.
struct Established {
    connection: PgConnection,
    options: PgConnectOptions,
    url: String,
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>, verdicts: mpsc::Receiver<Verdict>) -> Self {
        Self {
            shared,
            verdicts,
            failures: 0,
            last_good: None,
            candidate: JoinSet::new(),
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
                    self.candidate.abort_all();
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
                    // Nothing is known of the tables now; usually rows are refused anyway.
                    let _ = verdict.send(Err(self.shared.refusal().unwrap_or_else(Refusal::unverified)));
                }
            }
        }
    }

    /// Connects, verifies, and lets the writers connect: with the present URL, or else with the one that worked
    /// last, so that a bad edit of the Secret does not turn the next passing fault into an outage.
    async fn establish(&mut self) -> Result<Established, Refusal> {
        let read = self.read_url().await;
        let present = match &read {
            Ok(url) => Established::new(&self.shared, url.clone()).await,
            Err(refusal) => Err(refusal.clone()),
        };
        let (established, notice) = match present {
            Ok(established) => (established, None),
            Err(refusal) => match self.fall_back(read.ok()).await {
                Some(established) => (established, Some(former_url_notice(&refusal))),
                None => return Err(refusal),
            },
        };
        self.take_up(&established, notice);
        Ok(established)
    }

    async fn fall_back(&self, present_url: Option<String>) -> Option<Established> {
        let former = self.last_good.clone().filter(|_| self.last_good != present_url)?;
        Established::new(&self.shared, former).await.ok()
    }

    fn take_up(&mut self, established: &Established, notice: Option<String>) {
        self.shared.verified(established.options.clone(), notice);
        self.last_good = Some(established.url.clone());
    }

    async fn read_url(&self) -> Result<String, Refusal> {
        let source = &self.shared.config.database.url_source;
        connection::read_url(&self.shared.url_file, source).await
    }

    /// Returns when the database has to be established anew.
    async fn watch(&mut self, established: &mut Established) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        looks.tick().await;
        let mut look_count = 0;
        loop {
            let result = tokio::select! {
                // It may have been of an earlier generation: what counts is what is so now.
                () = self.shared.failed.notified() => {
                    if self.shared.is_verified() {
                        continue;
                    }
                    return;
                }
                Some(verdict) = self.verdicts.recv() => self.give_verdicts(verdict, established).await,
                Some(Ok(attempt)) = self.candidate.join_next() => {
                    self.judge_candidate(attempt, established).await;
                    Ok(())
                }
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
        let result = match verify(&self.shared, &mut established.connection).await {
            Ok(()) => Ok(()),
            Err(refusal) => established.look_again(&self.shared, refusal).await,
        };
        for verdict in verdicts {
            // Whoever asked may have been dropped with its runtime; the result is used all the same.
            let _ = verdict.send(result.clone());
        }
        result
    }

    async fn look(&mut self, established: &mut Established, look_count: u32) -> Result<(), Refusal> {
        self.look_at_url(established).await;
        if look_count % LOOKS_PER_VERIFICATION == 1 {
            self.expire_keys(&mut established.connection).await;
        }
        let is_verification = look_count.is_multiple_of(LOOKS_PER_VERIFICATION);
        let seen = if is_verification {
            verify(&self.shared, &mut established.connection).await
        } else {
            schema::check_server(&mut established.connection).await
        };
        if let Err(refusal) = seen {
            return established.look_again(&self.shared, refusal).await;
        }
        if is_verification {
            self.shared.end_trial();
            self.failures = 0;
        }
        Ok(())
    }

    /// Tries another URL; what works is not given up for one that does not, nor kept waiting by it.
    async fn look_at_url(&mut self, established: &Established) {
        match self.read_url().await {
            Ok(url) if url == established.url => {
                self.candidate.abort_all();
                self.shared.set_notice(None);
            }
            Ok(_) if !self.candidate.is_empty() => {}
            Ok(url) => {
                let shared = self.shared.clone();
                self.candidate
                    .spawn(async move { Established::new(&shared, url).await });
            }
            Err(refusal) => self.shared.set_notice(Some(former_url_notice(&refusal))),
        }
    }

    async fn judge_candidate(
        &mut self,
        attempt: Result<Established, Refusal>,
        established: &mut Established,
    ) {
        match attempt {
            Ok(other) => {
                tracing::info!("the database's URL changed");
                self.take_up(&other, None);
                let former = std::mem::replace(established, other);
                connection::close(former.connection).await;
            }
            Err(refusal) => self.shared.set_notice(Some(former_url_notice(&refusal))),
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

impl Established {
    /// Connects and verifies.
    async fn new(shared: &Shared, url: String) -> Result<Self, Refusal> {
        let source = &shared.config.database.url_source;
        let options = connection::options(&url, source, &shared.config)?;
        let mut connection = connection::connect(&options, Limits::VERIFICATION, source).await?;
        verify(shared, &mut connection).await?;
        Ok(Self {
            connection,
            options,
            url,
        })
    }

    /// The loss of the supervisor's own connection says nothing of the writers', nor of rows.
    async fn look_again(&mut self, shared: &Shared, refusal: Refusal) -> Result<(), Refusal> {
        if refusal.reason != DatabaseReason::Unreachable {
            return Err(refusal);
        }
        *self = Self::new(shared, self.url.clone()).await?;
        Ok(())
    }
}

async fn verify(shared: &Shared, connection: &mut PgConnection) -> Result<(), Refusal> {
    let verification = schema::Verification {
        config: &shared.config,
        statements: &shared.statements,
        receipt_key_fingerprint: &shared.receipt_key_fingerprint,
    };
    match timeout(VERIFY_TIMEOUT, verification.run(connection)).await {
        Ok(report) => {
            shared.set_receipt_key_fingerprint(report.receipt_key_fingerprint);
            report.result
        }
        Err(_) => Err(Failure::lost("no answer to the verification of the tables").refusal()),
    }
}

fn former_url_notice(refusal: &Refusal) -> String {
    format!(
        "still connected with the former URL, but the present one is of no use: {}",
        refusal.message
    )
}
