//! An `IngestionPipeline` as it is watched: its parts are read one by one, so that an object which this release
//! cannot read (stored under another version of the definition) is an invalid spec of one pipeline, and
//! not the end of the watch of all of them.

use std::borrow::Cow;

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::Resource;
use nomnom_crds::{
    IngestionPipeline, IngestionPipelineSpec, IngestionPipelineStatus, runtime::config::PipelineIdentity,
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

/// A pipeline whose spec or status may be unreadable.
#[derive(Clone, Debug, Deserialize)]
pub struct Pipeline {
    /// Name, uid, generation, annotations.
    pub metadata: ObjectMeta,
    /// What the admin wrote.
    pub spec: Readable<IngestionPipelineSpec>,
    /// What the operator said last.
    #[serde(default)]
    status: Option<Readable<IngestionPipelineStatus>>,
}

/// A part of an object, or why it cannot be read.
#[derive(Clone, Debug)]
pub struct Readable<T>(pub Result<T, String>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Readable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(
            serde_json::from_value(value).map_err(|error| error.to_string()),
        ))
    }
}

impl Pipeline {
    /// Whose children they are. The API server gives every stored object all three.
    #[must_use]
    pub fn identity(&self) -> PipelineIdentity {
        PipelineIdentity {
            namespace: self.metadata.namespace.clone().unwrap_or_default(),
            name: self.metadata.name.clone().unwrap_or_default(),
            uid: self.metadata.uid.clone().unwrap_or_default(),
        }
    }

    /// The generation of the spec.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }

    /// What was said last; nothing where it cannot be read.
    #[must_use]
    pub fn status(&self) -> IngestionPipelineStatus {
        match &self.status {
            Some(Readable(Ok(status))) => status.clone(),
            _ => IngestionPipelineStatus::default(),
        }
    }

    /// The value of an annotation.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

impl Resource for Pipeline {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        IngestionPipeline::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        IngestionPipeline::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        IngestionPipeline::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        IngestionPipeline::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_spec_leaves_the_rest_readable() {
        let pipeline: Pipeline = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u", "generation": 3},
            "spec": {"mode": "Sideways"},
            "status": {"observedGeneration": 2},
        }))
        .unwrap();
        assert_eq!(pipeline.generation(), 3);
        assert_eq!(pipeline.status().observed_generation, Some(2));
        assert!(pipeline.spec.0.unwrap_err().contains("Sideways"));
    }
}
