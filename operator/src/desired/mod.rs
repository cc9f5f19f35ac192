//! What a pipeline's children should be. Pure: the same input gives the same objects, to the byte.
//!
//! One file for each kind; names, labels and metadata are formed in their files and nowhere else.

pub mod config_map;
pub mod deployment;
pub mod labels;
pub mod metadata;
pub mod names;
pub mod receipt_secret;
pub mod revision;
pub mod service;
pub mod service_account;

#[cfg(test)]
mod tests;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{ConfigMap, Service, ServiceAccount},
};
use nomnom_crds::{
    ResolvedSpec,
    runtime::{RuntimeConfig, config::PipelineIdentity, content_hash},
};

/// What the children are made from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Whose children they are.
    pub pipeline: &'a PipelineIdentity,
    /// What was accepted.
    pub spec: &'a ResolvedSpec,
    /// The generation at which it was accepted last.
    pub accepted_generation: i64,
    /// The image of the runtime.
    pub runtime_image: &'a str,
    /// The fingerprint of the receipt key, which rolls the pods when an admin has it made anew.
    pub receipt_key_fingerprint: &'a str,
}

/// The children, but for the receipt Secret, which is made once and never again.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The runtime's configuration.
    pub config_map: ConfigMap,
    /// The identity of the pods, without any right.
    pub service_account: ServiceAccount,
    /// The accepted spec.
    pub revision: ControllerRevision,
    /// Where clients post.
    pub service: Service,
    /// The pods.
    pub deployment: Deployment,
    /// The hash of the configuration, which names the ConfigMap.
    pub config_hash: String,
    /// How many pods there should be.
    pub replicas: i32,
}

/// Builds all children.
///
/// # Errors
/// A configuration that has no JSON form; there is none such.
pub fn build(input: &Input<'_>) -> Result<Desired, serde_json::Error> {
    let config = serde_json::to_string(&RuntimeConfig::new(input.pipeline.clone(), input.spec))?;
    let config_hash = content_hash(config.as_bytes());
    Ok(Desired {
        config_map: config_map::build(input.pipeline, &config_hash, config),
        service_account: service_account::build(input.pipeline),
        revision: revision::build(input)?,
        service: service::build(input.pipeline),
        deployment: deployment::build(input, &config_hash),
        config_hash,
        replicas: input.spec.ingest.min_replicas,
    })
}
