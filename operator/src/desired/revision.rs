//! The accepted spec with every default filled in, from which a pipeline is reconciled while its spec is invalid.
//! Named by its content; its number is the generation at which it was accepted last, so the highest is the last.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::apps::v1::ControllerRevision,
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, runtime::RawExtension},
};
use nomnom_crds::{ResolvedSpec, runtime::content_hash};

use super::{Input, labels, metadata, names};

/// The ControllerRevision of an accepted spec.
///
/// # Errors
/// A spec that has no JSON form; there is none such.
pub fn build(input: &Input<'_>) -> Result<ControllerRevision, serde_json::Error> {
    let name = name(&input.pipeline.name, input.spec)?;
    let accepted_at = (
        labels::ACCEPTED_GENERATION.to_owned(),
        input.accepted_generation.to_string(),
    );
    Ok(ControllerRevision {
        metadata: ObjectMeta {
            // Said here once more, for a watch of metadata.
            annotations: Some(BTreeMap::from([accepted_at])),
            ..metadata::owned(input.pipeline, name)
        },
        data: Some(RawExtension(serde_json::to_value(input.spec)?)),
        revision: input.accepted_generation,
    })
}

/// The name of the ControllerRevision of an accepted spec.
///
/// # Errors
/// A spec that has no JSON form; there is none such.
pub fn name(pipeline: &str, spec: &ResolvedSpec) -> Result<String, serde_json::Error> {
    Ok(names::revision(
        pipeline,
        &content_hash(serde_json::to_string(spec)?.as_bytes()),
    ))
}
