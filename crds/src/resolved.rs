//! A pipeline's spec with everything filled in that was left out: the one place that knows the defaults.
//!
//! What the API server cannot check (uniqueness in long lists, the bounds of column types) is checked here.
//! The result is kept in a ControllerRevision, from which a pipeline is reconciled while its spec is invalid.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{
    ColumnType, Duration, IngestionPipelineSpec, Quantity,
    spec::{ColumnSpec, IngestSpec, Mode, RecordSpec, ResourceAmounts, ResourcesSpec, SchemaPolicy},
};

/// Default of `text.delimiter`.
pub const DEFAULT_DELIMITER: &str = "|";
/// Default of `database.urlSecretRef.key`.
pub const DEFAULT_SECRET_KEY: &str = "url";
/// Default of `database.schema`.
pub const DEFAULT_SCHEMA: &str = "public";
/// Default of `ingest.autoscaling.minReplicas`: one for each of three zones.
pub const DEFAULT_MIN_REPLICAS: i32 = 3;
/// Default of `ingest.requestLimits.maxBodyBytes`.
pub const DEFAULT_MAX_BODY_BYTES: u32 = 1024 * 1024;
/// What a pod needs of memory beside the largest body: 4,096 connections, and many small bodies at once.
const BASE_MEMORY_BYTES: u32 = 192 * 1024 * 1024;
/// How often the largest body can be in memory (measured: 7.4 times with two threads): as body, row and parameters of
/// the statement, two at a time; in the buffer of each of four writers; and where threads have not given it back yet.
const BODY_COPIES: u32 = 10;
/// Default of `ingest.requestLimits.timeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(10_000);
/// Default of `ingest.resources.requests.cpu`.
pub const DEFAULT_CPU_REQUEST: &str = "100m";
/// Default of `ingest.resources.requests.memory`. Allocators keep the pages of a burst: less than this and
/// an autoscaler that looks at memory never scales down again.
pub const DEFAULT_MEMORY_REQUEST: &str = "160Mi";
/// Default of `ingest.resources.limits.memory`.
pub const DEFAULT_MEMORY_LIMIT: &str = "512Mi";

/// Less than this, and a pod with its connections does not start reliably.
const MIN_MEMORY_BYTES: u64 = 64 * 1024 * 1024;
/// Columns that every table of PostgreSQL has.
const SYSTEM_COLUMNS: [&str; 6] = ["tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"];

/// A spec in which nothing is left out and nothing contradicts. Stored, and read by later releases: a new field, here and
/// below, has a serde default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedSpec {
    /// When a client gets its answer.
    pub mode: Mode,
    /// The character between two fields of a line.
    pub delimiter: char,
    /// The record types, each with its table.
    pub records: Vec<ResolvedRecord>,
    /// The database.
    pub database: ResolvedDatabase,
    /// The pods that take records.
    pub ingest: ResolvedIngest,
}

/// A record type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedRecord {
    /// The first field of its lines; none where all lines are of this type.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// The table that its records become rows of.
    pub table: String,
    /// The columns in the order of the fields, after the one that `match` looks at.
    pub columns: Vec<ResolvedColumn>,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedColumn {
    /// Its name.
    pub name: String,
    /// Its PostgreSQL type.
    #[serde(rename = "type")]
    pub column_type: ColumnType,
    /// Whether an empty field is NULL.
    pub nullable: bool,
}

/// The database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedDatabase {
    /// The Secret with the connection URL.
    pub secret_name: String,
    /// The key in that Secret.
    pub secret_key: String,
    /// The PostgreSQL schema of the tables.
    pub schema: String,
    /// What is done about tables that are missing or differ.
    pub schema_policy: SchemaPolicy,
}

/// The pods that take records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedIngest {
    /// The fewest pods.
    pub min_replicas: i32,
    /// The largest body in bytes.
    pub max_body_bytes: u32,
    /// The longest that a request may take.
    pub timeout: Duration,
    /// What a pod is sure to get.
    pub requests: ResourceAmounts,
    /// What a pod gets at most.
    pub limits: ResourceAmounts,
}

/// What makes a spec unusable that the API server accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct InvalidField {
    /// Where it stands, such as `spec.records[0].columns[3].type`.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl ResolvedSpec {
    /// Fills in what `spec` leaves out.
    ///
    /// # Errors
    /// All that is wrong with the spec, in its order.
    pub fn resolve(spec: &IngestionPipelineSpec) -> Result<Self, Vec<InvalidField>> {
        let mut invalid = Vec::new();
        let delimiter = resolve_delimiter(spec, &mut invalid);
        let records = resolve_records(&spec.records, delimiter, &mut invalid);
        let reference = &spec.database.url_secret_ref;
        let resolved = Self {
            mode: spec.mode.unwrap_or(Mode::Sync),
            delimiter,
            records,
            database: ResolvedDatabase {
                secret_name: reference.name.clone(),
                secret_key: reference
                    .key
                    .clone()
                    .unwrap_or_else(|| DEFAULT_SECRET_KEY.to_owned()),
                schema: spec
                    .database
                    .schema
                    .clone()
                    .unwrap_or_else(|| DEFAULT_SCHEMA.to_owned()),
                schema_policy: spec.database.schema_policy.unwrap_or(SchemaPolicy::Manage),
            },
            ingest: resolve_ingest(spec.ingest.as_ref(), &mut invalid),
        };
        if invalid.is_empty() {
            Ok(resolved)
        } else {
            Err(invalid)
        }
    }
}

fn resolve_delimiter(spec: &IngestionPipelineSpec, invalid: &mut Vec<InvalidField>) -> char {
    let written = spec
        .text
        .as_ref()
        .and_then(|text| text.delimiter.as_deref())
        .unwrap_or(DEFAULT_DELIMITER);
    let mut characters = written.chars();
    match (characters.next(), characters.next()) {
        (Some(delimiter), None) if delimiter == '\t' || delimiter.is_ascii_punctuation() => delimiter,
        _ => {
            refuse(
                invalid,
                "spec.text.delimiter",
                "write a tab or one ASCII punctuation character",
            );
            '|'
        }
    }
}

fn resolve_records(
    records: &[RecordSpec],
    delimiter: char,
    invalid: &mut Vec<InvalidField>,
) -> Vec<ResolvedRecord> {
    let (mut matches, mut tables) = (HashSet::new(), HashSet::new());
    let mut resolved = Vec::with_capacity(records.len());
    if records.is_empty() {
        refuse(invalid, "spec.records", "write at least one record type");
    }
    for (index, record) in records.iter().enumerate() {
        let path = format!("spec.records[{index}]");
        match record.matches.as_deref() {
            None if records.len() == 1 => {}
            None => refuse(
                invalid,
                format!("{path}.match"),
                "is needed where there is more than one record type",
            ),
            Some(text) => check_match(text, delimiter, matches.insert(text), &path, invalid),
        }
        // PostgreSQL keeps quoted names apart by case, people do not.
        if !tables.insert(record.table.to_lowercase()) {
            let problem = format!(
                "table {:?} is named by another record type: give each its own",
                record.table
            );
            refuse(invalid, format!("{path}.table"), problem);
        }
        resolved.push(ResolvedRecord {
            matches: record.matches.clone(),
            table: record.table.clone(),
            columns: resolve_columns(&record.columns, &path, invalid),
        });
    }
    resolved
}

fn check_match(text: &str, delimiter: char, is_new: bool, path: &str, invalid: &mut Vec<InvalidField>) {
    let path = format!("{path}.match");
    if text.contains(delimiter) {
        refuse(
            invalid,
            path,
            format!("{text:?} holds the delimiter {delimiter:?}: no field can be equal to it"),
        );
    } else if !is_new {
        refuse(
            invalid,
            path,
            format!("{text:?} is the match of another record type: give each its own"),
        );
    }
}

fn resolve_columns(
    columns: &[ColumnSpec],
    path: &str,
    invalid: &mut Vec<InvalidField>,
) -> Vec<ResolvedColumn> {
    let mut names = HashSet::new();
    let mut resolved = Vec::with_capacity(columns.len());
    for (index, column) in columns.iter().enumerate() {
        let path = format!("{path}.columns[{index}]");
        if SYSTEM_COLUMNS.contains(&column.name.as_str()) {
            let problem = format!(
                "{:?} is a column that PostgreSQL has in every table: choose another name",
                column.name
            );
            refuse(invalid, format!("{path}.name"), problem);
        }
        if !names.insert(column.name.to_lowercase()) {
            refuse(
                invalid,
                format!("{path}.name"),
                format!("column {:?} stands in the list twice", column.name),
            );
        }
        match column.column_type.parse() {
            Ok(column_type) => {
                let nullable = column.nullable.unwrap_or(false);
                resolved.push(ResolvedColumn {
                    name: column.name.clone(),
                    column_type,
                    nullable,
                });
            }
            Err(error) => refuse(invalid, format!("{path}.type"), error.to_string()),
        }
    }
    resolved
}

fn resolve_ingest(spec: Option<&IngestSpec>, invalid: &mut Vec<InvalidField>) -> ResolvedIngest {
    let autoscaling = spec.and_then(|ingest| ingest.autoscaling.as_ref());
    let request_limits = spec.and_then(|ingest| ingest.request_limits.as_ref());
    let resources = spec.and_then(|ingest| ingest.resources.as_ref());
    let written = request_limits.and_then(|limits| limits.max_body_bytes);
    let max_body_bytes = match written.map(u32::try_from) {
        None => DEFAULT_MAX_BODY_BYTES,
        Some(Ok(bytes)) => bytes,
        Some(Err(_)) => {
            refuse(
                invalid,
                "spec.ingest.requestLimits.maxBodyBytes",
                "write 1024 to 67108864",
            );
            DEFAULT_MAX_BODY_BYTES
        }
    };
    let (requests, limits) = resolve_resources(resources);
    check_memory(max_body_bytes, limits.memory.as_ref(), invalid);
    ResolvedIngest {
        min_replicas: autoscaling
            .and_then(|autoscaling| autoscaling.min_replicas)
            .unwrap_or(DEFAULT_MIN_REPLICAS),
        max_body_bytes,
        timeout: request_limits
            .and_then(|limits| limits.timeout)
            .unwrap_or(DEFAULT_TIMEOUT),
        requests,
        limits,
    }
}

/// The memory in bytes that a pod needs to live through many of the largest bodies at once.
#[must_use]
pub fn needed_memory_bytes(max_body_bytes: u32) -> u64 {
    u64::from(BASE_MEMORY_BYTES) + u64::from(BODY_COPIES) * u64::from(max_body_bytes)
}

/// Refuses bodies that would get the pod killed. Up to the default they are left to the pod's limit, which so small a
/// body does not decide.
fn check_memory(max_body_bytes: u32, limit: Option<&Quantity>, invalid: &mut Vec<InvalidField>) {
    let Some((limit, amount)) = limit.and_then(|limit| Some((limit, limit.to_number()?))) else {
        return;
    };
    #[expect(clippy::cast_precision_loss, reason = "64 MiB")]
    if amount < MIN_MEMORY_BYTES as f64 {
        let problem = format!(
            "{} is too little for a pod to start: write at least 64Mi",
            limit.0
        );
        refuse(invalid, "spec.ingest.resources.limits.memory", problem);
        return;
    }
    let needed = needed_memory_bytes(max_body_bytes);
    #[expect(clippy::cast_precision_loss, reason = "a GiB at most")]
    if max_body_bytes > DEFAULT_MAX_BODY_BYTES && needed as f64 > amount {
        let problem = format!(
            "bodies of {max_body_bytes} bytes need a memory limit of {}Mi, but spec.ingest.resources.limits.memory is {}: \
             lower the one, or raise the other",
            needed.div_ceil(1024 * 1024),
            limit.0
        );
        refuse(invalid, "spec.ingest.requestLimits.maxBodyBytes", problem);
    }
}

/// Requests and limits, each taken from the defaults where it is left out; a part that is written, even
/// `limits: {}`, is taken as it stands.
fn resolve_resources(spec: Option<&ResourcesSpec>) -> (ResourceAmounts, ResourceAmounts) {
    let requests = spec.and_then(|resources| resources.requests.clone());
    let limits = spec.and_then(|resources| resources.limits.clone());
    // A request above a limit is refused; a default never is the reason.
    let (written, asked) = (
        limits.clone().unwrap_or_default(),
        requests.clone().unwrap_or_default(),
    );
    let default_requests = || ResourceAmounts {
        cpu: Some(at_most(DEFAULT_CPU_REQUEST, written.cpu.as_ref())),
        memory: Some(at_most(DEFAULT_MEMORY_REQUEST, written.memory.as_ref())),
    };
    let default_limits = || ResourceAmounts {
        cpu: None,
        memory: Some(at_least(DEFAULT_MEMORY_LIMIT, asked.memory.as_ref())),
    };
    (
        requests.unwrap_or_else(default_requests),
        limits.unwrap_or_else(default_limits),
    )
}

fn at_most(default: &str, limit: Option<&Quantity>) -> Quantity {
    let default = Quantity::from(default);
    match limit {
        Some(limit) if limit.to_number() < default.to_number() => limit.clone(),
        _ => default,
    }
}

fn at_least(default: &str, request: Option<&Quantity>) -> Quantity {
    let default = Quantity::from(default);
    match request {
        Some(request) if request.to_number() > default.to_number() => request.clone(),
        _ => default,
    }
}

fn refuse(invalid: &mut Vec<InvalidField>, path: impl Into<String>, problem: impl Into<String>) {
    invalid.push(InvalidField {
        path: path.into(),
        problem: problem.into(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(yaml: &str) -> Result<ResolvedSpec, Vec<String>> {
        let spec: IngestionPipelineSpec = serde_yaml::from_str(yaml).unwrap();
        ResolvedSpec::resolve(&spec).map_err(|invalid| invalid.iter().map(ToString::to_string).collect())
    }

    /// As 0.1.0 stored it; no later release may fail to read it.
    #[test]
    fn reads_what_an_earlier_release_accepted() {
        let stored = include_str!("../tests/formats/resolved-0.1.0.json");
        let spec: ResolvedSpec = serde_json::from_str(stored).unwrap();
        assert_eq!(spec.records[0].columns[1].name, "total_price");
        assert_eq!(spec.ingest.timeout, DEFAULT_TIMEOUT);
    }

    #[test]
    fn fills_in_what_is_left_out() {
        let spec = resolve(
            "{database: {urlSecretRef: {name: db}}, records: [{table: t, columns: [{name: a, type: text}]}]}",
        )
        .unwrap();
        assert_eq!((spec.mode, spec.delimiter), (Mode::Sync, '|'));
        assert_eq!(
            (spec.database.secret_key.as_str(), spec.database.schema.as_str()),
            ("url", "public")
        );
        assert_eq!(spec.ingest.min_replicas, 3);
        assert!(!spec.records[0].columns[0].nullable);
    }

    #[test]
    fn the_largest_body_must_fit_into_the_memory() {
        let with = |ingest: &str| {
            resolve(&format!(
                "{{database: {{urlSecretRef: {{name: db}}}}, ingest: {{{ingest}}}, \
                 records: [{{table: t, columns: [{{name: a, type: text}}]}}]}}"
            ))
            .map(|spec| spec.ingest.max_body_bytes)
        };
        let sized = |bytes: u32, limits: &str| {
            with(&format!(
                "requestLimits: {{maxBodyBytes: {bytes}}}, resources: {{limits: {limits}}}"
            ))
        };
        // What the default limit of 512Mi takes.
        assert_eq!(
            with("requestLimits: {maxBodyBytes: 33554432}"),
            Ok(32 * 1024 * 1024)
        );
        assert_eq!(
            with("requestLimits: {maxBodyBytes: 67108864}").unwrap_err(),
            [
                "spec.ingest.requestLimits.maxBodyBytes: bodies of 67108864 bytes need a memory limit of 832Mi, but \
                 spec.ingest.resources.limits.memory is 512Mi: lower the one, or raise the other"
            ]
        );
        sized(67_108_864, "{memory: 832Mi}").unwrap();
        sized(67_108_864, "{memory: 0.8Gi}").unwrap_err();
        sized(67_108_864, "{cpu: 1}").unwrap();
        sized(1_048_576, "{memory: 64Mi}").unwrap();
        assert_eq!(
            sized(1_048_576, "{memory: 512}").unwrap_err(),
            [
                "spec.ingest.resources.limits.memory: 512 is too little for a pod to start: write at least 64Mi"
            ]
        );
    }

    #[test]
    fn a_default_request_is_never_above_a_limit() {
        let resources = |written: String| {
            let spec = resolve(&format!(
                "{{database: {{urlSecretRef: {{name: db}}}}, ingest: {{resources: {written}}}, \
                 records: [{{table: t, columns: [{{name: a, type: text}}]}}]}}"
            ));
            spec.unwrap().ingest
        };
        let requests = |limits: &str| {
            let requests = resources(format!("{{limits: {limits}}}")).requests;
            [requests.cpu, requests.memory].map(|quantity| quantity.unwrap().0)
        };
        let limit = |request: &str| {
            let limits = resources(format!("{{requests: {{memory: {request}}}}}")).limits;
            limits.memory.unwrap().0
        };
        assert_eq!([limit("1Gi"), limit("64Mi")], ["1Gi", DEFAULT_MEMORY_LIMIT]);
        assert_eq!(requests("{cpu: 50m, memory: 128Mi}"), ["50m", "128Mi"]);
        assert_eq!(
            requests("{cpu: 2, memory: 1Gi}"),
            [DEFAULT_CPU_REQUEST, DEFAULT_MEMORY_REQUEST]
        );
        assert_eq!(requests("{}"), [DEFAULT_CPU_REQUEST, DEFAULT_MEMORY_REQUEST]);
    }

    #[test]
    fn columns_of_postgresql_itself_are_refused() {
        let problems = resolve(
            "{database: {urlSecretRef: {name: db}}, records: [{table: t, columns: [{name: ctid, type: text}]}]}",
        )
        .unwrap_err();
        assert!(
            problems[0].starts_with("spec.records[0].columns[0].name: \"ctid\" is a column"),
            "{problems:?}"
        );
    }

    #[test]
    fn names_all_that_is_wrong() {
        let problems = resolve(
            r#"
            database: {urlSecretRef: {name: db}}
            text: {delimiter: ";"}
            records:
              - {match: "O;", table: orders, columns: [{name: a, type: text}, {name: A, type: text}]}
              - {match: L, table: Orders, columns: [{name: a, type: "numeric(2,3)"}]}
              - {match: L, table: lines, columns: [{name: a, type: text}]}
              - {table: rest, columns: [{name: a, type: text}]}
            "#,
        )
        .unwrap_err();
        let paths: Vec<_> = problems
            .iter()
            .map(|problem| problem.split(": ").next().unwrap())
            .collect();
        let expected = [
            "spec.records[0].match",
            "spec.records[0].columns[1].name",
            "spec.records[1].table",
            "spec.records[1].columns[0].type",
            "spec.records[2].match",
            "spec.records[3].match",
        ];
        assert_eq!(paths, expected, "{problems:#?}");
    }
}
