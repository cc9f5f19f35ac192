//! What PostgreSQL's catalogs say about tables. Only reads.

use std::collections::BTreeMap;

use sqlx::PgConnection;

/// A table as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FoundTable {
    /// Whether it is a table, partitioned or not, and no view or the like.
    pub(super) is_table: bool,
    /// Whether `message_id` alone is the key of a unique index that ON CONFLICT can use.
    pub(super) has_message_id_index: bool,
    pub(super) columns: BTreeMap<String, FoundColumn>,
}

/// A column as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundColumn {
    /// As `format_type` writes it.
    pub(super) column_type: String,
    pub(super) not_null: bool,
    /// Whether it gets a value where an INSERT names none.
    pub(super) has_default: bool,
    /// Whether an INSERT may not name a value.
    pub(super) is_generated: bool,
}

const TABLES: &str = "
    SELECT c.relname::text, c.relkind IN ('r', 'p'),
           EXISTS (SELECT FROM pg_index i JOIN pg_attribute k ON k.attrelid = c.oid AND k.attnum = i.indkey[0]
                   WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indimmediate
                     AND i.indnkeyatts = 1 AND i.indpred IS NULL AND i.indexprs IS NULL
                     AND k.attname = 'message_id')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = ANY($2)";

const COLUMNS: &str = "
    SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a'
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE n.nspname = $1 AND c.relname = ANY($2) AND a.attnum > 0 AND NOT a.attisdropped";

const LACKING_RIGHTS: &str = "
    SELECT name, rights FROM (
        SELECT c.relname::text AS name,
               concat_ws(', ', CASE WHEN NOT has_table_privilege(c.oid, 'INSERT') THEN 'INSERT' END,
                               CASE WHEN NOT has_table_privilege(c.oid, 'SELECT') THEN 'SELECT' END,
                               CASE WHEN c.relname = $3 AND NOT has_table_privilege(c.oid, 'DELETE')
                                    THEN 'DELETE' END) AS rights
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = ANY($2)) found
    WHERE rights <> '' ORDER BY name";

const FOREIGN_KEYS: &str = "
    SELECT k.conname::text, c.relname::text, r.relname::text
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class r ON r.oid = k.confrelid
    JOIN pg_namespace cn ON cn.oid = c.relnamespace JOIN pg_namespace rn ON rn.oid = r.relnamespace
    WHERE k.contype = 'f' AND cn.nspname = $1 AND rn.nspname = $1
      AND c.relname = ANY($2) AND r.relname = ANY($2)
    ORDER BY k.conname";

const SCHEMAS_WITH: &str = "
    SELECT n.nspname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = $1 AND c.relkind = 'r' AND has_schema_privilege(n.oid, 'USAGE')
      AND has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
    ORDER BY n.nspname";

const WITH_MESSAGE_IDS: &str = "
    SELECT c.relname::text
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
    WHERE n.nspname = $1 AND c.relname = ANY($2) AND c.relkind IN ('r', 'p')
      AND a.attname = 'message_id' AND a.atttypid = 'uuid'::regtype AND NOT a.attisdropped
      AND has_table_privilege(c.oid, 'SELECT')
    ORDER BY c.relname";

/// Reads those of the tables that exist.
pub(super) async fn read_tables(
    connection: &mut PgConnection,
    schema: &str,
    names: &[String],
) -> Result<BTreeMap<String, FoundTable>, sqlx::Error> {
    let found: Vec<(String, bool, bool)> = sqlx::query_as(TABLES)
        .bind(schema)
        .bind(names)
        .fetch_all(&mut *connection)
        .await?;
    let mut tables: BTreeMap<_, _> = found
        .into_iter()
        .map(|(name, is_table, has_message_id_index)| {
            (
                name,
                FoundTable {
                    is_table,
                    has_message_id_index,
                    columns: BTreeMap::new(),
                },
            )
        })
        .collect();
    let columns: Vec<(String, String, String, bool, bool, bool)> = sqlx::query_as(COLUMNS)
        .bind(schema)
        .bind(names)
        .fetch_all(connection)
        .await?;
    for (table, name, column_type, not_null, has_default, is_generated) in columns {
        let column = FoundColumn {
            column_type,
            not_null,
            has_default,
            is_generated,
        };
        tables.entry(table).or_default().columns.insert(name, column);
    }
    Ok(tables)
}

/// What rights the user lacks on those of the tables that exist: INSERT and SELECT on each, DELETE on `expiring`.
/// Table, rights.
pub(super) async fn lacking_rights(
    connection: &mut PgConnection,
    schema: &str,
    names: &[String],
    expiring: &str,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(LACKING_RIGHTS)
        .bind(schema)
        .bind(names)
        .bind(expiring)
        .fetch_all(connection)
        .await
}

/// The schemas with a table of this name that the user may read and write: others' are none of our business.
pub(super) async fn schemas_with(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(SCHEMAS_WITH)
        .bind(table)
        .fetch_all(connection)
        .await
}

/// Those of the tables that are there, have message ids, and may be read.
pub(super) async fn with_message_ids(
    connection: &mut PgConnection,
    schema: &str,
    names: &[String],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(WITH_MESSAGE_IDS)
        .bind(schema)
        .bind(names)
        .fetch_all(connection)
        .await
}

/// Foreign keys among the tables: constraint, from, to.
pub(super) async fn foreign_keys_between(
    connection: &mut PgConnection,
    schema: &str,
    names: &[String],
) -> Result<Vec<(String, String, String)>, sqlx::Error> {
    sqlx::query_as(FOREIGN_KEYS)
        .bind(schema)
        .bind(names)
        .fetch_all(connection)
        .await
}
