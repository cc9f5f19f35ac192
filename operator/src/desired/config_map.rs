//! The runtime's configuration. Immutable and named by its content, so that a pod never sees another configuration than
//! the one that it was started for, and an edit that changes nothing for pods rolls nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use nomnom_crds::runtime::{CONFIG_FILE, config::PipelineIdentity};

use super::{metadata, names};

/// The ConfigMap that holds `config`, whose hash is `config_hash`.
#[must_use]
pub fn build(pipeline: &PipelineIdentity, config_hash: &str, config: String) -> ConfigMap {
    ConfigMap {
        metadata: metadata::owned(pipeline, names::config_map(&pipeline.name, config_hash)),
        data: Some(BTreeMap::from([(CONFIG_FILE.to_owned(), config)])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}
