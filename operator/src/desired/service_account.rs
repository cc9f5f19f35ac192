//! The identity of the pods: it has no rights, and its token is not mounted.

use k8s_openapi::api::core::v1::ServiceAccount;
use nomnom_crds::runtime::config::PipelineIdentity;

use super::{metadata, names};

/// The ServiceAccount of the pods that take records.
#[must_use]
pub fn build(pipeline: &PipelineIdentity) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata::owned(pipeline, names::service_account(&pipeline.name)),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}
