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
    statement::{KEYS_TABLE, PIPELINES_TABLE, TARGETS_TABLE, qualified, quoted},
};

/// The tables beside those of the records, with their columns.
pub(super) const OWN_TABLES: [(&str, &str); 3] = [
    (
        KEYS_TABLE,
        "key_hash bytea PRIMARY KEY, message_id uuid NOT NULL, at timestamptz NOT NULL",
    ),
    (
        PIPELINES_TABLE,
        "pipeline_uid text PRIMARY KEY, receipt_key_fingerprint text NOT NULL, namespace text NOT NULL, \
         name text NOT NULL, first_seen timestamptz NOT NULL DEFAULT now()",
    ),
    (
        TARGETS_TABLE,
        "receipt_key_fingerprint text, table_name text, PRIMARY KEY (receipt_key_fingerprint, table_name)",
    ),
];

/// What has to be done, in this order.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    create_own: Vec<(&'static str, &'static str)>,
    create: Vec<&'a ResolvedRecord>,
    add: Vec<(&'a str, &'a ResolvedColumn)>,
    /// What is otherwise than the spec says and stays so.
    differences: Vec<String>,
}

/// Compares the tables with the spec.
pub(super) fn plan<'a>(config: &'a RuntimeConfig, tables: &BTreeMap<String, FoundTable>) -> Plan<'a> {
    let mut plan = Plan {
        create_own: OWN_TABLES
            .into_iter()
            .filter(|(name, _)| !tables.contains_key(*name))
            .collect(),
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
                    self.add.push((&record.table, column));
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
        self.create_own.is_empty() && self.create.is_empty() && self.add.is_empty()
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
    pub(super) fn missing(&self, schema: &str) -> Refusal {
        let own: Vec<_> = self.statements_for_own_tables(schema);
        let own = if own.is_empty() {
            String::new()
        } else {
            format!(" ({})", own.join("; "))
        };
        Refusal::new(
            DatabaseReason::TableMissing,
            format!("to do by an admin, or by the pods with schemaPolicy: Manage: {self}{own}"),
        )
    }

    /// The statements that do it, safe to run where somebody else has just done it.
    pub(super) fn statements(&self, schema: &str) -> Vec<String> {
        let name = |table: &str| qualified(schema, table);
        let mut statements = self.statements_for_own_tables(schema);
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

    fn statements_for_own_tables(&self, schema: &str) -> Vec<String> {
        let mut statements = Vec::new();
        for (name, columns) in &self.create_own {
            let table = qualified(schema, name);
            statements.push(format!("CREATE TABLE IF NOT EXISTS {table} ({columns})"));
            if *name == KEYS_TABLE {
                // Keys come in the order of their time: a block range index is a few pages, whatever their number.
                statements.push(format!(
                    "CREATE INDEX IF NOT EXISTS {KEYS_TABLE}_at ON {table} USING brin (at) WITH (autosummarize = on)"
                ));
            }
        }
        statements
    }
}

/// What has to be done, for people.
impl fmt::Display for Plan<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.create_own.iter().map(|(name, _)| *name);
        let tables = own.chain(self.create.iter().map(|record| record.table.as_str()));
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
    let columns: Vec<_> = record
        .columns
        .iter()
        .map(|column| {
            let null = if column.nullable { "" } else { " NOT NULL" };
            format!("{} {}{null}", quoted(&column.name), column.column_type)
        })
        .collect();
    format!(
        "CREATE TABLE IF NOT EXISTS {name} (message_id uuid PRIMARY KEY, {})",
        columns.join(", ")
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(policy: &str) -> RuntimeConfig {
        serde_json::from_value(serde_json::json!({
            "version": 1, "pipeline": {"namespace": "shop", "name": "orders", "uid": "1"}, "mode": "Sync",
            "delimiter": "|",
            "records": [{"table": "t", "columns": [
                {"name": "a", "type": "numeric(15,2)", "nullable": false},
                {"name": "b", "type": "timestamptz", "nullable": true}]}],
            "database": {"schema": "s", "schemaPolicy": policy, "urlSource": "S"},
            "limits": {"maxBodyBytes": 1, "timeout": "10s"},
        }))
        .unwrap()
    }

    fn column(column_type: &str, not_null: bool) -> FoundColumn {
        FoundColumn {
            column_type: column_type.to_owned(),
            not_null,
            has_default: false,
            is_generated: false,
        }
    }

    /// Our own tables, and `t` with the columns that are given.
    fn tables(columns: &[(&str, FoundColumn)]) -> BTreeMap<String, FoundTable> {
        let mut t = FoundTable {
            is_table: true,
            has_message_id_index: true,
            columns: BTreeMap::from([("message_id".to_owned(), column("uuid", true))]),
        };
        t.columns.extend(
            columns
                .iter()
                .map(|(name, column)| ((*name).to_owned(), column.clone())),
        );
        let own = OWN_TABLES.map(|(name, _)| (name.to_owned(), FoundTable::default()));
        own.into_iter().chain([("t".to_owned(), t)]).collect()
    }

    #[test]
    fn what_is_missing_is_made_with_quoted_names() {
        let config = config("Manage");
        let statements = plan(&config, &BTreeMap::new()).statements("s");
        assert_eq!(statements.len(), 5);
        assert_eq!(
            statements[4],
            "CREATE TABLE IF NOT EXISTS \"s\".\"t\" (message_id uuid PRIMARY KEY, \
             \"a\" numeric(15,2) NOT NULL, \"b\" timestamptz)"
        );
    }

    #[test]
    fn only_a_nullable_column_is_added_and_only_by_manage() {
        let with_a = tables(&[("a", column("numeric(15,2)", true))]);
        let managing = config("Manage");
        let managed = plan(&managing, &with_a);
        managed.check_differences().unwrap();
        assert_eq!(
            managed.statements("s"),
            ["ALTER TABLE \"s\".\"t\" ADD COLUMN IF NOT EXISTS \"b\" timestamptz"]
        );
        assert_eq!(
            plan(&config("Verify"), &with_a)
                .check_differences()
                .unwrap_err()
                .differences,
            ["table \"t\": column \"b\" timestamptz is missing"]
        );
        let with_b = tables(&[("b", column("timestamp with time zone", false))]);
        assert_eq!(
            plan(&managing, &with_b)
                .check_differences()
                .unwrap_err()
                .differences,
            ["table \"t\": column \"a\" is missing, and only nullable columns are added"]
        );
        assert!(plan(&config("Ignore"), &with_b).is_empty());
    }

    #[test]
    fn what_takes_every_row_of_the_spec_is_accepted() {
        let mut found = vec![
            ("a", column("numeric(15,2)", false)),
            ("b", column("timestamp with time zone", false)),
            ("theirs", column("text", false)),
        ];
        assert!(plan(&config("Manage"), &tables(&found)).is_empty());
        plan(&config("Manage"), &tables(&found))
            .check_differences()
            .unwrap();
        found[1].1.not_null = true;
        found[2].1.not_null = true;
        assert_eq!(
            plan(&config("Manage"), &tables(&found))
                .check_differences()
                .unwrap_err()
                .differences,
            [
                "table \"t\": column \"b\" is NOT NULL, the spec says nullable",
                "table \"t\": column \"theirs\" is not in the spec, so it must be nullable or have a default",
            ]
        );
    }
}
