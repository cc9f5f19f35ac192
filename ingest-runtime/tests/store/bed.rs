//! A server, a database, and stores on it.

use std::{
    collections::HashMap,
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use e2e::Postgres;
use ingest_runtime::{
    record::Row,
    store::{Message, Outcome, Store, StoreOptions},
};
use nomnom_crds::runtime::{
    RuntimeConfig,
    state::{DatabaseReason, DatabaseState},
};
use prometheus_client::registry::Registry;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::Uuid;

pub const DATABASE: &str = "shop";
/// What the stores connect as: an ordinary user.
pub const USER: &str = "app";
pub const USER_PASSWORD: &str = "pw-of-app";
/// How long a condition may take to come true on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);
/// The answer of a request that has time.
pub const LONG: Duration = Duration::from_secs(30);

/// A server with an empty database, which belongs to [`USER`].
pub struct Bed {
    pub postgres: Postgres,
    pub directory: tempfile::TempDir,
}

/// A store, and the task that watches its tasks.
pub struct Opened {
    pub store: Store,
    tasks: JoinHandle<()>,
    pub registry: Registry,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

impl Bed {
    pub async fn start() -> Self {
        let bed = Self {
            postgres: Postgres::start().await.unwrap(),
            directory: tempfile::tempdir().unwrap(),
        };
        bed.create_database().await;
        bed
    }

    pub async fn create_database(&self) {
        let create = format!("CREATE ROLE {USER} LOGIN PASSWORD '{USER_PASSWORD}'");
        self.postgres.execute("postgres", &create).await.unwrap();
        let create = format!("CREATE DATABASE {DATABASE} OWNER {USER}");
        self.postgres.execute("postgres", &create).await.unwrap();
        self.write_url(&self.url());
    }

    pub fn url(&self) -> String {
        self.postgres.url(USER, USER_PASSWORD, DATABASE)
    }

    pub fn url_file(&self) -> PathBuf {
        self.directory.path().join("url")
    }

    pub fn write_url(&self, url: &str) {
        std::fs::write(self.url_file(), url).unwrap();
    }

    /// Runs statements as the superuser.
    pub async fn execute(&self, statements: &str) {
        self.postgres.execute(DATABASE, statements).await.unwrap();
    }

    /// Runs statements as the stores' user, so that tables are that user's.
    pub async fn execute_as_user(&self, statements: &str) {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(statements))
            .execute(&mut connection)
            .await
            .unwrap();
    }

    pub async fn scalar<T>(&self, query: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let mut connection = self.postgres.connect(DATABASE).await.unwrap();
        sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_one(&mut connection)
            .await
            .unwrap()
    }

    pub async fn count(&self, table: &str) -> i64 {
        self.scalar(&format!("SELECT count(*) FROM {table}")).await
    }

    /// How often each id is in `events`.
    pub async fn ids(&self) -> HashMap<Uuid, i64> {
        let mut connection = self.postgres.connect(DATABASE).await.unwrap();
        let rows: Vec<(Uuid, i64)> = sqlx::query_as("SELECT message_id, count(*) FROM events GROUP BY 1")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        rows.into_iter().collect()
    }

    /// A store that does not have to connect.
    pub fn open_unconnected(&self, config: RuntimeConfig) -> Opened {
        self.open_with_key(config, "0123456789abcdef")
    }

    pub fn open_with_key(&self, config: RuntimeConfig, receipt_key_fingerprint: &str) -> Opened {
        let mut registry = Registry::default();
        let options = StoreOptions {
            config: Arc::new(config),
            database_url_file: self.url_file(),
            receipt_key_fingerprint: receipt_key_fingerprint.to_owned(),
        };
        let (store, tasks) = Store::start(options, &mut registry);
        let tasks = tokio::spawn(async { tasks.await.unwrap() });
        Opened {
            store,
            tasks,
            registry,
        }
    }

    pub async fn open(&self, config: RuntimeConfig) -> Opened {
        let opened = self.open_unconnected(config);
        wait_for_reason(&opened.store, DatabaseReason::Connected).await;
        opened
    }
}

/// The configuration of two record types: `events (name text, amount bigint NULL)`, `notes (name varchar(5))`.
pub fn config() -> RuntimeConfig {
    config_of(serde_json::json!([
        {"match": "E", "table": "events", "columns": [
            {"name": "name", "type": "text", "nullable": false},
            {"name": "amount", "type": "bigint", "nullable": true}]},
        {"match": "N", "table": "notes", "columns": [
            {"name": "name", "type": "varchar(5)", "nullable": false}]},
    ]))
}

pub fn config_of(records: serde_json::Value) -> RuntimeConfig {
    serde_json::from_value(serde_json::json!({
        "version": 1,
        "pipeline": {"namespace": "shop", "name": "orders", "uid": "a-uid"},
        "mode": "Sync",
        "delimiter": "|",
        "records": records,
        "database": {"schema": "public", "schemaPolicy": "Manage", "urlSource": "Secret \"orders-db\", key \"url\""},
        "limits": {"maxBodyBytes": 1_048_576, "timeout": "4s"},
    }))
    .unwrap()
}

/// A field as the wire protocol has it; none is NULL.
pub fn fields(values: &[Option<Vec<u8>>]) -> Box<[u8]> {
    let mut fields = Vec::new();
    for value in values {
        let length = value
            .as_ref()
            .map_or(-1, |value| i32::try_from(value.len()).unwrap());
        fields.extend(length.to_be_bytes());
        fields.extend(value.iter().flatten());
    }
    fields.into()
}

fn next_id() -> Uuid {
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    Uuid::from_u64_pair(
        0x0190_0000_0000_8000,
        COUNTER.fetch_add(1, Ordering::Relaxed) | 1 << 63,
    )
}

pub fn event(name: &str, amount: Option<i64>) -> Message {
    Message {
        id: next_id(),
        key_hash: None,
        row: Row {
            record_type: 0,
            fields: fields(&[
                Some(name.into()),
                amount.map(|amount| amount.to_be_bytes().to_vec()),
            ]),
        },
    }
}

pub fn note(name: &str) -> Message {
    Message {
        id: next_id(),
        key_hash: None,
        row: Row {
            record_type: 1,
            fields: fields(&[Some(name.into())]),
        },
    }
}

pub async fn write(store: &Store, message: Message) -> Outcome {
    store.write(message, Instant::now() + LONG).await
}

/// Writes all of them at once.
pub async fn write_all(store: &Store, messages: Vec<Message>) -> Vec<Outcome> {
    let writes = messages.into_iter().map(|message| {
        let store = store.clone();
        tokio::spawn(async move { write(&store, message).await })
    });
    let writes: Vec<_> = writes.collect();
    let mut outcomes = Vec::new();
    for write in writes {
        outcomes.push(write.await.unwrap());
    }
    outcomes
}

pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "{what} does not come true");
        sleep(Duration::from_millis(20)).await;
    }
}

pub async fn wait_for_reason(store: &Store, reason: DatabaseReason) -> DatabaseState {
    let start = Instant::now();
    loop {
        let state = store.state();
        if state.reason == reason {
            assert_eq!(state.ready, reason == DatabaseReason::Connected);
            return state;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{reason:?} is waited for, but the state is {state:?}"
        );
        sleep(Duration::from_millis(10)).await;
    }
}

/// Writes until a row is persisted; meanwhile nothing but a refusal with `reason` may be answered.
pub async fn wait_until_persisted(store: &Store, reasons: &[DatabaseReason]) {
    let start = Instant::now();
    loop {
        match write(store, event("again", None)).await {
            Outcome::Persisted => return,
            Outcome::Unavailable { reason, .. } => assert!(reasons.contains(&reason), "{reason:?}"),
            other => panic!("{other:?}"),
        }
        assert!(start.elapsed() < PATIENCE, "no row is persisted");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The reason of a refusal.
pub fn refused(outcome: &Outcome) -> DatabaseReason {
    match outcome {
        Outcome::Unavailable { reason, .. } => *reason,
        other => panic!("not refused for now: {other:?}"),
    }
}
