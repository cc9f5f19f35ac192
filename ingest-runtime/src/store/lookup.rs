//! Looks messages up by id, on a connection of its own, so that a question never waits for rows to be written.
//!
//! Questions are batched as rows are: those that came while the last query ran are asked together.

use std::{collections::HashSet, sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, postgres::PgArguments};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use uuid::Uuid;

use super::{
    connection,
    error::Failure,
    refusal::Refusal,
    shared::{Shared, Target},
    statement::IdArray,
};

/// The most ids of one query: some pages of each index.
const MAX_IDS: usize = 256;
/// How long a query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// A question, and where its answer goes.
pub(super) struct Question {
    pub(super) id: Uuid,
    pub(super) answer: oneshot::Sender<Result<bool, Refusal>>,
}

/// The task.
pub(super) struct Lookup {
    shared: Arc<Shared>,
    target: watch::Receiver<Option<Target>>,
    questions: mpsc::Receiver<Question>,
    connection: Option<(u64, PgConnection)>,
}

impl Lookup {
    pub(super) fn new(shared: Arc<Shared>, questions: mpsc::Receiver<Question>) -> Self {
        Self {
            target: shared.target(),
            shared,
            questions,
            connection: None,
        }
    }

    /// Answers until the store is closed.
    pub(super) async fn run(mut self) {
        let shutdown = self.shared.shutdown.clone();
        let mut questions = Vec::with_capacity(MAX_IDS);
        loop {
            let received = shutdown
                .run_until_cancelled(self.questions.recv_many(&mut questions, MAX_IDS))
                .await;
            if !matches!(received, Some(1..)) {
                break;
            }
            let ids: Vec<Uuid> = questions.iter().map(|question| question.id).collect();
            let found = self.find(&ids).await;
            for Question { id, answer } in questions.drain(..) {
                // Whoever asked may have gone.
                let _ = answer.send(
                    found
                        .as_ref()
                        .map(|found| found.contains(&id))
                        .map_err(Clone::clone),
                );
            }
        }
        if let Some((_, connection)) = self.connection {
            connection::close(connection).await;
        }
    }

    /// A connection may have broken while nothing was asked: the second attempt has a new one.
    async fn find(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Refusal> {
        let had_connection = self.connection.is_some();
        match self.query(ids).await {
            Err(_) if had_connection => self.query(ids).await,
            result => result,
        }
    }

    async fn query(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Refusal> {
        let (generation, mut connection) = self.connected().await?;
        let refused = |message: String| Failure::lost(message).refusal();
        let mut arguments = PgArguments::default();
        sqlx::Arguments::add(&mut arguments, IdArray(ids)).map_err(|error| refused(error.to_string()))?;
        let sql = AssertSqlSafe(self.shared.statements.find.clone());
        let query = sqlx::query_scalar_with::<_, Uuid, _>(sql, arguments);
        let found = match timeout(QUERY_TIMEOUT, query.fetch_all(&mut connection)).await {
            Ok(found) => found.map_err(|error| Failure::of(&error).refusal())?,
            Err(_) => return Err(refused(format!("no answer within {QUERY_TIMEOUT:?}"))),
        };
        self.connection = Some((generation, connection));
        Ok(found.into_iter().collect())
    }

    /// The connection, taken: it is put back when it has proved to work.
    async fn connected(&mut self) -> Result<(u64, PgConnection), Refusal> {
        if let Some(refusal) = self.shared.refusal() {
            return Err(refusal);
        }
        let target = self.target.borrow_and_update().clone();
        let Some(target) = target else {
            return Err(Failure::lost("not connected").refusal());
        };
        match self.connection.take() {
            Some((generation, connection)) if generation == target.generation => Ok((generation, connection)),
            _ => {
                let source = &self.shared.config.database.url_source;
                let connection = connection::connect(&target.options, self.shared.limits, source).await?;
                Ok((target.generation, connection))
            }
        }
    }
}
