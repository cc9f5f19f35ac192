//! What an error of the database means: for a row, for the connection, and for the condition that admins see.
//!
//! Pure. That a row is refused for good is a closed list; whatever is not on it is to be tried again: it is a
//! matter of the database, or of a trigger that fails for this row. Only an error that the server itself calls
//! ERROR proves that nothing was stored.

use nomnom_crds::runtime::state::DatabaseReason;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::refusal::Refusal;

/// The SQLSTATE of a unique violation.
pub(super) const UNIQUE_VIOLATION: &str = "23505";
/// The SQLSTATE of a lock that was waited for too long.
pub(super) const LOCK_NOT_AVAILABLE: &str = "55P03";
/// The SQLSTATE of a value that is not in the format of its type.
const INVALID_BINARY: &str = "22P03";
/// The SQLSTATE of a NULL where there must be none.
const NOT_NULL_VIOLATION: &str = "23502";

/// The SQLSTATE of a transaction that should be tried again.
const SERIALIZATION_FAILURE: &str = "40001";

/// What a failed statement means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// The row is refused, and always will be, provided that it fails alone too.
    Permanent,
    /// Nothing is wrong with the rows: the same statement may succeed at once.
    Retry,
    /// The database takes no rows now. Not stored.
    Transient(DatabaseReason),
    /// A trigger or function of the table fails, for this row or for all: whether others are stored says which.
    /// Not stored, and to be tried again in either case.
    Foreign,
    /// The connection is lost, and with it the answer: what was sent last may be done, or be done yet.
    ConnectionLost,
}

/// A statement that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) class: Class,
    /// The SQLSTATE; empty where the server said nothing.
    pub(super) code: String,
    /// The server's primary message. It may hold values of the row: see [`Failure::summary`].
    pub(super) message: String,
    pub(super) table: Option<String>,
    pub(super) column: Option<String>,
}

impl Failure {
    /// Reads an error of a statement.
    pub(super) fn of(error: &sqlx::Error) -> Self {
        let Some(database) = database_error(error) else {
            return Self::lost(error.to_string());
        };
        let class = match database.severity() {
            PgSeverity::Error => classify(database.code()),
            // The session ends with FATAL and PANIC, which may come after a commit; nothing else is an answer.
            _ => Class::ConnectionLost,
        };
        Self {
            class,
            code: database.code().to_owned(),
            message: database.message().to_owned(),
            table: database.table().map(str::to_owned),
            column: database.column().map(str::to_owned),
        }
    }

    /// A connection that gave no answer.
    pub(super) fn lost(message: impl Into<String>) -> Self {
        Self {
            class: Class::ConnectionLost,
            code: String::new(),
            message: message.into(),
            table: None,
            column: None,
        }
    }

    /// A row that cannot be sent: its fields are not those of its table.
    pub(super) fn unencodable(message: impl Into<String>) -> Self {
        Self {
            class: Class::Permanent,
            code: INVALID_BINARY.to_owned(),
            ..Self::lost(message)
        }
    }

    /// Something that is gone when it is tried again.
    pub(super) fn retry(message: &str) -> Self {
        Self {
            class: Class::Retry,
            code: SERIALIZATION_FAILURE.to_owned(),
            ..Self::lost(message)
        }
    }

    /// What may be shown to others than the client: the texts of triggers, and of values that do not fit their
    /// type, quote what the row holds.
    pub(super) fn summary(&self) -> String {
        let code = &self.code;
        if self.class == Class::Foreign || code.starts_with("22") || code.starts_with("P0") {
            format!("SQLSTATE {code}")
        } else {
            format!("{} (SQLSTATE {code})", self.message)
        }
    }

    /// Whether a NULL was refused, which is a matter of the table where the column is not ours.
    pub(super) fn is_not_null_violation(&self) -> bool {
        self.code == NOT_NULL_VIOLATION
    }

    /// The refusal of rows that this failure means, whatever its class.
    pub(super) fn refusal(&self) -> Refusal {
        let reason = match self.class {
            Class::Transient(reason) => reason,
            Class::ConnectionLost => DatabaseReason::Unreachable,
            Class::Permanent | Class::Retry | Class::Foreign => DatabaseReason::DatabaseError,
        };
        if self.code.is_empty() {
            return Refusal::new(
                reason,
                format!("the connection to PostgreSQL broke: {}", self.message),
            );
        }
        let advice = advice(reason, &self.code);
        Refusal::new(
            reason,
            format!("PostgreSQL refuses rows: {}{advice}", self.summary()),
        )
    }
}

fn advice(reason: DatabaseReason, code: &str) -> &'static str {
    match (reason, code) {
        (DatabaseReason::ReadOnly, _) => {
            ": let the URL name the primary server, or wait for the end of a fail-over"
        }
        (DatabaseReason::PermissionDenied, _) => {
            ": grant USAGE on the schema, and INSERT and SELECT on its tables (DELETE too on nomnom_keys), to the user \
             of the URL"
        }
        (_, "55P03") => ": another session holds a lock on the table; see pg_locks",
        (_, "57014") => ": the statement took too long; look for locks, triggers and slow disks",
        (_, "53100") => ": give the server more disk space",
        _ => "",
    }
}

/// The server's own error, where it sent one.
pub(super) fn database_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    match error {
        sqlx::Error::Database(error) => error.try_downcast_ref::<PgDatabaseError>(),
        _ => None,
    }
}

/// What the SQLSTATE of a statement's ERROR means.
fn classify(code: &str) -> Class {
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        ("22" | "23", _) | (_, "44000" | "P0001" | "54000") => Class::Permanent,
        (_, "40001" | "40P01") => Class::Retry,
        // "Statement completion unknown", and what a pooler says of a connection to the server that it lost.
        ("08", _) | (_, "40003") => Class::ConnectionLost,
        _ if is_of_the_server(class) => Class::Transient(reason(class, code)),
        _ => Class::Foreign,
    }
}

/// Classes that PostgreSQL itself raises, whatever the row: no privilege or state, no resources, an operator's or
/// the system's doing. All others come from what a trigger runs or raises.
fn is_of_the_server(class: &str) -> bool {
    matches!(
        class,
        "0A" | "25" | "28" | "3D" | "3F" | "40" | "42" | "53" | "54" | "55" | "57" | "58" | "F0" | "XX" | ""
    )
}

fn reason(class: &str, code: &str) -> DatabaseReason {
    match (class, code) {
        (_, "25006") => DatabaseReason::ReadOnly,
        (_, "42501") => DatabaseReason::PermissionDenied,
        (_, "42P01") => DatabaseReason::TableMissing,
        (_, "3F000") => DatabaseReason::SchemaMissing,
        (_, "3D000") => DatabaseReason::DatabaseNotFound,
        // A column that is missing or of another type; no unique index for ON CONFLICT; not a plain table.
        (_, "42703" | "42804" | "42846" | "42883" | "42P10" | "42809") => DatabaseReason::SchemaMismatch,
        ("28", _) => DatabaseReason::AuthenticationFailed,
        (_, "53300" | "57P01" | "57P02" | "57P03") => DatabaseReason::Unreachable,
        _ => DatabaseReason::DatabaseError,
    }
}

/// Reads an error of connecting. Names and values of the URL stay out of the message: where a password holds
/// a character that should have been encoded, parts of it end up in any of them.
pub(super) fn connect_refusal(error: &sqlx::Error, source: &str) -> Refusal {
    let Some(database) = database_error(error) else {
        return match error {
            sqlx::Error::Io(io) => Refusal::new(
                DatabaseReason::Unreachable,
                format!("the server that {source} names cannot be reached: {io}"),
            ),
            sqlx::Error::Tls(tls) => Refusal::new(
                DatabaseReason::Unreachable,
                format!(
                    "no TLS with the server that {source} names: {tls}; check its certificate and the URL's sslmode"
                ),
            ),
            sqlx::Error::Configuration(_) => Refusal::new(
                DatabaseReason::InvalidUrl,
                format!("{source} names a certificate or key that cannot be read"),
            ),
            _ => Refusal::new(
                DatabaseReason::DatabaseError,
                format!("the server that {source} names does not speak as PostgreSQL does"),
            ),
        };
    };
    let code = database.code();
    let class = code.get(..2).unwrap_or_default();
    let reason = reason(class, code);
    let message = match reason {
        DatabaseReason::AuthenticationFailed => {
            format!("PostgreSQL refuses user or password of {source}: correct them there")
        }
        DatabaseReason::DatabaseNotFound => {
            format!("the server has no database of the name in {source}: create it, or correct the name")
        }
        DatabaseReason::PermissionDenied => {
            format!("the user of {source} may not connect to the database: grant CONNECT")
        }
        _ if code == "53300" => {
            format!(
                "the server that {source} names has no connection left: raise its max_connections, or the user's limit"
            )
        }
        _ => format!("the server that {source} names takes no connection now (SQLSTATE {code})"),
    };
    Refusal::new(reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_refused_for_good_by_a_closed_list() {
        let table = [
            ("22001", Class::Permanent),
            ("22P02", Class::Permanent),
            ("23502", Class::Permanent),
            ("23503", Class::Permanent),
            ("23505", Class::Permanent),
            ("23514", Class::Permanent),
            ("44000", Class::Permanent),
            ("P0001", Class::Permanent),
            ("54000", Class::Permanent),
            ("40001", Class::Retry),
            ("40P01", Class::Retry),
            ("40003", Class::ConnectionLost),
            ("08006", Class::ConnectionLost),
            ("08007", Class::ConnectionLost),
            ("0A000", Class::Transient(DatabaseReason::DatabaseError)),
            ("25006", Class::Transient(DatabaseReason::ReadOnly)),
            ("28P01", Class::Transient(DatabaseReason::AuthenticationFailed)),
            ("3D000", Class::Transient(DatabaseReason::DatabaseNotFound)),
            ("3F000", Class::Transient(DatabaseReason::SchemaMissing)),
            ("42501", Class::Transient(DatabaseReason::PermissionDenied)),
            ("42P01", Class::Transient(DatabaseReason::TableMissing)),
            ("42703", Class::Transient(DatabaseReason::SchemaMismatch)),
            ("42P10", Class::Transient(DatabaseReason::SchemaMismatch)),
            ("53100", Class::Transient(DatabaseReason::DatabaseError)),
            ("53300", Class::Transient(DatabaseReason::Unreachable)),
            ("54001", Class::Transient(DatabaseReason::DatabaseError)),
            ("55P03", Class::Transient(DatabaseReason::DatabaseError)),
            ("57014", Class::Transient(DatabaseReason::DatabaseError)),
            ("57P03", Class::Transient(DatabaseReason::Unreachable)),
            ("21000", Class::Foreign),
            ("38000", Class::Foreign),
            ("P0002", Class::Foreign),
            ("P0004", Class::Foreign),
            ("ZZ001", Class::Foreign),
            ("XX000", Class::Transient(DatabaseReason::DatabaseError)),
            ("", Class::Transient(DatabaseReason::DatabaseError)),
        ];
        for (code, expected) in table {
            assert_eq!(classify(code), expected, "{code}");
        }
    }

    #[test]
    fn texts_that_may_quote_a_row_are_for_its_client_only() {
        let failure = |code: &str| Failure {
            class: classify(code),
            code: code.to_owned(),
            ..Failure::lost("text of the server")
        };
        for code in ["22P02", "P0001", "P0002", "38000", "ZZ001"] {
            assert_eq!(failure(code).summary(), format!("SQLSTATE {code}"));
        }
        for code in ["23502", "42501", "53100"] {
            assert_eq!(
                failure(code).summary(),
                format!("text of the server (SQLSTATE {code})")
            );
        }
    }

    #[test]
    fn an_error_without_an_answer_of_the_server_proves_nothing() {
        for error in [
            sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into()),
            sqlx::Error::Protocol("half a message".into()),
            sqlx::Error::WorkerCrashed,
        ] {
            assert_eq!(Failure::of(&error).class, Class::ConnectionLost, "{error}");
        }
    }
}
