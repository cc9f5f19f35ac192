//! Which spec the children are made from: the one that is written where it can be used, or else the last that could.
//!
//! A spec that was never used before is first shown to the API server without being written: what it refuses (a
//! request above its limit, a policy of the cluster) is as invalid as what contradicts itself.

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Api;
use nomnom_crds::{ResolvedSpec, condition::Reason};

use super::{
    Problem,
    observe::{Observed, accepted_generation},
    validate::validate,
};
use crate::{
    context::Context,
    desired::{self, Input, revision},
    kube_api::apply::RequestError,
    pipeline::Pipeline,
};

/// A spec in use, and what is wrong with the one that is written.
#[derive(Clone, Debug)]
pub struct Acceptance {
    /// What the children are made from; nothing where no spec was ever accepted.
    pub in_use: Option<InUse>,
    /// Why the written spec is not the one in use.
    pub refusal: Option<Problem>,
}

/// A spec that was accepted.
#[derive(Clone, Debug)]
pub struct InUse {
    /// The spec.
    pub spec: ResolvedSpec,
    /// The generation at which it was accepted last.
    pub generation: i64,
    /// The name of its ControllerRevision.
    pub revision: String,
}

/// Chooses the spec that the children are made from.
pub async fn accept(
    context: &Context,
    pipeline: &Pipeline,
    observed: &Observed,
) -> Result<Acceptance, Problem> {
    let refusal = match validate(&pipeline.spec) {
        Ok(spec) => {
            let in_use = InUse {
                revision: revision::name(&observed.identity.name, &spec)
                    .map_err(|error| unwritable(&error))?,
                generation: observed.generation,
                spec,
            };
            match check(context, observed, &in_use).await {
                Ok(()) => {
                    return Ok(Acceptance {
                        in_use: Some(in_use),
                        refusal: None,
                    });
                }
                Err(problem) if problem.reason == Reason::ChildRejected => problem,
                Err(problem) => return Err(problem),
            }
        }
        Err(message) => Problem {
            reason: Reason::InvalidSpec,
            message,
            kind: String::new(),
        },
    };
    Ok(Acceptance {
        in_use: last_accepted(context, observed).await?,
        refusal: Some(refusal),
    })
}

/// Shows the API server what a new spec asks for.
async fn check(context: &Context, observed: &Observed, in_use: &InUse) -> Result<(), Problem> {
    let is_known = |revision: &&_| accepted_generation(revision, &observed.identity.uid).is_some();
    let mut known = observed.revisions.iter().filter(is_known);
    if known.any(|known| known.name.as_deref() == Some(&in_use.revision)) {
        return Ok(());
    }
    let desired = desired::build(&Input {
        pipeline: &observed.identity,
        spec: &in_use.spec,
        accepted_generation: in_use.generation,
        runtime_image: &context.runtime_image,
        receipt_key_fingerprint: "",
    })
    .map_err(|error| unwritable(&error))?;
    let (applier, owner) = (&context.applier, &observed.owner);
    let deployment = observed
        .deployment
        .as_ref()
        .map(|deployment| &deployment.metadata);
    applier.check(owner, None, &desired.config_map).await?;
    applier.check(owner, None, &desired.revision).await?;
    applier.check(owner, deployment, &desired.deployment).await?;
    Ok(())
}

async fn last_accepted(context: &Context, observed: &Observed) -> Result<Option<InUse>, Problem> {
    let namespace = &observed.identity.namespace;
    let Some((name, generation)) = observed.revisions.first().and_then(|revision| {
        Some((
            revision.name.as_deref()?,
            accepted_generation(revision, &observed.identity.uid)?,
        ))
    }) else {
        return Ok(None);
    };
    let api: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace);
    let revision = api
        .get(name)
        .await
        .map_err(|error| RequestError::new::<ControllerRevision>("get", namespace, name, error))?;
    let data = revision.data.map(|data| data.0).unwrap_or_default();
    let spec = serde_json::from_value(data).map_err(|error| Problem {
        reason: Reason::ApiError,
        message: format!("failed to read ControllerRevision {namespace}/{name}: {error}"),
        kind: "ControllerRevision".to_owned(),
    })?;
    Ok(Some(InUse {
        spec,
        generation,
        revision: name.to_owned(),
    }))
}

/// A spec has a JSON form; that it had none would be a defect here.
#[must_use]
pub fn unwritable(error: &serde_json::Error) -> Problem {
    Problem {
        reason: Reason::InvalidSpec,
        message: format!("spec: cannot be written as JSON: {error}"),
        kind: String::new(),
    }
}
