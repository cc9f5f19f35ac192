//! The API of nomnom: the `IngestionPipeline` resource and what operator and runtime say to each other.
//!
//! Types, defaults, validation rules, condition types and reasons; no client and no I/O.
