//! The labels and annotations of the children. What selects pods never changes in the life of a name: a selector cannot
//! be changed, and a pipeline that is created anew takes over the pods that an orphaning delete left.

use std::collections::BTreeMap;

use nomnom_crds::runtime::config::PipelineIdentity;

/// The name of the operator: in labels, as field manager, and as reporter of events.
pub const OPERATOR: &str = "nomnom-operator";
/// Who made an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Which part of a pipeline a pod is.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The pods that take records.
pub const INGEST: &str = "ingest";
/// The name of the pipeline that an object belongs to.
pub const PIPELINE: &str = "nomnom.dev/pipeline";
/// The uid of the pipeline that an object belongs to.
pub const PIPELINE_UID: &str = "nomnom.dev/pipeline-uid";
/// On pods and ReplicaSets: the hash of the configuration that they mount.
pub const CONFIG_HASH: &str = "nomnom.dev/config-hash";
/// On pods, an annotation: the fingerprint of the receipt key that they were started with.
pub const RECEIPT_KEY_FINGERPRINT: &str = "nomnom.dev/receipt-key-fingerprint";
/// On a ControllerRevision, an annotation: the generation of the pipeline at which its spec was accepted last.
pub const ACCEPTED_GENERATION: &str = "nomnom.dev/accepted-generation";
/// On a pipeline, an annotation: the fingerprint of a lost receipt key that may be replaced.
pub const REGENERATE_RECEIPT_KEY: &str = "nomnom.dev/regenerate-receipt-key";

/// What every child carries.
#[must_use]
pub fn all(pipeline: &PipelineIdentity) -> BTreeMap<String, String> {
    let mut labels = identifying(&pipeline.name);
    for (key, value) in [
        ("app.kubernetes.io/name", "nomnom"),
        ("app.kubernetes.io/instance", &pipeline.name),
        (PIPELINE_UID, &pipeline.uid),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// What tells a child without an owner from somebody else's object.
#[must_use]
pub fn identifying(pipeline: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (MANAGED_BY.to_owned(), OPERATOR.to_owned()),
        (PIPELINE.to_owned(), pipeline.to_owned()),
    ])
}

/// What selects the pods that take records.
#[must_use]
pub fn ingest_selector(pipeline: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        (COMPONENT.to_owned(), INGEST.to_owned()),
        (PIPELINE.to_owned(), pipeline.to_owned()),
    ])
}

/// What the pods that take records carry.
#[must_use]
pub fn ingest_pod(pipeline: &PipelineIdentity, config_hash: &str) -> BTreeMap<String, String> {
    let mut labels = all(pipeline);
    labels.extend(ingest_selector(&pipeline.name));
    labels.insert(CONFIG_HASH.to_owned(), config_hash.to_owned());
    labels
}

/// The selector of a watch of all children.
#[must_use]
pub fn watch_selector() -> String {
    format!("{MANAGED_BY}={OPERATOR},{PIPELINE}")
}
