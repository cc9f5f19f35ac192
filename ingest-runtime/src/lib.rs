//! What runs in the pods of a pipeline: records come in over HTTP, and are answered when they are committed.
//!
//! `record` decodes and checks, `receipt` makes message ids, `store` commits, `queue` carries records to a later
//! commit, `http` is the outside of it; `run` puts them together and takes them apart again.

pub mod config;
pub mod http;
pub mod metrics;
pub mod queue;
pub mod receipt;
pub mod record;
pub mod run;
pub mod shutdown;
pub mod store;
pub mod telemetry;
