//! The configuration of the runtime: one JSON file, rendered by the operator.
//!
//! It holds nothing that changes without a change for the pods (no generation, no labels): its hash names
//! the ConfigMap, and another name rolls the pods.

use serde::{Deserialize, Serialize};

use crate::{
    Duration, ResolvedSpec,
    resolved::ResolvedRecord,
    spec::{Mode, SchemaPolicy},
};

/// The version that this build writes and reads. A version is written one release after it can be read.
pub const VERSION: u32 = 1;

/// The configuration of the runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuntimeConfig {
    /// [`VERSION`].
    pub version: u32,
    /// Whose configuration it is.
    pub pipeline: PipelineIdentity,
    /// When a client gets its answer.
    pub mode: Mode,
    /// The character between two fields of a line.
    pub delimiter: char,
    /// The record types, at least one.
    pub records: Vec<ResolvedRecord>,
    /// The database.
    pub database: DatabaseConfig,
    /// What one request may take.
    pub limits: LimitsConfig,
}

/// A pipeline among all that ever were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PipelineIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// The database, but for its URL, which is in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatabaseConfig {
    /// The PostgreSQL schema of the tables.
    pub schema: String,
    /// What is done about tables that are missing or differ.
    pub schema_policy: SchemaPolicy,
    /// Where the URL comes from, for messages: `Secret "orders-db", key "url"`.
    pub url_source: String,
}

/// What one request may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitsConfig {
    /// The largest body in bytes.
    pub max_body_bytes: u32,
    /// The longest that a request may take.
    pub timeout: Duration,
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// Not the JSON of a [`RuntimeConfig`].
    #[error("not a configuration of the runtime: {0}")]
    Json(#[from] serde_json::Error),
    /// Written by another release.
    #[error(
        "configuration version {0}, but this build reads version {VERSION}: use the runtime image of the operator's release"
    )]
    Version(u64),
}

impl RuntimeConfig {
    /// The configuration of a pipeline.
    #[must_use]
    pub fn new(pipeline: PipelineIdentity, spec: &ResolvedSpec) -> Self {
        let database = &spec.database;
        Self {
            version: VERSION,
            pipeline,
            mode: spec.mode,
            delimiter: spec.delimiter,
            records: spec.records.clone(),
            database: DatabaseConfig {
                schema: database.schema.clone(),
                schema_policy: database.schema_policy,
                url_source: format!("Secret {:?}, key {:?}", database.secret_name, database.secret_key),
            },
            limits: LimitsConfig {
                max_body_bytes: spec.ingest.max_body_bytes,
                timeout: spec.ingest.timeout,
            },
        }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// The version is told from all else that can be wrong, since only it says which image to use.
    pub fn from_json(json: &[u8]) -> Result<Self, InvalidConfig> {
        let value: serde_json::Value = serde_json::from_slice(json)?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version != u64::from(VERSION) => Err(InvalidConfig::Version(version)),
            _ => Ok(serde_json::from_value(value)?),
        }
    }
}
