//! What the operator says about a pipeline.
//!
//! Nothing here changes from one look to the next when the pipeline does not: no counters, no clocks.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Duration,
    spec::{Mode, ResourceAmounts, SchemaPolicy},
};

/// What the operator has seen and done.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngestionPipelineStatus {
    /// The newest generation of the spec that the operator has looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Ready, Accepted, DatabaseReady, EndpointReady; present only when true: Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The mode that is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,

    /// Where clients in the cluster post.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// The pods that take records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingest: Option<IngestStatus>,

    /// What the operator took where the spec leaves a choice, from the last spec that was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolved: Option<ResolvedStatus>,

    /// The fingerprint of the key that message ids are made with. The key with this fingerprint is needed as
    /// long as clients ask for the status of messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt_key_fingerprint: Option<String>,
}

/// The pods that take records.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IngestStatus {
    /// The name of the ControllerRevision whose spec the pods are rendered from: the last that was accepted.
    pub revision: String,
    /// How many pods there should be.
    pub replicas: i32,
    /// How many pods are ready.
    pub ready_replicas: i32,
}

/// What the operator took where the spec leaves a choice.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedStatus {
    /// `text.delimiter`.
    pub delimiter: String,
    /// `database.urlSecretRef.key`.
    pub secret_key: String,
    /// `database.schema`.
    pub schema: String,
    /// `database.schemaPolicy`.
    pub schema_policy: SchemaPolicy,
    /// `ingest.autoscaling.minReplicas`.
    pub min_replicas: i32,
    /// `ingest.requestLimits.maxBodyBytes`.
    pub max_body_bytes: i64,
    /// `ingest.requestLimits.timeout`.
    pub timeout: Duration,
    /// `ingest.resources.requests`.
    pub requests: ResourceAmounts,
    /// `ingest.resources.limits`.
    pub limits: ResourceAmounts,
}

impl From<&crate::ResolvedSpec> for ResolvedStatus {
    fn from(spec: &crate::ResolvedSpec) -> Self {
        Self {
            delimiter: spec.delimiter.to_string(),
            secret_key: spec.database.secret_key.clone(),
            schema: spec.database.schema.clone(),
            schema_policy: spec.database.schema_policy,
            min_replicas: spec.ingest.min_replicas,
            max_body_bytes: spec.ingest.max_body_bytes.into(),
            timeout: spec.ingest.timeout,
            requests: spec.ingest.requests.clone(),
            limits: spec.ingest.limits.clone(),
        }
    }
}
