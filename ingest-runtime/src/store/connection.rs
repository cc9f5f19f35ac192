//! Connections: where the URL comes from, and what every session is told.
//!
//! The URL's file is optional, and read again whenever a connection fails or the file changes. The URL is a
//! secret, and so is every part of it: nothing of it is logged or put into a message.

use std::{io, path::Path, time::Duration};

use nomnom_crds::runtime::{RuntimeConfig, state::DatabaseReason};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, postgres::PgConnectOptions};
use tokio::time::timeout;

use super::{error, refusal::Refusal};

/// How long a server may take to accept a connection: name look-up, TLS and password included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A transaction of ours is never idle; of a frozen pod it would block the others for ever.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10);
/// A statement that takes longer is given up by the server, which is an answer: nothing is stored.
const MAX_STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How much later than the server's own limit an answer may come until the connection counts as broken.
const GRACE: Duration = Duration::from_secs(2);
/// Statements that a connection keeps prepared: three for each of 32 tables, and those for keys.
const STATEMENT_CACHE: usize = 128;

/// How long statements may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The server ends the statement.
    pub(super) statement: Duration,
    /// The server gives up waiting for a lock.
    pub(super) lock: Duration,
    /// The connection counts as broken.
    pub(super) answer: Duration,
}

impl Limits {
    /// Half of a request's time, so that a row that waited is still refused, which is better than not known;
    /// half of that for locks, which are told apart from slowness so.
    pub(super) fn new(request_timeout: Duration) -> Self {
        let statement = (request_timeout / 2).min(MAX_STATEMENT_TIMEOUT);
        Self {
            statement,
            lock: statement / 2,
            answer: statement + GRACE,
        }
    }
}

/// Reads the URL.
pub(super) async fn read_url(file: &Path, source: &str) -> Result<String, Refusal> {
    let text = match tokio::fs::read_to_string(file).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Refusal::new(
                DatabaseReason::SecretNotFound,
                format!("{source} does not exist: create it with the connection URL of the database"),
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(invalid_url(source)),
        Err(error) => {
            return Err(Refusal::new(
                DatabaseReason::SecretNotFound,
                format!("{source} cannot be read: {error}"),
            ));
        }
    };
    Ok(text.trim().to_owned())
}

/// Makes options of the URL.
pub(super) fn options(url: &str, source: &str, config: &RuntimeConfig) -> Result<PgConnectOptions, Refusal> {
    if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
        return Err(invalid_url(source));
    }
    // The parser logs parameters that it does not know, with their values.
    let quiet = tracing::subscriber::NoSubscriber::default();
    let parsed = tracing::subscriber::with_default(quiet, || url.parse::<PgConnectOptions>());
    let pipeline = &config.pipeline;
    Ok(parsed
        .map_err(|_| invalid_url(source))?
        .application_name(&format!("nomnom {}/{}", pipeline.namespace, pipeline.name))
        .statement_cache_capacity(STATEMENT_CACHE)
        .disable_statement_logging())
}

fn invalid_url(source: &str) -> Refusal {
    Refusal::new(
        DatabaseReason::InvalidUrl,
        format!(
            "{source} is no PostgreSQL URL: write postgres://user:password@host:5432/database, \
             with special characters of the password percent-encoded"
        ),
    )
}

/// Opens a connection and sets up its session.
pub(super) async fn connect(
    options: &PgConnectOptions,
    limits: Limits,
    source: &str,
) -> Result<PgConnection, Refusal> {
    let open = async {
        let mut connection = PgConnection::connect_with(options).await?;
        sqlx::raw_sql(AssertSqlSafe(session_settings(limits)))
            .execute(&mut connection)
            .await?;
        Ok(connection)
    };
    match timeout(CONNECT_TIMEOUT, open).await {
        Ok(result) => result.map_err(|error| error::connect_refusal(&error, source)),
        Err(_) => Err(Refusal::new(
            DatabaseReason::Unreachable,
            format!("the server that {source} names does not answer within {CONNECT_TIMEOUT:?}"),
        )),
    }
}

/// Settings by SET and not by start-up options, which connection poolers refuse. A 200 promises durability:
/// asynchronous commit, where the server or the user has it for a default, is not for these sessions.
fn session_settings(limits: Limits) -> String {
    format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}; \
         SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
         SET tcp_user_timeout = 15000; \
         SELECT set_config('synchronous_commit', 'on', false) \
         WHERE current_setting('synchronous_commit') = 'off'",
        limits.statement.as_millis(),
        limits.lock.as_millis(),
        IDLE_IN_TRANSACTION.as_millis(),
    )
}

/// Closes a connection as the protocol wants it, but does not wait long for it.
pub(super) async fn close(connection: PgConnection) {
    // The server notices either way.
    let _ = timeout(Duration::from_secs(1), connection.close()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_that_is_none_is_told_without_being_shown() {
        for url in [
            "",
            "orders",
            "mysql://user:hidden@host/db",
            "postgres://user:hid/den@host/db",
        ] {
            let config = serde_json::json!({
                "version": 1, "pipeline": {"namespace": "shop", "name": "orders", "uid": "1"}, "mode": "Sync",
                "delimiter": "|", "records": [],
                "database": {"schema": "public", "schemaPolicy": "Manage", "urlSource": "S"},
                "limits": {"maxBodyBytes": 1, "timeout": "10s"},
            });
            let config: RuntimeConfig = serde_json::from_value(config).unwrap();
            let refusal = options(url, "S", &config).unwrap_err();
            assert_eq!(refusal.reason, DatabaseReason::InvalidUrl);
            assert!(!refusal.message.contains("hid"), "{}", refusal.message);
        }
    }
}
