//! The cluster's database server, and the faults that a test can give it.

use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    Cluster,
    components::POSTGRES,
    layout::{POSTGRES_PORT, node_socket},
};
use crate::postgres::{PASSWORD, SUPERUSER};

/// A stop waits for the checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The database server of the cluster. What runs statements is to be called inside of [`Cluster::run`].
#[derive(Clone, Debug)]
pub struct ClusterPostgres {
    cluster: Cluster,
}

impl ClusterPostgres {
    pub(super) const fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// The URL of `database` for `user`, as pods and tests reach it.
    #[must_use]
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        let host = format!("postgres.databases.svc:{POSTGRES_PORT}");
        format!("postgres://{user}:{password}@{host}/{database}")
    }

    /// The URL of `database` for the superuser, as pods reach it.
    #[must_use]
    pub fn superuser_url(&self, database: &str) -> String {
        self.url(SUPERUSER, PASSWORD, database)
    }

    /// A connection of the superuser to `database`.
    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        let address = node_socket(POSTGRES_PORT);
        PgConnection::connect(&format!("postgres://{SUPERUSER}:{PASSWORD}@{address}/{database}"))
            .await
            .with_context(|| format!("failed to connect to database {database}"))
    }

    /// Runs statements as the superuser.
    pub async fn execute(&self, database: &str, statements: &str) -> Result<()> {
        let mut connection = self.connect(database).await?;
        sqlx::raw_sql(AssertSqlSafe(statements))
            .execute(&mut connection)
            .await
            .with_context(|| format!("failed to run {statements}"))?;
        Ok(())
    }

    /// Makes a database, without what an earlier one of that name held.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.execute(
            "postgres",
            &format!("DROP DATABASE IF EXISTS \"{name}\" WITH (FORCE)"),
        )
        .await?;
        self.execute("postgres", &format!("CREATE DATABASE \"{name}\""))
            .await
    }

    /// Makes every new transaction read-only, as on the standby that a fail-over leaves behind, or undoes it.
    pub async fn set_read_only(&self, read_only: bool) -> Result<()> {
        crate::postgres::set_read_only(&mut self.connect("postgres").await?, read_only).await
    }

    /// Ends the server as an administrator would: open transactions are rolled back, clients disconnected.
    pub fn stop(&self) -> Result<()> {
        POSTGRES.stop(&self.cluster.layout, STOP_TIMEOUT)
    }

    /// Kills the server and all of its processes, as a crash would.
    pub fn kill(&self) -> Result<()> {
        POSTGRES.kill(&self.cluster.layout)
    }

    /// Starts the server again, on its data, and waits until it accepts connections.
    pub fn start(&self) -> Result<()> {
        self.cluster.start_component(&POSTGRES)
    }

    /// Freezes the server: connections stay open, and nothing answers.
    pub fn pause(&self) -> Result<()> {
        POSTGRES.pause(&self.cluster.layout)
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) -> Result<()> {
        POSTGRES.resume(&self.cluster.layout)
    }
}
