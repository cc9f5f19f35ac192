//! Makes the children what they should be: identity, configuration, the accepted spec, the Service, the pods, their
//! number; then deletes what is no longer wanted.
//!
//! The spec is recorded before any pod is made from it. A foreign object is a [`Problem`] and stops only what depends on it: pods that would mount somebody else's object or
//! run under somebody else's identity are not started, and those that run are left alone.

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ControllerRevision, Deployment},
        core::v1::ConfigMap,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Resource};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    Problem,
    accept::{InUse, unwritable},
    observe::{Observed, accepted_generation},
    receipt::ensure_key,
    scale::scale,
};
use crate::{
    context::Context,
    desired::{self, Desired, Input, labels, names},
    kube_api::{
        adopt::adopt,
        apply::{Applied, RequestError},
        prune,
    },
    pipeline::Pipeline,
};

/// How many accepted specs are kept: the one in use and a few to look back at.
const KEPT_REVISIONS: usize = 3;

/// What became of the children.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The Deployment after all writes.
    pub deployment: Option<Deployment>,
    /// The hash of the configuration in use.
    pub config_hash: String,
    /// The name of the ControllerRevision whose spec the pods are rendered from, where there is one.
    pub revision: Option<String>,
    /// The fingerprint of the receipt key, where it is known.
    pub receipt_key_fingerprint: Option<String>,
    /// What was not done, and why.
    pub problems: Vec<Problem>,
    /// Whether an object changed under the pass, which is to be repeated soon.
    pub has_moved: bool,
}

impl Outcome {
    /// Nothing was done, for want of a spec: what was in use is what there is.
    #[must_use]
    pub fn leave(observed: &Observed) -> Self {
        let in_use = observed.status.ingest.as_ref();
        let deployment = in_use.and_then(|_| observed.own_deployment());
        Self {
            config_hash: deployment
                .map(desired::deployment::config_hash)
                .unwrap_or_default(),
            deployment: deployment.cloned(),
            revision: in_use.map(|ingest| ingest.revision.clone()),
            receipt_key_fingerprint: observed.known_key.clone(),
            ..Self::default()
        }
    }
}

/// Makes the children what the spec in use asks for.
pub async fn apply(context: &Context, observed: &Observed, in_use: &InUse) -> Result<Outcome, Problem> {
    let mut pass = Pass {
        context,
        observed,
        outcome: Outcome {
            deployment: observed.deployment.clone(),
            revision: observed.status.ingest.as_ref().map(|it| it.revision.clone()),
            receipt_key_fingerprint: observed.known_key.clone(),
            ..Outcome::default()
        },
    };
    let fingerprint = pass.ensure_key().await;
    let input = Input {
        pipeline: &observed.identity,
        spec: &in_use.spec,
        accepted_generation: in_use.generation,
        runtime_image: &context.runtime_image,
        receipt_key_fingerprint: fingerprint.as_deref().unwrap_or_default(),
    };
    let desired = desired::build(&input).map_err(|error| unwritable(&error))?;
    Box::pin(pass.apply_all(in_use, &desired, fingerprint.is_some())).await;
    Ok(pass.outcome)
}

struct Pass<'a> {
    context: &'a Context,
    observed: &'a Observed,
    outcome: Outcome,
}

impl Pass<'_> {
    async fn ensure_key(&mut self) -> Option<String> {
        match ensure_key(self.context, self.observed).await {
            Ok(fingerprint) => {
                self.outcome.receipt_key_fingerprint = Some(fingerprint.clone());
                Some(fingerprint)
            }
            Err(problem) => {
                self.outcome.problems.push(problem);
                None
            }
        }
    }

    async fn apply_all(&mut self, in_use: &InUse, desired: &Desired, has_key: bool) {
        let observed = self.observed;
        self.outcome.config_hash.clone_from(&desired.config_hash);
        let config_map = by_name(&observed.config_maps, desired.config_map.metadata.name.as_deref());
        let revision = by_name(&observed.revisions, desired.revision.metadata.name.as_deref());
        let is_mountable = self.child(config_map, &desired.config_map).await.is_ok();
        let is_recorded = self.child(revision, &desired.revision).await.is_ok();
        // No pods without a record: after the next edit, it alone tells what they were made from.
        if is_recorded {
            self.context.remember_in_use(&observed.identity.uid, in_use);
            self.outcome.revision = Some(in_use.revision.clone());
        }
        let is_in_use = self.outcome.revision.as_ref() == Some(&in_use.revision);
        let has_identity = self
            .child(observed.service_account.as_ref(), &desired.service_account)
            .await
            .is_ok();
        let _ = self.child(observed.service.as_ref(), &desired.service).await;
        if has_key && is_mountable && has_identity && is_in_use {
            self.pods(desired).await;
        }
        if is_recorded && self.outcome.problems.is_empty() && !self.outcome.has_moved {
            self.prune(desired).await;
        }
    }

    async fn pods(&mut self, desired: &Desired) {
        let current = self
            .observed
            .deployment
            .as_ref()
            .map(|deployment| &deployment.metadata);
        match self.child(current, &desired.deployment).await {
            Ok(Some(deployment)) => self.outcome.deployment = Some(deployment),
            Ok(None) => {}
            Err(()) => return,
        }
        if let Some(deployment) = &mut self.outcome.deployment
            && let Err(problem) = scale(self.context, deployment, desired.replicas).await
        {
            self.outcome.problems.push(problem);
        }
    }

    /// Applies one child; an error means that what depends on the child cannot be done.
    async fn child<K>(&mut self, current: Option<&ObjectMeta>, desired: &K) -> Result<Option<K>, ()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let owner = &self.observed.owner;
        let problem = match self.context.applier.apply(owner, current, desired).await {
            Ok(Applied::Unchanged) => return Ok(None),
            Ok(Applied::Sent(object)) => {
                self.context.metrics.count_write(kind_of::<K>(), "apply");
                return Ok(Some(*object));
            }
            Ok(Applied::Moved) => {
                self.outcome.has_moved = true;
                return Err(());
            }
            Ok(Applied::Foreign(whose)) => {
                let name = desired.meta().name.as_deref().unwrap_or_default();
                Problem::foreign(kind_of::<K>(), &owner.namespace, name, &whose)
            }
            Err(error) => error.into(),
        };
        self.outcome.problems.push(problem);
        Err(())
    }

    /// Deletes configurations that no ReplicaSet names and accepted specs of long ago, and takes over the configurations
    /// in use that an orphaning delete left. Nothing is deleted because something is not seen: what goes was seen and
    /// is ours.
    async fn prune(&mut self, desired: &Desired) {
        let observed = self.observed;
        let is_needed = |config_map: &&ObjectMeta| {
            let name = config_map.name.as_deref().unwrap_or_default();
            let is_of = |hash: &String| name == names::config_map(&observed.identity.name, hash);
            is_of(&desired.config_hash) || observed.config_hashes_in_use.iter().any(is_of)
        };
        let (needed, config_maps): (Vec<_>, Vec<_>) = observed.config_maps.iter().partition(is_needed);
        let current = desired.revision.metadata.name.as_deref();
        let is_kept = |(rank, revision): &(usize, &ObjectMeta)| {
            *rank < KEPT_REVISIONS - 1 && accepted_generation(revision, &observed.identity.uid).is_some()
        };
        let former = observed
            .revisions
            .iter()
            .filter(|it| it.name.as_deref() != current);
        let revisions: Vec<_> = former
            .enumerate()
            .filter(|it| !is_kept(it))
            .map(|(_, it)| it)
            .collect();
        let mut results = vec![self.adopt_all(&needed).await];
        if !config_maps.is_empty() || !revisions.is_empty() {
            results.push(self.delete_all(&config_maps, &revisions).await);
        }
        self.outcome
            .problems
            .extend(results.into_iter().filter_map(Result::err));
    }

    async fn adopt_all(&self, config_maps: &[&ObjectMeta]) -> Result<(), Problem> {
        let owner = &self.observed.owner;
        let labels = labels::all(&self.observed.identity);
        for config_map in config_maps.iter().filter(|it| owner.may_adopt(it)) {
            adopt::<ConfigMap>(self.context.client.clone(), owner, config_map, &labels).await?;
            self.context.metrics.count_write("ConfigMap", "adopt");
        }
        Ok(())
    }

    async fn delete_all(
        &self,
        config_maps: &[&ObjectMeta],
        revisions: &[&ObjectMeta],
    ) -> Result<(), Problem> {
        if !self.context.leadership.is_fresh() || !self.is_still_there().await? {
            return Ok(());
        }
        for config_map in config_maps {
            prune::delete::<ConfigMap>(self.context.client.clone(), config_map).await?;
            self.context.metrics.count_write("ConfigMap", "delete");
        }
        for revision in revisions {
            prune::delete::<ControllerRevision>(self.context.client.clone(), revision).await?;
            self.context.metrics.count_write("ControllerRevision", "delete");
        }
        Ok(())
    }

    /// Whether the API server, and not only the watch, has the pipeline that this pass is about.
    async fn is_still_there(&self) -> Result<bool, Problem> {
        let identity = &self.observed.identity;
        let api: Api<Pipeline> = Api::namespaced(self.context.client.clone(), &identity.namespace);
        let found = api.get_metadata_opt(&identity.name).await.map_err(|error| {
            RequestError::new::<Pipeline>("get", &identity.namespace, &identity.name, error)
        })?;
        Ok(found.is_some_and(|found| {
            found.metadata.uid.as_deref() == Some(&identity.uid)
                && found.metadata.deletion_timestamp.is_none()
        }))
    }
}

fn by_name<'a>(objects: &'a [ObjectMeta], name: Option<&str>) -> Option<&'a ObjectMeta> {
    objects.iter().find(|object| object.name.as_deref() == name)
}

/// The kinds are few and fixed.
fn kind_of<K: Resource<DynamicType = ()>>() -> &'static str {
    match K::kind(&()) {
        std::borrow::Cow::Borrowed(kind) => kind,
        std::borrow::Cow::Owned(_) => "Other",
    }
}
