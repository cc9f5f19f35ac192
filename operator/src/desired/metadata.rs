//! The metadata of the children, and whose they are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use nomnom_crds::{IngestionPipeline, runtime::config::PipelineIdentity};

use super::labels;
use crate::kube_api::ownership::Owner;

/// The metadata of a child that goes when its pipeline goes.
#[must_use]
pub fn owned(pipeline: &PipelineIdentity, name: String) -> ObjectMeta {
    ObjectMeta {
        owner_references: Some(vec![owner_reference(pipeline)]),
        ..labelled(pipeline, name)
    }
}

/// The metadata of a child that the garbage collector must leave alone.
#[must_use]
pub fn labelled(pipeline: &PipelineIdentity, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(pipeline.namespace.clone()),
        labels: Some(labels::all(pipeline)),
        ..ObjectMeta::default()
    }
}

/// A pipeline as the owner of its children.
#[must_use]
pub fn owner(pipeline: &PipelineIdentity) -> Owner {
    Owner {
        namespace: pipeline.namespace.clone(),
        reference: owner_reference(pipeline),
        labels: labels::identifying(&pipeline.name),
    }
}

fn owner_reference(pipeline: &PipelineIdentity) -> OwnerReference {
    OwnerReference {
        api_version: IngestionPipeline::api_version(&()).into_owned(),
        kind: IngestionPipeline::kind(&()).into_owned(),
        name: pipeline.name.clone(),
        uid: pipeline.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
