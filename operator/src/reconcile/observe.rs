//! All that a pass looks at, but for an accepted spec of the past, which is read only where it is needed.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{Lookup, ObjectRef, Store},
};
use nomnom_crds::{
    IngestionPipelineStatus,
    runtime::{RuntimeState, config::PipelineIdentity},
};

use super::{Problem, receipt::ObservedKey};
use crate::{
    context::Context,
    desired::{deployment::key_fingerprint, labels, metadata, names},
    kube_api::{apply::RequestError, ownership::Owner},
    pipeline::Pipeline,
    pod_state::is_ready,
};

/// A pipeline and all that belongs to it.
#[derive(Debug)]
pub struct Observed {
    /// Whose it is.
    pub identity: PipelineIdentity,
    /// The same as the owner of children.
    pub owner: Owner,
    /// The generation of the spec.
    pub generation: i64,
    /// What was said last.
    pub status: IngestionPipelineStatus,
    /// The receipt key.
    pub key: ObservedKey,
    /// The fingerprint of the key that message ids are made with, where there are any.
    pub known_key: Option<String>,
    /// The fingerprint of a lost key that the admin lets go.
    pub replaceable_key: Option<String>,
    /// Our ConfigMaps.
    pub config_maps: Vec<ObjectMeta>,
    /// The hashes of the configurations that ReplicaSets name.
    pub config_hashes_in_use: BTreeSet<String>,
    /// The ServiceAccount.
    pub service_account: Option<ObjectMeta>,
    /// The Service.
    pub service: Option<ObjectMeta>,
    /// Our ControllerRevisions, the last accepted one first.
    pub revisions: Vec<ObjectMeta>,
    /// The Deployment.
    pub deployment: Option<Deployment>,
    /// Its pods, by name.
    pub pods: Vec<ObservedPod>,
}

/// A pod that takes records, or will.
#[derive(Clone, Debug, Default)]
pub struct ObservedPod {
    /// The hash of the configuration that it mounts.
    pub config_hash: String,
    /// Whether it is in the Service.
    pub is_ready: bool,
    /// What it says of itself.
    pub state: Option<std::sync::Arc<RuntimeState>>,
    /// Why its container does not start.
    pub waits_for: Option<String>,
}

/// Looks at a pipeline and all that belongs to it.
pub async fn observe(context: &Context, pipeline: &Pipeline) -> Result<Observed, Problem> {
    let identity = pipeline.identity();
    let stores = &context.stores;
    let owner = metadata::owner(&identity);
    let deployment_name = names::deployment(&identity.name);
    let deployment_key = ObjectRef::new(&deployment_name).within(&identity.namespace);
    let mut observed = Observed {
        key: observe_key(context, &identity).await?,
        known_key: None,
        replaceable_key: pipeline
            .annotation(labels::REGENERATE_RECEIPT_KEY)
            .map(str::to_owned),
        config_maps: ours(&stores.config_maps, &owner, &identity),
        config_hashes_in_use: ours(&stores.replica_sets, &owner, &identity)
            .iter()
            .filter_map(|replica_set| label(replica_set, labels::CONFIG_HASH))
            .collect(),
        service_account: named(
            &stores.service_accounts,
            &identity,
            &names::service_account(&identity.name),
        ),
        service: named(&stores.services, &identity, &names::service(&identity.name)),
        revisions: last_accepted_first(ours(&stores.revisions, &owner, &identity), &identity.uid),
        deployment: stores
            .deployments
            .get(&deployment_key)
            .map(|deployment| (*deployment).clone()),
        pods: observe_pods(context, &identity),
        generation: pipeline.generation(),
        status: pipeline.status(),
        owner,
        identity,
    };
    // The pods are the second witness, where the status lost its word.
    let of_pods = observed.own_deployment().and_then(key_fingerprint);
    observed.known_key = observed.status.receipt_key_fingerprint.clone().or(of_pods);
    Ok(observed)
}

impl Observed {
    /// The Deployment, unless it is somebody else's.
    #[must_use]
    pub fn own_deployment(&self) -> Option<&Deployment> {
        self.deployment
            .as_ref()
            .filter(|deployment| self.owner.owns(&deployment.metadata))
    }
}

/// The one Secret that the operator reads: its own, by its name.
async fn observe_key(context: &Context, identity: &PipelineIdentity) -> Result<ObservedKey, Problem> {
    let name = names::receipt_secret(&identity.name);
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &identity.namespace);
    match api.get_opt(&name).await {
        Ok(secret) => Ok(ObservedKey::new(&identity.name, secret.as_ref())),
        Err(error) => Err(RequestError::new::<Secret>("get", &identity.namespace, &name, error).into()),
    }
}

fn named<K>(
    store: &Store<PartialObjectMeta<K>>,
    identity: &PipelineIdentity,
    name: &str,
) -> Option<ObjectMeta>
where
    PartialObjectMeta<K>: Lookup<DynamicType = ()> + Clone + 'static,
{
    let key = ObjectRef::new(name).within(&identity.namespace);
    Some(store.get(&key)?.metadata.clone())
}

/// Every object of a kind that names this pipeline and is its own.
fn ours<K>(store: &Store<PartialObjectMeta<K>>, owner: &Owner, identity: &PipelineIdentity) -> Vec<ObjectMeta>
where
    PartialObjectMeta<K>: Lookup<DynamicType = ()> + Clone + 'static,
{
    let is_ours = |metadata: &ObjectMeta| {
        metadata.namespace.as_deref() == Some(&identity.namespace)
            && label(metadata, labels::PIPELINE).as_deref() == Some(&identity.name)
            // ReplicaSets belong to the Deployment, which is known to be ours by its name.
            && (owner.owns(metadata) || is_of_deployment(metadata, &identity.name))
    };
    let mut found: Vec<_> = store
        .state_filter(|object| is_ours(&object.metadata))
        .iter()
        .map(|object| object.metadata.clone())
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

fn is_of_deployment(metadata: &ObjectMeta, pipeline: &str) -> bool {
    let name = names::deployment(pipeline);
    let mut references = metadata.owner_references.iter().flatten();
    references.any(|reference| reference.kind == "Deployment" && reference.name == name)
}

/// The generation at which the spec of a revision was accepted last, where this very pipeline did.
#[must_use]
pub fn accepted_generation(revision: &ObjectMeta, uid: &str) -> Option<i64> {
    label(revision, labels::PIPELINE_UID).filter(|its_uid| its_uid == uid)?;
    revision
        .annotations
        .as_ref()?
        .get(labels::ACCEPTED_GENERATION)?
        .parse()
        .ok()
}

fn last_accepted_first(mut revisions: Vec<ObjectMeta>, uid: &str) -> Vec<ObjectMeta> {
    revisions.sort_by_key(|revision| std::cmp::Reverse(accepted_generation(revision, uid)));
    revisions
}

fn label(metadata: &ObjectMeta, key: &str) -> Option<String> {
    metadata.labels.as_ref()?.get(key).cloned()
}

fn observe_pods(context: &Context, identity: &PipelineIdentity) -> Vec<ObservedPod> {
    let is_of_pipeline = |pod: &Pod| {
        pod.metadata.namespace.as_deref() == Some(&identity.namespace)
            && label(&pod.metadata, labels::PIPELINE_UID).as_deref() == Some(&identity.uid)
    };
    let mut pods = context.stores.pods.state_filter(is_of_pipeline);
    pods.sort_by_key(|pod| pod.name_any());
    pods.iter()
        .map(|pod| observe_pod(context, identity, pod))
        .collect()
}

fn observe_pod(context: &Context, identity: &PipelineIdentity, pod: &Pod) -> ObservedPod {
    let config_hash = label(&pod.metadata, labels::CONFIG_HASH).unwrap_or_default();
    let says = pod
        .metadata
        .uid
        .as_ref()
        .and_then(|uid| context.pod_states.get(uid));
    let containers = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_deref());
    let waiting = |container: &k8s_openapi::api::core::v1::ContainerStatus| {
        container.state.as_ref()?.waiting.as_ref()?.reason.clone()
    };
    ObservedPod {
        is_ready: is_ready(pod),
        // A pod with another address may answer under an address that was given away.
        state: says.filter(|state| state.pipeline_uid == identity.uid && state.config_hash == config_hash),
        waits_for: containers
            .into_iter()
            .flatten()
            .find_map(waiting)
            .filter(|reason| reason != "ContainerCreating" && reason != "PodInitializing"),
        config_hash,
    }
}
