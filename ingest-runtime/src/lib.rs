//! What runs in the pods of a pipeline: records come in over HTTP, and are answered when they are committed.
//!
//! `record` decodes and checks, `receipt` makes message ids, `store` commits, `http` is the outside of it.

pub mod record;
pub mod store;
