//! Looks messages up by id, on a connection of its own, so that a question never waits for rows to be written.
//!
//! Questions are batched as rows are: those that came while the last query ran are asked together. They are asked
//! of every table that was ever written under this pipeline's receipt key, in whatever schema of the database: an
//! id that was answered 200 is found although the spec names other tables by now.

use std::{collections::HashSet, sync::Arc, time::Duration};

use sqlx::{AssertSqlSafe, PgConnection, postgres::PgArguments};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use uuid::Uuid;

use super::{
    catalog, connection,
    error::Failure,
    refusal::Refusal,
    schema::refused,
    shared::{Shared, Target},
    statement::{IdArray, TARGETS_TABLE, qualified, select_present},
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
    session: Option<Session>,
}

/// A connection, and what is asked on it.
struct Session {
    connection: PgConnection,
    generation: u64,
    /// Which of the ids are in any of the tables.
    statement: Arc<str>,
}

impl Lookup {
    pub(super) fn new(shared: Arc<Shared>, questions: mpsc::Receiver<Question>) -> Self {
        Self {
            target: shared.target(),
            shared,
            questions,
            session: None,
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
        if let Some(session) = self.session {
            connection::close(session.connection).await;
        }
    }

    /// A connection may have broken, or a former table gone, while nothing was asked: the second attempt has a new
    /// one, and looks for the tables anew.
    async fn find(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Refusal> {
        let had_session = self.session.is_some();
        match self.ask(ids).await {
            Err(_) if had_session => self.ask(ids).await,
            result => result,
        }
    }

    async fn ask(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>, Refusal> {
        let mut session = self.connected().await?;
        let query = async {
            let mut found = session.query(ids).await?;
            // Pods of another configuration may have written a table that is not known here yet.
            if found.len() < ids.len() && session.learn_tables(&self.shared).await? {
                found = session.query(ids).await?;
            }
            Ok(found)
        };
        let found = match timeout(QUERY_TIMEOUT, query).await {
            Ok(found) => found.map_err(|error: sqlx::Error| refused(&error))?,
            Err(_) => return Err(Failure::lost(format!("no answer within {QUERY_TIMEOUT:?}")).refusal()),
        };
        self.session = Some(session);
        Ok(found)
    }

    /// The session, taken: it is put back when it has proved to work.
    async fn connected(&mut self) -> Result<Session, Refusal> {
        if let Some(refusal) = self.shared.refusal() {
            return Err(refusal);
        }
        let target = self.target.borrow_and_update().clone();
        let Some(Target { generation, options }) = target else {
            return Err(Failure::lost("not connected").refusal());
        };
        if let Some(session) = self.session.take()
            && session.generation == generation
        {
            return Ok(session);
        }
        let source = &self.shared.config.database.url_source;
        let connection = connection::connect(&options, self.shared.limits, source).await?;
        let mut session = Session {
            connection,
            generation,
            statement: "".into(),
        };
        match timeout(QUERY_TIMEOUT, session.learn_tables(&self.shared)).await {
            Ok(learnt) => learnt.map_err(|error| refused(&error))?,
            Err(_) => return Err(Failure::lost(format!("no answer within {QUERY_TIMEOUT:?}")).refusal()),
        };
        Ok(session)
    }
}

impl Session {
    /// Makes the statement of what is known by now; false where it is as it was.
    async fn learn_tables(&mut self, shared: &Shared) -> Result<bool, sqlx::Error> {
        let mut selects = Vec::new();
        for schema in catalog::schemas_with(&mut self.connection, TARGETS_TABLE).await? {
            let known = format!(
                "SELECT table_name FROM {} WHERE receipt_key_fingerprint = $1",
                qualified(&schema, TARGETS_TABLE)
            );
            let tables: Vec<String> = sqlx::query_scalar(AssertSqlSafe(known))
                .bind(&shared.receipt_key_fingerprint)
                .fetch_all(&mut self.connection)
                .await?;
            let tables = catalog::with_message_ids(&mut self.connection, &schema, &tables).await?;
            selects.extend(
                tables
                    .iter()
                    .map(|table| select_present(&qualified(&schema, table))),
            );
        }
        let statement = selects.join(" UNION ALL ");
        let is_new = *self.statement != *statement;
        self.statement = statement.into();
        Ok(is_new)
    }

    async fn query(&mut self, ids: &[Uuid]) -> Result<HashSet<Uuid>, sqlx::Error> {
        if self.statement.is_empty() {
            return Ok(HashSet::new());
        }
        let mut arguments = PgArguments::default();
        sqlx::Arguments::add(&mut arguments, IdArray(ids)).map_err(sqlx::Error::Encode)?;
        let sql = AssertSqlSafe(self.statement.clone());
        let query = sqlx::query_scalar_with::<_, Uuid, _>(sql, arguments);
        Ok(query.fetch_all(&mut self.connection).await?.into_iter().collect())
    }
}
