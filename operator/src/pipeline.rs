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
use serde_json::Value;

/// A pipeline whose spec, or parts of whose status, may be unreadable.
#[derive(Clone, Debug, Deserialize)]
pub struct Pipeline {
    /// Name, uid, generation, annotations.
    pub metadata: ObjectMeta,
    /// What the admin wrote.
    pub spec: Readable<IngestionPipelineSpec>,
    /// What the operator said last.
    #[serde(default)]
    status: Value,
}

/// A part of an object, or why it cannot be read.
#[derive(Clone, Debug)]
pub struct Readable<T>(pub Result<T, String>);

impl<'de, T: DeserializeOwned> Deserialize<'de> for Readable<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
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

    /// What was said last. Each field is read on its own: what another release wrote into one takes from this one neither
    /// the conditions nor the fingerprint that guards the receipt key.
    #[must_use]
    pub fn status(&self) -> IngestionPipelineStatus {
        let conditions: Vec<Value> = self.said("conditions").unwrap_or_default();
        IngestionPipelineStatus {
            observed_generation: self.said("observedGeneration"),
            conditions: conditions
                .into_iter()
                .filter_map(|condition| serde_json::from_value(condition).ok())
                .collect(),
            mode: self.said("mode"),
            url: self.said("url"),
            ingest: self.said("ingest"),
            resolved: self.said("resolved"),
            receipt_key_fingerprint: self.said("receiptKeyFingerprint"),
        }
    }

    /// A field of the status; nothing where this release cannot read it.
    fn said<T: DeserializeOwned>(&self, field: &str) -> Option<T> {
        T::deserialize(self.status.get(field)?).ok()
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

    #[test]
    fn a_status_of_another_release_keeps_what_this_one_can_read() {
        let former: Value = serde_json::from_str(include_str!("../tests/formats/status-0.1.0.json")).unwrap();
        let read = |status: &Value| {
            let pipeline: Pipeline =
                serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {}, "status": status}))
                    .unwrap();
            pipeline.status()
        };
        let status = read(&former);
        assert_eq!(serde_json::json!(status), former);
        let mut other = former.clone();
        other["mode"] = "Sideways".into();
        other["resolved"] = serde_json::json!({"queue": {}});
        other["ingest"]["replicas"] = "2".into();
        other["conditions"][0] = serde_json::json!({"type": "Ready", "certainty": 1});
        assert_eq!(
            read(&other),
            IngestionPipelineStatus {
                mode: None,
                resolved: None,
                ingest: None,
                conditions: status.conditions[1..].to_vec(),
                ..status
            }
        );
    }
}
