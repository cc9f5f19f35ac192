//! The API of nomnom: the `IngestionPipeline` resource, and what operator and runtime say to each other.
//!
//! Types, defaults, validation rules, condition types and reasons; no client and no I/O, so that the
//! operator and the runtime can both depend on it and neither on the other.

pub mod column;
pub mod condition;
pub mod duration;
pub mod quantity;
pub mod resolved;
pub mod runtime;
mod schema;
pub mod spec;
pub mod status;

pub use column::ColumnType;
pub use duration::Duration;
pub use quantity::Quantity;
pub use resolved::ResolvedSpec;
pub use spec::{IngestionPipeline, IngestionPipelineSpec};
pub use status::IngestionPipelineStatus;

/// The API group of every kind, label and annotation of nomnom.
pub const GROUP: &str = "nomnom.dev";

/// The custom resource definition, with what the derive macros cannot say.
#[must_use]
pub fn custom_resource_definition()
-> k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition {
    use kube::CustomResourceExt;
    IngestionPipeline::crd()
}
