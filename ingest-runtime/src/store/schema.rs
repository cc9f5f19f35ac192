//! The tables: compared with the spec, created and extended under `schemaPolicy: Manage`, never altered else.
//!
//! Run on connecting and again every now and then. A verification also inserts nothing into each table, by the
//! writers' own statement: that sees a lock, a right or an index that is missing, and a server that only reads.

use std::collections::BTreeMap;

use nomnom_crds::{
    runtime::{RuntimeConfig, state::DatabaseReason},
    spec::SchemaPolicy,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{
    catalog::{self, FoundTable},
    error::{Class, Failure},
    plan::{self, OWN_TABLES, Plan},
    refusal::Refusal,
    statement::{KEYS_TABLE, PIPELINES_TABLE, Statements, TARGETS_TABLE, qualified, quoted},
};

/// What a database is verified against.
pub(super) struct Verification<'a> {
    pub(super) config: &'a RuntimeConfig,
    pub(super) statements: &'a Statements,
    pub(super) receipt_key_fingerprint: &'a str,
}

/// What a verification saw.
pub(super) struct Report {
    pub(super) result: Result<(), Refusal>,
    /// The fingerprint that the database knows this pipeline by, where it was read.
    pub(super) receipt_key_fingerprint: Option<String>,
}

type Step<T> = Result<T, Refusal>;

pub(super) fn refused(error: &sqlx::Error) -> Refusal {
    Failure::of(error).refusal()
}

/// Whether the server can be asked, and takes writes.
pub(super) async fn check_server(connection: &mut PgConnection) -> Step<()> {
    let query =
        sqlx::query_scalar("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean");
    let ask = query.fetch_one(connection);
    let answer: Result<bool, _> = match tokio::time::timeout(super::connection::CONNECT_TIMEOUT, ask).await {
        Ok(answer) => answer,
        Err(_) => return Err(Failure::lost("no answer of the server").refusal()),
    };
    if answer.map_err(|error| refused(&error))? {
        return Err(Refusal::new(
            DatabaseReason::ReadOnly,
            "the server takes no writes: let the URL name the primary server, or wait for the end of a fail-over",
        ));
    }
    Ok(())
}

impl Verification<'_> {
    pub(super) async fn run(&self, connection: &mut PgConnection) -> Report {
        let mut receipt_key_fingerprint = None;
        let result = self.steps(connection, &mut receipt_key_fingerprint).await;
        Report {
            result,
            receipt_key_fingerprint,
        }
    }

    async fn steps(&self, connection: &mut PgConnection, fingerprint: &mut Option<String>) -> Step<()> {
        check_server(connection).await?;
        self.check_schema(connection).await?;
        self.ensure_tables(connection).await?;
        self.check_rights(connection).await?;
        if self.policy() != SchemaPolicy::Ignore {
            self.check_foreign_keys(connection).await?;
        }
        let known = self.known_fingerprint(connection).await?;
        *fingerprint = Some(known.clone());
        if known != self.receipt_key_fingerprint {
            return Err(Refusal::new(
                DatabaseReason::ReceiptKeyLost,
                format!(
                    "the receipt key is not the one that earlier message ids of this pipeline were made with \
                     (fingerprint {known}): bring the former Secret back"
                ),
            ));
        }
        self.remember_targets(connection).await?;
        self.probe(connection).await
    }

    fn schema(&self) -> &str {
        &self.config.database.schema
    }

    fn policy(&self) -> SchemaPolicy {
        self.config.database.schema_policy
    }

    async fn check_schema(&self, connection: &mut PgConnection) -> Step<()> {
        let usage: Option<bool> = sqlx::query_scalar(
            "SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1",
        )
        .bind(self.schema())
        .fetch_optional(connection)
        .await
        .map_err(|error| refused(&error))?;
        let schema = quoted(self.schema());
        match usage {
            Some(true) => Ok(()),
            Some(false) => Err(Refusal::new(
                DatabaseReason::PermissionDenied,
                format!("the user may not use the schema {schema}: grant USAGE on it"),
            )),
            None => Err(Refusal::new(
                DatabaseReason::SchemaMissing,
                format!("the schema {schema} does not exist: create it, or correct spec.database.schema"),
            )),
        }
    }

    async fn ensure_tables(&self, connection: &mut PgConnection) -> Step<()> {
        let tables = self.read_tables(connection).await?;
        let plan = plan::plan(self.config, &tables);
        plan.check_differences()?;
        if plan.is_empty() {
            return Ok(());
        }
        if self.policy() != SchemaPolicy::Manage {
            return Err(plan.missing(self.schema()));
        }
        self.change_tables(connection).await
    }

    async fn read_tables(&self, connection: &mut PgConnection) -> Step<BTreeMap<String, FoundTable>> {
        let names = self.table_names();
        catalog::read_tables(connection, self.schema(), &names)
            .await
            .map_err(|error| refused(&error))
    }

    fn table_names(&self) -> Vec<String> {
        let own = OWN_TABLES.iter().map(|(name, _)| (*name).to_owned());
        self.targets().into_iter().chain(own).collect()
    }

    fn targets(&self) -> Vec<String> {
        let records = self.config.records.iter();
        records.map(|record| record.table.clone()).collect()
    }

    /// Several pods do this at once: whoever comes second finds nothing left to do.
    async fn change_tables(&self, connection: &mut PgConnection) -> Step<()> {
        let mut transaction = connection.begin().await.map_err(|error| refused(&error))?;
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended('nomnom schema', 0))";
        execute(&mut transaction, lock)
            .await
            .map_err(|failure| failure.refusal())?;
        let tables = self.read_tables(&mut transaction).await?;
        let plan = plan::plan(self.config, &tables);
        plan.check_differences()?;
        for statement in plan.statements(self.schema()) {
            execute(&mut transaction, &statement)
                .await
                .map_err(|failure| self.cannot_change(&plan, &failure))?;
        }
        transaction.commit().await.map_err(|error| refused(&error))?;
        tracing::info!(
            schema = self.schema(),
            changes = plan.to_string(),
            "changed tables"
        );
        Ok(())
    }

    fn cannot_change(&self, plan: &Plan<'_>, failure: &Failure) -> Refusal {
        if failure.class == Class::Transient(DatabaseReason::PermissionDenied) {
            return Refusal::new(
                DatabaseReason::PermissionDenied,
                format!(
                    "the user may not change tables of the schema {} ({}): grant CREATE on it and ownership of its \
                     tables, or make the changes and set schemaPolicy: Verify; to do: {plan}",
                    quoted(self.schema()),
                    failure.message
                ),
            );
        }
        let mut refusal = failure.refusal();
        refusal.message = format!("failed to change tables ({plan}): {}", refusal.message);
        refusal
    }

    async fn check_rights(&self, connection: &mut PgConnection) -> Step<()> {
        let lacking = catalog::lacking_rights(connection, self.schema(), &self.table_names(), KEYS_TABLE)
            .await
            .map_err(|error| refused(&error))?;
        if lacking.is_empty() {
            return Ok(());
        }
        let grants: Vec<_> = lacking
            .iter()
            .map(|(table, rights)| format!("GRANT {rights} ON {}", qualified(self.schema(), table)))
            .collect();
        Err(Refusal::new(
            DatabaseReason::PermissionDenied,
            format!("the user lacks rights: {} to it", grants.join(", ")),
        ))
    }

    async fn check_foreign_keys(&self, connection: &mut PgConnection) -> Step<()> {
        let keys = catalog::foreign_keys_between(connection, self.schema(), &self.targets())
            .await
            .map_err(|error| refused(&error))?;
        let Some((constraint, from, to)) = keys.first() else {
            return Ok(());
        };
        Err(Refusal::new(
            DatabaseReason::ForeignKeyBetweenTargets,
            format!(
                "the foreign key {} joins {} to {}, whose rows are committed in any order: drop it",
                quoted(constraint),
                quoted(from),
                quoted(to)
            ),
        ))
    }

    /// The fingerprint that this pipeline was first seen with; ours, where that is now.
    async fn known_fingerprint(&self, connection: &mut PgConnection) -> Step<String> {
        let pipelines = qualified(self.schema(), PIPELINES_TABLE);
        let pipeline = &self.config.pipeline;
        let select = format!("SELECT receipt_key_fingerprint FROM {pipelines} WHERE pipeline_uid = $1");
        let insert = format!(
            "INSERT INTO {pipelines} (pipeline_uid, receipt_key_fingerprint, namespace, name) \
             VALUES ($1, $2, $3, $4) ON CONFLICT (pipeline_uid) DO NOTHING"
        );
        for _ in 0..2 {
            let known: Option<String> = sqlx::query_scalar(AssertSqlSafe(select.as_str()))
                .bind(&pipeline.uid)
                .fetch_optional(&mut *connection)
                .await
                .map_err(|error| refused(&error))?;
            if let Some(known) = known {
                return Ok(known);
            }
            sqlx::query(AssertSqlSafe(insert.as_str()))
                .bind(&pipeline.uid)
                .bind(self.receipt_key_fingerprint)
                .bind(&pipeline.namespace)
                .bind(&pipeline.name)
                .execute(&mut *connection)
                .await
                .map_err(|error| refused(&error))?;
        }
        Ok(self.receipt_key_fingerprint.to_owned())
    }

    /// Notes which tables hold messages whose ids are made with this key, so that they are found there when the
    /// spec names others. Writes nothing where that is known.
    async fn remember_targets(&self, connection: &mut PgConnection) -> Step<()> {
        let insert = format!(
            "INSERT INTO {} (receipt_key_fingerprint, table_name) SELECT $1, UNNEST($2::text[]) ON CONFLICT DO NOTHING",
            qualified(self.schema(), TARGETS_TABLE)
        );
        sqlx::query(AssertSqlSafe(insert))
            .bind(self.receipt_key_fingerprint)
            .bind(self.targets())
            .execute(connection)
            .await
            .map_err(|error| refused(&error))?;
        Ok(())
    }

    async fn probe(&self, connection: &mut PgConnection) -> Step<()> {
        for table in &self.statements.tables {
            let arguments = table
                .arguments(&[])
                .map_err(|error| Refusal::new(DatabaseReason::DatabaseError, error.to_string()))?;
            sqlx::query_with(AssertSqlSafe(table.insert_missing.clone()), arguments)
                .execute(&mut *connection)
                .await
                .map_err(|error| refused(&error))?;
        }
        Ok(())
    }
}

async fn execute(connection: &mut PgConnection, statement: &str) -> Result<(), Failure> {
    let result = sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await;
    result.map(|_| ()).map_err(|error| Failure::of(&error))
}
