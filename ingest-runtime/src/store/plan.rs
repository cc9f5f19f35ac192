//! What has to change in the database so that it is as the spec says, and what nobody may change but an admin.
//!
//! Pure: from the configuration and what the catalogs say to statements, differences and messages.

use std::{collections::BTreeMap, fmt};

use nomnom_crds::{
    ColumnType,
    resolved::{ResolvedColumn, ResolvedRecord},
    runtime::{
        RuntimeConfig,
        state::{DatabaseReason, MAX_DIFFERENCES},
    },
    spec::SchemaPolicy,
};

use super::{
    catalog::{FoundColumn, FoundTable},
    refusal::Refusal,
    statement::{KEYS_TABLE, PIPELINES_TABLE, quoted},
};

/// What has to be done, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    create_keys: bool,
    create_pipelines: bool,
    create: Vec<&'a ResolvedRecord>,
    add: Vec<(&'a str, &'a ResolvedColumn)>,
    /// What is otherwise than the spec says and stays so.
    differences: Vec<String>,
}

/// Compares the tables with the spec.
pub(super) fn plan<'a>(config: &'a RuntimeConfig, tables: &BTreeMap<String, FoundTable>) -> Plan<'a> {
    let mut plan = Plan {
        create_keys: !tables.contains_key(KEYS_TABLE),
        create_pipelines: !tables.contains_key(PIPELINES_TABLE),
        ..Plan::default()
    };
    if config.database.schema_policy == SchemaPolicy::Ignore {
        return plan;
    }
    for record in &config.records {
        match tables.get(&record.table) {
            Some(table) => plan.compare(record, table, config.database.schema_policy),
            None => plan.create.push(record),
        }
    }
    plan
}

impl<'a> Plan<'a> {
    fn compare(&mut self, record: &'a ResolvedRecord, table: &FoundTable, policy: SchemaPolicy) {
        let mut differ = |difference: String| {
            self.differences
                .push(format!("table {}: {difference}", quoted(&record.table)));
        };
        if !table.is_table {
            return differ("it is no table; drop it, or name another one".into());
        }
        match table.columns.get("message_id") {
            Some(key) if key.column_type != "uuid" => {
                differ(format!(
                    "column \"message_id\" is {}, must be uuid",
                    key.column_type
                ));
            }
            Some(_) if !table.has_message_id_index => {
                differ("column \"message_id\" alone must be the primary key, or have a unique index".into());
            }
            Some(_) => {}
            None => differ("column \"message_id\" is missing, must be uuid PRIMARY KEY".into()),
        }
        for column in &record.columns {
            match table.columns.get(&column.name) {
                Some(found) => compare_column(column, found).into_iter().for_each(&mut differ),
                None if column.nullable && policy == SchemaPolicy::Manage => {
                    self.add.push((&record.table, column))
                }
                None => differ(missing_column(column, policy)),
            }
        }
        for (name, found) in &table.columns {
            let ours = name == "message_id" || record.columns.iter().any(|column| column.name == *name);
            if !ours && found.not_null && !found.has_default {
                differ(format!(
                    "column {} is not in the spec, so it must be nullable or have a default",
                    quoted(name)
                ));
            }
        }
    }

    /// Whether nothing has to be done.
    pub(super) fn is_empty(&self) -> bool {
        !self.create_keys && !self.create_pipelines && self.create.is_empty() && self.add.is_empty()
    }

    /// Refuses where tables differ in a way that only an admin can put right.
    pub(super) fn check_differences(&self) -> Result<(), Refusal> {
        let Some(first) = self.differences.first() else {
            return Ok(());
        };
        let more = match self.differences.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        let mut refusal = Refusal::new(
            DatabaseReason::SchemaMismatch,
            format!("{first}{more}: alter the table or the spec; nothing was changed"),
        );
        refusal.differences = self.differences.iter().take(MAX_DIFFERENCES).cloned().collect();
        Err(refusal)
    }

    /// The refusal where tables are missing and must not be created.
    pub(super) fn missing(&self) -> Refusal {
        Refusal::new(
            DatabaseReason::TableMissing,
            format!("to do by an admin, or by the pods with schemaPolicy: Manage: {self}"),
        )
    }

    /// The statements that do it, safe to run where somebody else has just done it.
    pub(super) fn statements(&self, schema: &str) -> Vec<String> {
        let name = |table: &str| format!("{}.{}", quoted(schema), quoted(table));
        let mut statements = Vec::new();
        if self.create_keys {
            let table = name(KEYS_TABLE);
            statements.push(format!(
                "CREATE TABLE IF NOT EXISTS {table} \
                 (key_hash bytea PRIMARY KEY, message_id uuid NOT NULL, at timestamptz NOT NULL)"
            ));
            // Keys come in the order of their time: a block range index is a few pages, whatever their number.
            statements.push(format!(
                "CREATE INDEX IF NOT EXISTS {} ON {table} USING brin (at) WITH (autosummarize = on)",
                quoted("nomnom_keys_at")
            ));
        }
        if self.create_pipelines {
            statements.push(format!(
                "CREATE TABLE IF NOT EXISTS {} (pipeline_uid text PRIMARY KEY, receipt_key_fingerprint text NOT NULL, \
                 namespace text NOT NULL, name text NOT NULL, first_seen timestamptz NOT NULL DEFAULT now())",
                name(PIPELINES_TABLE)
            ));
        }
        statements.extend(
            self.create
                .iter()
                .map(|record| create_table(&name(&record.table), record)),
        );
        statements.extend(self.add.iter().map(|(table, column)| {
            format!(
                "ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}",
                name(table),
                quoted(&column.name),
                column.column_type
            )
        }));
        statements
    }
}

/// What has to be done, for people.
impl fmt::Display for Plan<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = [
            (self.create_keys, KEYS_TABLE),
            (self.create_pipelines, PIPELINES_TABLE),
        ];
        let tables = own
            .iter()
            .filter(|(create, _)| *create)
            .map(|(_, name)| *name)
            .chain(self.create.iter().map(|record| record.table.as_str()));
        let creations = tables.map(|table| format!("create table {}", quoted(table)));
        let additions = self
            .add
            .iter()
            .map(|(table, column)| format!("add column {}.{}", quoted(table), quoted(&column.name)));
        let all: Vec<_> = creations.chain(additions).collect();
        formatter.write_str(&all.join(", "))
    }
}

fn create_table(name: &str, record: &ResolvedRecord) -> String {
    let columns: String = record
        .columns
        .iter()
        .map(|column| {
            let null = if column.nullable { "" } else { " NOT NULL" };
            format!(", {} {}{null}", quoted(&column.name), column.column_type)
        })
        .collect();
    format!("CREATE TABLE IF NOT EXISTS {name} (message_id uuid PRIMARY KEY{columns})")
}

fn compare_column(column: &ResolvedColumn, found: &FoundColumn) -> Vec<String> {
    let name = quoted(&column.name);
    let mut differences = Vec::new();
    if found.column_type != catalog_name(column.column_type) {
        differences.push(format!(
            "column {name} is {}, the spec says {}",
            found.column_type, column.column_type
        ));
    }
    if found.not_null && column.nullable {
        differences.push(format!("column {name} is NOT NULL, the spec says nullable"));
    }
    if found.is_generated {
        differences.push(format!("column {name} is generated and takes no values"));
    }
    differences
}

fn missing_column(column: &ResolvedColumn, policy: SchemaPolicy) -> String {
    let name = quoted(&column.name);
    if policy == SchemaPolicy::Manage {
        format!("column {name} is missing, and only nullable columns are added")
    } else {
        format!("column {name} {} is missing", column.column_type)
    }
}

/// The type as `format_type` writes it.
fn catalog_name(column: ColumnType) -> String {
    match column {
        ColumnType::Varchar(length) => format!("character varying({length})"),
        ColumnType::Timestamp => "timestamp without time zone".to_owned(),
        ColumnType::Timestamptz => "timestamp with time zone".to_owned(),
        other => other.to_string(),
    }
}
