//! The names of the children. A pipeline's name has at most 40 characters, so that each fits into 63, but for the
//! ConfigMap's, which may have 253.

use nomnom_crds::runtime::{HTTP_PORT, INGEST_PATH, config::PipelineIdentity};

/// The ConfigMap of the configuration with this hash.
#[must_use]
pub fn config_map(pipeline: &str, config_hash: &str) -> String {
    format!("{pipeline}-ingest-{config_hash}")
}

/// The Secret with the key of message ids.
#[must_use]
pub fn receipt_secret(pipeline: &str) -> String {
    format!("{pipeline}-receipt")
}

/// The ServiceAccount of the pods that take records.
#[must_use]
pub fn service_account(pipeline: &str) -> String {
    format!("{pipeline}-ingest")
}

/// The Deployment of the pods that take records.
#[must_use]
pub fn deployment(pipeline: &str) -> String {
    format!("{pipeline}-ingest")
}

/// The Service that clients post to.
#[must_use]
pub fn service(pipeline: &str) -> String {
    pipeline.to_owned()
}

/// The ControllerRevision of the accepted spec with this hash.
#[must_use]
pub fn revision(pipeline: &str, spec_hash: &str) -> String {
    format!("{pipeline}-{spec_hash}")
}

/// Where clients in the cluster post.
#[must_use]
pub fn url(pipeline: &PipelineIdentity) -> String {
    let (service, namespace) = (service(&pipeline.name), &pipeline.namespace);
    format!("http://{service}.{namespace}.svc:{HTTP_PORT}{INGEST_PATH}")
}
