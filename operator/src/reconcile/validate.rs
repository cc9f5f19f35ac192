//! Whether a spec can be used at all. Pure; a spec that cannot waits for an edit.

use nomnom_crds::{IngestionPipelineSpec, ResolvedSpec};

use crate::pipeline::Readable;

/// The most problems that a message lists.
const MAX_PROBLEMS: usize = 10;

/// The spec with every default filled in.
///
/// # Errors
/// For people: what is wrong with it.
pub fn validate(spec: &Readable<IngestionPipelineSpec>) -> Result<ResolvedSpec, String> {
    let Readable(spec) = spec;
    let spec = spec
        .as_ref()
        .map_err(|error| format!("spec: this release cannot read it: {error}"))?;
    ResolvedSpec::resolve(spec).map_err(|invalid| {
        let mut problems: Vec<_> = invalid
            .iter()
            .take(MAX_PROBLEMS)
            .map(ToString::to_string)
            .collect();
        if invalid.len() > MAX_PROBLEMS {
            problems.push(format!("and {} more", invalid.len() - MAX_PROBLEMS));
        }
        problems.join("; ")
    })
}
