//! One writer's connection, and what it does with rows: one transaction, and what became of each row in it.
//!
//! Every step says whether a commit may have been under way when the connection broke: only then are rows in
//! doubt. A transaction whose COMMIT was never sent is rolled back by the server, whatever happens.

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    sync::Arc,
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgArguments};
use tokio::time::timeout;
use uuid::Uuid;

use super::{
    Outcome,
    channel::Entry,
    connection::Limits,
    error::{Class, Failure},
    statement::{IdArray, KeyArray, Statements, TableStatements},
};

/// How long an idle server may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// The SQLSTATE for rows that the server accepted and did not store: "no data".
const DISCARDED: &str = "02000";

/// A connection of a writer.
pub(super) struct Session {
    connection: PgConnection,
    statements: Arc<Statements>,
    limits: Limits,
    /// Whether the connection cannot be used any more.
    pub(super) broken: bool,
}

/// What became of rows that were committed: all are persisted but these, by their place.
#[derive(Debug, Default)]
pub(super) struct Committed {
    pub(super) exceptions: HashMap<usize, Outcome>,
    /// Rows that were there already.
    pub(super) duplicates: u64,
}

/// Why a transaction failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    /// Whether its rows may be stored for all that.
    pub(super) in_doubt: bool,
}

impl Session {
    pub(super) fn new(connection: PgConnection, statements: Arc<Statements>, limits: Limits) -> Self {
        Self {
            connection,
            statements,
            limits,
            broken: false,
        }
    }

    pub(super) fn into_connection(self) -> PgConnection {
        self.connection
    }

    /// Whether the connection still works.
    pub(super) async fn ping(&mut self) -> Result<(), Failure> {
        let result = answer(PING_TIMEOUT, self.connection.ping()).await;
        self.note(result)
    }

    /// Commits rows, sorted, which no earlier attempt can have stored.
    pub(super) async fn commit_new(&mut self, rows: &[Entry]) -> Result<Committed, Failed> {
        let rows: Vec<&Entry> = rows.iter().collect();
        let several_tables = groups(&rows).nth(1).is_some();
        if several_tables {
            return self.commit_transaction(&rows, false).await;
        }
        let mut committed = Committed::default();
        let inserted = self.insert(&rows, false).await.map_err(|failure| Failed {
            in_doubt: failure.class == Class::ConnectionLost,
            failure,
        })?;
        // By now the rows are stored; a failure to find out which of them leaves all in doubt.
        let settled = self.settle(&rows, 0, inserted, &mut committed).await;
        settled.map_err(|failure| {
            self.broken = true;
            Failed {
                failure: Failure::lost(failure.message),
                in_doubt: true,
            }
        })?;
        Ok(committed)
    }

    /// Commits rows, sorted, of which some have a key or may be stored already.
    pub(super) async fn commit_missing(&mut self, rows: &[Entry]) -> Result<Committed, Failed> {
        let rows: Vec<&Entry> = rows.iter().collect();
        self.commit_transaction(&rows, true).await
    }

    async fn commit_transaction(&mut self, rows: &[&Entry], guarded: bool) -> Result<Committed, Failed> {
        let written = self.write_transaction(rows, guarded).await;
        let committed = match written {
            Ok(committed) => committed,
            Err(failure) => {
                if failure.class != Class::ConnectionLost {
                    // Where this fails, the connection is broken, and the server rolls back by itself.
                    let _ = self.run("ROLLBACK").await;
                }
                return Err(Failed {
                    failure,
                    in_doubt: false,
                });
            }
        };
        match self.run("COMMIT").await {
            Ok(()) => Ok(committed),
            Err(failure) => Err(Failed {
                in_doubt: failure.class == Class::ConnectionLost,
                failure,
            }),
        }
    }

    async fn write_transaction(&mut self, rows: &[&Entry], guarded: bool) -> Result<Committed, Failure> {
        self.run("BEGIN").await?;
        let mut committed = Committed::default();
        if guarded {
            self.write_keys(rows, &mut committed).await?;
        }
        let mut first = 0;
        for group in groups(rows) {
            self.insert_group(group, first, guarded, &mut committed).await?;
            first += group.len();
        }
        Ok(committed)
    }

    /// Inserts rows of one table, the first of which has the place `first`.
    async fn insert_group(
        &mut self,
        rows: &[&Entry],
        first: usize,
        guarded: bool,
        committed: &mut Committed,
    ) -> Result<(), Failure> {
        let wanted: Vec<&Entry> = if committed.exceptions.is_empty() {
            rows.to_vec()
        } else {
            let places = (first..).zip(rows);
            places
                .filter(|(place, _)| !committed.exceptions.contains_key(place))
                .map(|(_, row)| *row)
                .collect()
        };
        let inserted = self.insert(&wanted, guarded).await?;
        self.settle(rows, first, inserted, committed).await
    }

    /// Inserts rows of one table, and says how many of them are new.
    async fn insert(&mut self, rows: &[&Entry], guarded: bool) -> Result<u64, Failure> {
        let Some(row) = rows.first() else { return Ok(0) };
        let statements = self.statements.clone();
        let table = &statements.tables[row.message.row.record_type];
        let statement = if guarded {
            &table.insert_missing
        } else {
            &table.insert_new
        };
        let arguments = table
            .arguments(rows)
            .map_err(|error| Failure::unencodable(error.to_string()))?;
        self.execute(statement, arguments).await
    }

    /// Where fewer rows were inserted than wanted: the others are there already, or were discarded.
    async fn settle(
        &mut self,
        rows: &[&Entry],
        first: usize,
        inserted: u64,
        committed: &mut Committed,
    ) -> Result<(), Failure> {
        let places = first..first + rows.len();
        let excepted = places
            .clone()
            .filter(|place| committed.exceptions.contains_key(place))
            .count();
        let missing = ((rows.len() - excepted) as u64).saturating_sub(inserted);
        if missing == 0 {
            return Ok(());
        }
        let statements = self.statements.clone();
        let table = &statements.tables[rows[0].message.row.record_type];
        let present = self.present(table, rows).await?;
        let mut not_stored = 0;
        for (place, row) in places.zip(rows) {
            if !present.contains(&row.message.id) && !committed.exceptions.contains_key(&place) {
                not_stored += 1;
                // The first hand-over of a row in doubt may still be stored: that it is refused cannot be said.
                let outcome = if row.in_doubt {
                    Outcome::Unknown
                } else {
                    discarded()
                };
                committed.exceptions.insert(place, outcome);
            }
        }
        committed.duplicates += missing.saturating_sub(not_stored);
        Ok(())
    }

    /// Writes the keys of rows; whoever has a key first keeps it, the others wait for that here.
    async fn write_keys(&mut self, rows: &[&Entry], committed: &mut Committed) -> Result<(), Failure> {
        let mut keys: Vec<([u8; 32], Uuid)> = rows
            .iter()
            .filter_map(|row| Some((row.message.key_hash?, row.message.id)))
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        // In one order in every writer, since they wait for each other here.
        keys.sort_unstable();
        let (hashes, ids): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        let mut arguments = PgArguments::default();
        add(&mut arguments, KeyArray(&hashes))?;
        add(&mut arguments, IdArray(&ids))?;
        let statements = self.statements.clone();
        let inserted = self.execute(&statements.insert_keys, arguments).await?;
        if inserted == hashes.len() as u64 {
            return Ok(());
        }
        let owners = self.key_owners(&hashes).await?;
        for (place, row) in rows.iter().enumerate() {
            let Some(hash) = row.message.key_hash else {
                continue;
            };
            match owners.get(hash.as_slice()) {
                Some(owner) if *owner == row.message.id => {}
                Some(_) => {
                    committed.exceptions.insert(place, Outcome::KeyConflict);
                }
                // It was there a moment ago, seven days old, and has been removed meanwhile.
                None => return Err(Failure::retry("an idempotency key expired just now")),
            }
        }
        Ok(())
    }

    async fn key_owners(&mut self, hashes: &[[u8; 32]]) -> Result<HashMap<Vec<u8>, Uuid>, Failure> {
        let mut arguments = PgArguments::default();
        add(&mut arguments, KeyArray(hashes))?;
        let statements = self.statements.clone();
        let query = sqlx::query_as_with::<_, (Vec<u8>, Uuid), _>(
            AssertSqlSafe(statements.select_keys.clone()),
            arguments,
        );
        let result = answer(self.limits.answer, query.fetch_all(&mut self.connection)).await;
        Ok(self.note(result)?.into_iter().collect())
    }

    /// Which of the rows, all of one table, are in it.
    async fn present(&mut self, table: &TableStatements, rows: &[&Entry]) -> Result<HashSet<Uuid>, Failure> {
        let ids: Vec<Uuid> = rows.iter().map(|row| row.message.id).collect();
        let mut arguments = PgArguments::default();
        add(&mut arguments, IdArray(&ids))?;
        let query =
            sqlx::query_scalar_with::<_, Uuid, _>(AssertSqlSafe(table.select_present.clone()), arguments);
        let result = answer(self.limits.answer, query.fetch_all(&mut self.connection)).await;
        Ok(self.note(result)?.into_iter().collect())
    }

    /// The places of rows, sorted, that are in their tables.
    pub(super) async fn present_places(&mut self, rows: &[Entry]) -> Result<Vec<usize>, Failure> {
        let rows: Vec<&Entry> = rows.iter().collect();
        let statements = self.statements.clone();
        let mut places = Vec::new();
        let mut first = 0;
        for group in groups(&rows) {
            let table = &statements.tables[group[0].message.row.record_type];
            let present = self.present(table, group).await?;
            let numbered = (first..).zip(group);
            places.extend(
                numbered
                    .filter(|(_, row)| present.contains(&row.message.id))
                    .map(|(place, _)| place),
            );
            first += group.len();
        }
        Ok(places)
    }

    async fn execute(&mut self, statement: &Arc<str>, arguments: PgArguments) -> Result<u64, Failure> {
        let query = sqlx::query_with(AssertSqlSafe(statement.clone()), arguments);
        let result = answer(self.limits.answer, query.execute(&mut self.connection)).await;
        Ok(self.note(result)?.rows_affected())
    }

    async fn run(&mut self, statement: &'static str) -> Result<(), Failure> {
        let result = answer(
            self.limits.answer,
            sqlx::raw_sql(statement).execute(&mut self.connection),
        )
        .await;
        self.note(result).map(|_| ())
    }

    fn note<T>(&mut self, result: Result<T, Failure>) -> Result<T, Failure> {
        if let Err(failure) = &result {
            self.broken |= failure.class == Class::ConnectionLost;
        }
        result
    }
}

/// Waits for an answer of the server, longer than the server itself waits: one that does not come by then is
/// that of a broken connection, which must not be used again.
async fn answer<T>(
    limit: Duration,
    future: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Failure> {
    match timeout(limit, future).await {
        Ok(result) => result.map_err(|error| Failure::of(&error)),
        Err(_) => Err(Failure::lost(format!("no answer within {limit:?}"))),
    }
}

/// Runs of rows of one table.
fn groups<'a, 'b>(rows: &'b [&'a Entry]) -> impl Iterator<Item = &'b [&'a Entry]> {
    rows.chunk_by(|a, b| a.message.row.record_type == b.message.row.record_type)
}

fn add<'a, T>(arguments: &mut PgArguments, value: T) -> Result<(), Failure>
where
    T: sqlx::Encode<'a, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::Arguments::add(arguments, value).map_err(|error| Failure::unencodable(error.to_string()))
}

fn discarded() -> Outcome {
    Outcome::Rejected {
        column: None,
        code: DISCARDED.to_owned(),
        message: "a trigger or a rule of the table discards the row".to_owned(),
    }
}
