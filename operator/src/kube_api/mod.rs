//! What every controller needs of the Kubernetes API. Nothing here knows an `IngestionPipeline`.

pub mod adopt;
pub mod apply;
pub mod conditions;
pub mod events;
pub mod leadership;
pub mod ownership;
pub mod prune;
