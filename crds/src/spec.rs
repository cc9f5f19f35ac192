//! What a cluster admin writes: the `IngestionPipeline` resource.
//!
//! Nothing here has a default in the schema: the operator resolves what is left out (`resolved`) and shows
//! it in the status, so that the stored object stays what the admin wrote and GitOps sees no drift. The
//! doc comments become `kubectl explain`; where a field has a type of its own, the type's comment does.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ColumnType, Duration, Quantity, status::IngestionPipelineStatus};

/// The longest name of a pipeline: its children's names add a suffix and must fit into 63 characters.
pub const MAX_NAME_LENGTH: usize = 40;

/// The names of tables, columns and PostgreSQL schemas: what needs no quoting, up to the 63 bytes that
/// PostgreSQL keeps of an identifier (`NAMEDATALEN` less one).
const IDENTIFIER: &str = "^[A-Za-z_][A-Za-z0-9_]{0,62}$";

/// What the pipeline does: which records it takes, and which PostgreSQL tables they become rows of.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "nomnom.dev",
    version = "v1alpha1",
    kind = "IngestionPipeline",
    plural = "ingestionpipelines",
    shortname = "ipl",
    category = "nomnom",
    namespaced,
    status = "IngestionPipelineStatus",
    derive = "PartialEq",
    doc = "An HTTP endpoint whose records become rows of PostgreSQL tables.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name must have at most 40 characters, start with a letter, and hold only lower-case letters, digits and '-': the names of its Service and Deployments are made from it"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".status.mode", description = "How records are ingested"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status", description = "Whether records are accepted and stored"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason", priority = "1"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", description = "Where clients in the cluster post"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.records.size() == 1 || self.records.all(r, has(r.match))")
        .message("with more than one record type each needs `match`, the first field of its lines").field_path(".records"),
    validation = Rule::new("self.records.all(r, !has(r.match) || self.records.exists_one(s, has(s.match) && s.match == r.match))")
        .message("two record types have the same `match`: give each its own").field_path(".records"),
)]
pub struct IngestionPipelineSpec {
    /// When a client gets its answer. Default: Sync.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,

    /// How the lines of text/plain bodies are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextSpec>,

    /// The record types: which record goes to which table. At least one, at most 32.
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(min = 1, max = 32))]
    pub records: Vec<RecordSpec>,

    /// The PostgreSQL database that holds the tables.
    pub database: DatabaseSpec,

    /// The pods that take records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest: Option<IngestSpec>,
}

/// When a client gets its answer. Sync: 200 after the record is committed in PostgreSQL. Default: Sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// 200 after the record is committed in PostgreSQL.
    Sync,
}

impl Mode {
    /// As it is written in a pipeline.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "Sync",
        }
    }
}

/// How the lines of text/plain bodies are read.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TextSpec {
    /// The character between two fields: a tab or one ASCII punctuation character. Default: |.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1), regex(pattern = r"^[\t!-/:-@\[-`{-~]$"))]
    pub delimiter: Option<String>,
}

/// One record type: the lines that belong to it, and the table that they become rows of.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordSpec {
    /// The first field of this type's lines. It routes the line and is not stored. Left out, every line is
    /// of this type and its first field belongs to the first column; allowed only for a single record type.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[^\\x00-\\x1f]+$"))]
    pub matches: Option<String>,

    /// The table. It has, besides the columns below, `message_id uuid` as its primary key. Two record types
    /// cannot share a table. Names that start with `nomnom_` are taken.
    #[schemars(length(min = 1, max = 63), regex(pattern = IDENTIFIER))]
    #[x_kube(validation = Rule::new("!self.startsWith('nomnom_')").message("tables that start with `nomnom_` are nomnom's own: choose another name"))]
    pub table: String,

    /// The columns, in the order of the line's fields. At least one, at most 1,000.
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(min = 1, max = 1000))]
    pub columns: Vec<ColumnSpec>,
}

/// A column of a table, filled from the field at the same position.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ColumnSpec {
    /// The name of the column. `message_id` is taken by the primary key.
    #[schemars(length(min = 1, max = 63), regex(pattern = IDENTIFIER))]
    #[x_kube(validation = Rule::new("self != 'message_id'").message("`message_id` is the primary key that every table has: choose another name"))]
    pub name: String,

    /// The PostgreSQL type: text, varchar(n), bigint, integer, smallint, numeric(p,s), boolean, date,
    /// timestamp, timestamptz, uuid, double precision or jsonb.
    #[serde(rename = "type")]
    #[schemars(with = "ColumnType")]
    // A string here, read when the spec is resolved: the schema cannot refuse all that the type refuses, and
    // an object that the operator cannot read would stop its watch of all pipelines.
    pub column_type: String,

    /// Whether an empty field is stored as NULL. Otherwise it is an empty text, or refused where the type
    /// is no text. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nullable: Option<bool>,
}

/// The PostgreSQL database that holds the tables.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseSpec {
    /// The Secret, in the pipeline's namespace, with the connection URL
    /// (`postgres://user:password@host:5432/database?sslmode=verify-full`). Only the pipeline's own pods read it.
    pub url_secret_ref: SecretKeyRef,

    /// The PostgreSQL schema of the tables; it must exist. Default: public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = IDENTIFIER))]
    pub schema: Option<String>,

    /// What is done about tables that are missing or differ. Default: Manage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_policy: Option<SchemaPolicy>,
}

/// A key of a Secret in the pipeline's own namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The name of the Secret.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")
    )]
    pub name: String,

    /// The key in the Secret. Default: url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    #[x_kube(validation = Rule::new("self != '.' && !self.startsWith('..')").message("a key of a Secret is not '.' and does not start with '..'"))]
    pub key: Option<String>,
}

/// What is done about tables that are missing or differ. Manage: missing tables are created and missing
/// nullable columns added, nothing is ever altered or dropped. Verify: a difference is reported, nothing is
/// changed. Ignore: tables are not looked at. Default: Manage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SchemaPolicy {
    /// Create missing tables and add missing nullable columns.
    Manage,
    /// Report a difference, change nothing.
    Verify,
    /// Do not look at the tables.
    Ignore,
}

/// The pods that take records.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngestSpec {
    /// How many pods there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<IngestAutoscalingSpec>,

    /// What one request may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_limits: Option<RequestLimitsSpec>,

    /// CPU and memory of each pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourcesSpec>,
}

/// How many pods take records.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngestAutoscalingSpec {
    /// The fewest pods, 1 to 1,000. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: Option<i32>,
}

/// What one request may take.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestLimitsSpec {
    /// The largest body in bytes, 1,024 to 67,108,864 (64 MiB); a larger one is answered 413. Above 1 MiB, the memory
    /// limit must be at least 192Mi and ten times this. Default: 1048576 (1 MiB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1024, max = 67_108_864))]
    pub max_body_bytes: Option<i64>,

    /// The longest that a request may take, 100ms to 5m, from its headers to its answer. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('100ms') && duration(self) <= duration('5m')").message("write a timeout of 100ms to 5m"))]
    pub timeout: Option<Duration>,
}

/// CPU and memory of each pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourcesSpec {
    /// What a pod is sure to get. Default: cpu 100m, memory 160Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<ResourceAmounts>,

    /// What a pod gets at most. Default: memory 512Mi, no limit of CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ResourceAmounts>,
}

/// Amounts of CPU and memory. Default of requests: cpu 100m, memory 160Mi; of limits: memory 512Mi.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceAmounts {
    /// CPU in cores, such as 500m or 2. Default: none where the other amount is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quantity>,

    /// Memory in bytes, such as 256Mi. Default: none where the other amount is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
}
