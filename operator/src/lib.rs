//! The operator: turns each `IngestionPipeline` into Kubernetes objects, and says in its status what became of them.
//!
//! Start reading at [`mod@controller`], where one pass over a pipeline is one function.

pub mod admin;
pub mod config;
pub mod context;
pub mod controller;
pub mod desired;
pub mod kube_api;
pub mod metrics;
pub mod pipeline;
pub mod pod_state;
pub mod reconcile;
mod run;
pub mod telemetry;
pub mod watch;

pub use config::Config;
pub use run::run;
