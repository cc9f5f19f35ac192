//! A batch: one transaction where all goes well; else halved until what fails has failed alone.
//!
//! Halves commit and are answered apart. What a failure means for the rows: refused for good (only what failed
//! alone, while tables are as the spec says), refused for now, or in doubt. What is in doubt is given back. A row
//! that a trigger fails for is refused for now, and does not stop the others.

use std::time::Duration;

use nomnom_crds::runtime::state::DatabaseReason;
use tokio::time::sleep;

use super::{
    Outcome,
    channel::Entry,
    error::{Class, Failure, LOCK_NOT_AVAILABLE, UNIQUE_VIOLATION},
    refusal::{Refusal, jittered},
    session::{Committed, Failed, Session},
    shared::Shared,
};

/// When so many rows, and all of them, fail with one code, it is not the rows (design).
const DRIFT_ROWS: usize = 20;
/// How often a part is tried again after a deadlock or a serialization failure.
const MAX_RETRIES: u8 = 5;
/// Before it is.
const RETRY_DELAY: Duration = Duration::from_millis(10);

/// Rows that go into one transaction.
struct Part {
    rows: Vec<Entry>,
    /// Whether they may be there already, or have keys.
    guarded: bool,
    retries: u8,
}

/// A batch that is being written.
pub(super) struct Batch<'a> {
    shared: &'a Shared,
    session: &'a mut Session,
    generation: u64,
    /// What is still to be done, last first.
    parts: Vec<Part>,
    /// Rows that failed alone.
    alone: Vec<(Entry, Failure)>,
    /// Rows to be sent again on another connection.
    pending: Vec<Entry>,
    /// Rows that did not fail.
    stored: usize,
}

impl<'a> Batch<'a> {
    pub(super) fn new(shared: &'a Shared, session: &'a mut Session, generation: u64) -> Self {
        Self {
            shared,
            session,
            generation,
            parts: Vec::new(),
            alone: Vec::new(),
            pending: Vec::new(),
            stored: 0,
        }
    }

    /// Writes rows and answers them; returns those that have to be sent again on another connection.
    pub(super) async fn write(mut self, rows: Vec<Entry>) -> Vec<Entry> {
        let is_guarded = |row: &Entry| row.in_doubt || row.message.key_hash.is_some();
        let (guarded, new) = if rows.iter().any(is_guarded) {
            rows.into_iter().partition(is_guarded)
        } else {
            (Vec::new(), rows)
        };
        for (rows, guarded) in [(guarded, true), (new, false)] {
            self.push(rows, guarded);
        }
        while let Some(part) = self.parts.pop() {
            self.write_part(part).await;
        }
        self.conclude().await;
        self.pending
    }

    fn push(&mut self, mut rows: Vec<Entry>, guarded: bool) {
        if rows.is_empty() {
            return;
        }
        self.shared.statements.sort(&mut rows);
        self.parts.push(Part {
            rows,
            guarded,
            retries: 0,
        });
    }

    async fn write_part(&mut self, part: Part) {
        let result = if part.guarded {
            self.session.commit_missing(&part.rows).await
        } else {
            self.session.commit_new(&part.rows).await
        };
        match result {
            Ok(committed) => self.answer(part.rows, committed),
            Err(failed) => self.recover(part, failed).await,
        }
    }

    fn answer(&mut self, rows: Vec<Entry>, mut committed: Committed) {
        self.shared.committed();
        self.shared.metrics.duplicates.inc_by(committed.duplicates);
        self.stored += rows.len();
        for (place, row) in rows.into_iter().enumerate() {
            let outcome = committed.exceptions.remove(&place).unwrap_or(Outcome::Persisted);
            row.answer(outcome);
        }
    }

    async fn recover(&mut self, mut part: Part, failed: Failed) {
        let failure = failed.failure;
        match failure.class {
            Class::ConnectionLost => self.lose(part, failed.in_doubt),
            Class::Retry if part.retries < MAX_RETRIES => {
                part.retries += 1;
                sleep(jittered(RETRY_DELAY)).await;
                self.parts.push(part);
            }
            Class::Transient(_) if part.guarded && failure.code == LOCK_NOT_AVAILABLE => {
                self.resolve_locked(part, &failure).await;
            }
            Class::Transient(_) | Class::Retry => self.refuse_all(part, &failure.refusal()),
            Class::Permanent if failure.code == UNIQUE_VIOLATION && !part.guarded => {
                self.resolve_taken(part, &failure).await;
            }
            Class::Permanent | Class::Foreign => self.halve(part, &failure),
        }
    }

    /// The connection is lost: all that is left goes to another one, and what was sent is in doubt.
    fn lose(&mut self, mut part: Part, in_doubt: bool) {
        for row in &mut part.rows {
            row.in_doubt |= in_doubt;
        }
        self.pending.append(&mut part.rows);
        for mut part in self.parts.drain(..) {
            self.pending.append(&mut part.rows);
        }
    }

    /// The database takes no rows: neither these nor those that were not tried yet.
    fn refuse_all(&mut self, part: Part, refusal: &Refusal) {
        self.shared.fail(self.generation, refusal.clone());
        let parts: Vec<_> = self.parts.drain(..).chain([part]).collect();
        for row in parts.into_iter().flat_map(|part| part.rows) {
            self.refuse(row, refusal.outcome());
        }
    }

    /// A row in doubt cannot be refused for now: it is tried again until its deadline.
    fn refuse(&mut self, row: Entry, outcome: Outcome) {
        if row.in_doubt {
            self.pending.push(row);
        } else {
            row.answer(outcome);
        }
    }

    /// Rows with keys wait for others with the same: a pod that is frozen in the middle holds them up, which is no
    /// reason to refuse everybody else. Where the table itself is locked, the comparison sees that too.
    async fn resolve_locked(&mut self, part: Part, failure: &Failure) {
        let refusal = self
            .shared
            .verify_tables()
            .await
            .err()
            .unwrap_or_else(|| failure.refusal());
        for row in part.rows {
            self.refuse(row, refusal.outcome());
        }
    }

    /// A unique index refuses a row: that of the ids, or one that is somebody else's.
    async fn resolve_taken(&mut self, part: Part, failure: &Failure) {
        let places = match self.session.present_places(&part.rows).await {
            Ok(places) => places,
            Err(failure) => {
                // These were refused; only the question why has no answer.
                let in_doubt = false;
                return match failure.class {
                    Class::ConnectionLost => self.lose(part, in_doubt),
                    _ => self.refuse_all(part, &failure.refusal()),
                };
            }
        };
        if places.is_empty() {
            return self.halve(part, failure);
        }
        let mut free = Vec::with_capacity(part.rows.len());
        for (place, row) in part.rows.into_iter().enumerate() {
            if places.binary_search(&place).is_ok() {
                self.stored += 1;
                row.answer(Outcome::IdTaken);
            } else {
                free.push(row);
            }
        }
        self.push(free, false);
    }

    fn halve(&mut self, mut part: Part, failure: &Failure) {
        if part.rows.len() == 1 {
            self.alone
                .extend(part.rows.into_iter().map(|row| (row, failure.clone())));
            return;
        }
        if self.is_drift(failure) {
            return self.refuse_all(part, &drift(failure));
        }
        let second = part.rows.split_off(part.rows.len() / 2);
        for rows in [second, part.rows] {
            self.parts.push(Part {
                rows,
                guarded: part.guarded,
                retries: 0,
            });
        }
    }

    /// Whether a value is missing in a column that the pipeline does not know: every row will fail.
    fn is_drift(&self, failure: &Failure) -> bool {
        let table = self
            .shared
            .statements
            .tables
            .iter()
            .find(|table| Some(&table.table) == failure.table.as_ref());
        let (Some(table), Some(column)) = (table, &failure.column) else {
            return false;
        };
        failure.is_not_null_violation() && !table.columns.contains(column) && column != "message_id"
    }

    /// Says of rows that failed alone whether it is them, or the tables.
    async fn conclude(&mut self) {
        let Some((_, failure)) = self.alone.first() else {
            return;
        };
        let failure = failure.clone();
        let one_code = self.alone.iter().all(|(_, other)| other.code == failure.code);
        let all = self.stored == 0 && self.pending.is_empty();
        let enough = self.alone.len() >= DRIFT_ROWS || self.shared.suspects_drift();
        let drifted =
            (all && one_code && enough) || self.alone.iter().any(|(_, failure)| self.is_drift(failure));
        let verdict = if drifted {
            Err(drift(&failure))
        } else {
            self.shared.verify_tables().await
        };
        let alone = std::mem::take(&mut self.alone);
        if let Err(refusal) = verdict {
            self.shared.fail(self.generation, refusal.clone());
            for (row, _) in alone {
                self.refuse(row, refusal.outcome());
            }
            return;
        }
        for (row, failure) in alone {
            row_refused(row, failure);
        }
    }
}

fn row_refused(row: Entry, failure: Failure) {
    // Its first hand-over may have succeeded, while the table was another one.
    let outcome = if row.in_doubt {
        Outcome::Unknown
    } else if failure.class == Class::Foreign {
        tracing::warn!(code = failure.code, "a trigger of the table fails for a row");
        failure.refusal().outcome()
    } else {
        Outcome::Rejected {
            column: failure.column,
            code: failure.code,
            message: failure.message,
        }
    };
    row.answer(outcome);
}

fn drift(failure: &Failure) -> Refusal {
    Refusal::new(
        DatabaseReason::SchemaDrift,
        format!(
            "PostgreSQL refuses every row: {}: undo what was changed in the table or its triggers, or change the spec",
            failure.summary()
        ),
    )
}
