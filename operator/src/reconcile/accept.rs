//! Which spec the children are made from: the one that is written where it can be used, or else the last that could.
//!
//! A spec that was never used before is first shown to the API server without being written: what it refuses (a
//! request above its limit) is as invalid as what contradicts itself; what a policy or a quota forbids, or what the
//! API server fails to answer, is asked again.

use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::Api;
use nomnom_crds::{ResolvedSpec, condition::Reason};

use super::{
    Problem, in_time,
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

impl InUse {
    /// The name is that of the record which this release writes, whichever release wrote the spec.
    fn new(pipeline: &str, spec: ResolvedSpec, generation: i64) -> Result<Self, serde_json::Error> {
        Ok(Self {
            revision: revision::name(pipeline, &spec)?,
            generation,
            spec,
        })
    }
}

/// Chooses the spec that the children are made from. Whatever speaks against the written one, what was in use stays so.
pub async fn accept(
    context: &Context,
    pipeline: &Pipeline,
    observed: &Observed,
) -> Result<Acceptance, Problem> {
    let mut refusal = match judge(context, pipeline, observed).await {
        Ok(in_use) => {
            return Ok(Acceptance {
                in_use: Some(in_use),
                refusal: None,
            });
        }
        Err(problem) => problem,
    };
    let in_use = match last_accepted(context, observed).await? {
        Last::Known(in_use) => Some(*in_use),
        Last::None => None,
        Last::Lost(record) => {
            let message = format!(
                "{}. {record}: what runs is left as it is, and not mended, until a spec is accepted",
                refusal.message
            );
            refusal.message = message;
            None
        }
    };
    Ok(Acceptance {
        in_use,
        refusal: Some(refusal),
    })
}

/// The written spec where it can be used.
async fn judge(context: &Context, pipeline: &Pipeline, observed: &Observed) -> Result<InUse, Problem> {
    let spec = validate(&pipeline.spec).map_err(|message| Problem {
        reason: Reason::InvalidSpec,
        message,
        kind: String::new(),
    })?;
    let in_use =
        InUse::new(&observed.identity.name, spec, observed.generation).map_err(|error| unwritable(&error))?;
    in_time("checking the spec", check(context, observed, &in_use)).await?;
    Ok(in_use)
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
    applier.check(owner, None, &desired.service_account).await?;
    applier.check(owner, None, &desired.service).await?;
    applier.check(owner, deployment, &desired.deployment).await?;
    Ok(())
}

/// What is known of the spec that was accepted last.
enum Last {
    /// There was never one.
    None,
    /// This is it.
    Known(Box<InUse>),
    /// There was one; says what became of its record.
    Lost(String),
}

/// What this process put in use last, or else the newest record, which is none that is older than what the status names.
async fn last_accepted(context: &Context, observed: &Observed) -> Result<Last, Problem> {
    let identity = &observed.identity;
    if let Some(in_use) = context.last_in_use(&identity.uid) {
        return Ok(Last::Known(Box::new(in_use)));
    }
    let records: Vec<_> = observed
        .revisions
        .iter()
        .filter_map(|revision| {
            Some((
                revision.name.as_deref()?,
                accepted_generation(revision, &identity.uid)?,
            ))
        })
        .collect();
    let said = observed.status.ingest.as_ref().map(|ingest| &ingest.revision);
    let describe = |name: &str, what: &str| {
        format!(
            "The last accepted spec, ControllerRevision {}/{name} {what}",
            identity.namespace
        )
    };
    let (name, generation) = match (said, records.first()) {
        (Some(said), _) if records.iter().all(|(name, _)| name != said) => {
            return Ok(Last::Lost(describe(said, "is gone")));
        }
        (_, None) => return Ok(Last::None),
        (_, Some(newest)) => *newest,
    };
    let read = in_time("reading the last accepted spec", read(context, observed, name)).await?;
    let in_use = read
        .and_then(|spec| InUse::new(&identity.name, spec, generation))
        .map_err(|error| describe(name, &format!("cannot be read by this release ({error})")));
    Ok(match in_use {
        Ok(in_use) => {
            context.remember_in_use(&identity.uid, &in_use);
            Last::Known(Box::new(in_use))
        }
        Err(what) => Last::Lost(what),
    })
}

async fn read(
    context: &Context,
    observed: &Observed,
    name: &str,
) -> Result<serde_json::Result<ResolvedSpec>, Problem> {
    let namespace = &observed.identity.namespace;
    let api: Api<ControllerRevision> = Api::namespaced(context.client.clone(), namespace);
    let revision = api
        .get(name)
        .await
        .map_err(|error| RequestError::new::<ControllerRevision>("get", namespace, name, error))?;
    let data = revision.data.map(|data| data.0).unwrap_or_default();
    Ok(serde_json::from_value(data))
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
