//! Every watch of the operator, and what it said last. Each change becomes a request to look at the pipeline that the
//! object names in its labels.
//!
//! Children are watched by their metadata alone, but for Deployments and pods, whose status is needed. Secrets
//! are not watched: the operator has no right to list them.

use std::{fmt::Debug, sync::Arc};

use futures::{StreamExt, channel::mpsc::UnboundedSender};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ControllerRevision, Deployment, ReplicaSet},
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{ObjectRef, Store, store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::warn;

use crate::{desired::labels, pipeline::Pipeline};

/// What the watches said last.
#[derive(Clone)]
pub struct Stores {
    /// All pipelines.
    pub pipelines: Store<Pipeline>,
    /// Configurations, the ones of former ReplicaSets among them.
    pub config_maps: Store<PartialObjectMeta<ConfigMap>>,
    /// Identities of pods.
    pub service_accounts: Store<PartialObjectMeta<ServiceAccount>>,
    /// Services.
    pub services: Store<PartialObjectMeta<Service>>,
    /// Accepted specs.
    pub revisions: Store<PartialObjectMeta<ControllerRevision>>,
    /// Deployments.
    pub deployments: Store<Deployment>,
    /// Their ReplicaSets, which say what configurations are in use.
    pub replica_sets: Store<PartialObjectMeta<ReplicaSet>>,
    /// Their pods, without their specs.
    pub pods: Store<Pod>,
}

/// Where the watches tell of changes.
#[derive(Clone)]
pub struct Listeners {
    /// Takes the pipelines to look at.
    pub changed: UnboundedSender<ObjectRef<Pipeline>>,
    /// Takes the pipelines that are gone.
    pub deleted: UnboundedSender<Arc<Pipeline>>,
}

/// A watch that ended; none does unless its task is gone.
#[derive(Debug, thiserror::Error)]
#[error("the watch of {0} ended")]
pub struct WatchEnded(pub String);

impl Stores {
    /// Waits until every watch has said what there is. To be awaited once: a store wakes only who asked it last.
    pub async fn wait_until_ready(&self) {
        // A writer that is dropped ends its task, and with it the process.
        let _ = tokio::join!(
            self.pipelines.wait_until_ready(),
            self.config_maps.wait_until_ready(),
            self.service_accounts.wait_until_ready(),
            self.services.wait_until_ready(),
            self.revisions.wait_until_ready(),
            self.deployments.wait_until_ready(),
            self.replica_sets.wait_until_ready(),
            self.pods.wait_until_ready(),
        );
    }
}

/// Starts every watch on `tasks`, in one namespace or in all.
pub fn start(
    client: &Client,
    namespace: Option<&str>,
    listeners: &Listeners,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> Stores {
    let watches = Watches {
        client,
        namespace,
        listeners,
    };
    Stores {
        pipelines: watches.pipelines(tasks),
        config_maps: watches.children(tasks, |_| {}),
        service_accounts: watches.children(tasks, |_| {}),
        services: watches.children(tasks, |_| {}),
        revisions: watches.children(tasks, |_| {}),
        deployments: watches.children(tasks, |_| {}),
        replica_sets: watches.children(tasks, |_| {}),
        pods: watches.children(tasks, |pod: &mut Pod| pod.spec = None),
    }
}

struct Watches<'a> {
    client: &'a Client,
    namespace: Option<&'a str>,
    listeners: &'a Listeners,
}

impl Watches<'_> {
    fn pipelines(&self, tasks: &mut JoinSet<anyhow::Result<()>>) -> Store<Pipeline> {
        let (reader, writer) = store();
        let listeners = self.listeners.clone();
        let events = watcher(self.api::<Pipeline>(), watcher::Config::default());
        let (known, mut before) = (reader.clone(), Vec::new());
        let tell = move |event: &watcher::Event<Pipeline>| match event {
            watcher::Event::Apply(pipeline) | watcher::Event::InitApply(pipeline) => {
                let _ = listeners.changed.unbounded_send(ObjectRef::from_obj(pipeline));
            }
            watcher::Event::Delete(pipeline) => {
                let _ = listeners.deleted.unbounded_send(Arc::new(pipeline.clone()));
            }
            // A watch that starts anew says what there is, and not what went meanwhile.
            watcher::Event::Init => before = known.state(),
            watcher::Event::InitDone => {
                for pipeline in before.drain(..).filter(|pipeline| is_gone(&known, pipeline)) {
                    let _ = listeners.deleted.unbounded_send(pipeline);
                }
            }
        };
        tasks.spawn(follow(events, writer, tell));
        reader
    }

    fn children<K>(&self, tasks: &mut JoinSet<anyhow::Result<()>>, modify: fn(&mut K)) -> Store<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + Sync
            + 'static,
    {
        let (reader, writer) = store();
        let events = watcher(self.api::<K>(), child_selector());
        tasks.spawn(follow(strip(events, modify), writer, self.tell_of_child()));
        reader
    }

    fn tell_of_child<K: Resource<DynamicType = ()>>(&self) -> impl Fn(&watcher::Event<K>) + Send + use<K> {
        let changed = self.listeners.changed.clone();
        move |event| {
            if let watcher::Event::Apply(child)
            | watcher::Event::InitApply(child)
            | watcher::Event::Delete(child) = event
                && let Some(pipeline) = pipeline_of(child.meta())
            {
                let _ = changed.unbounded_send(pipeline);
            }
        }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// The pipeline that a child names.
#[must_use]
pub fn pipeline_of(child: &ObjectMeta) -> Option<ObjectRef<Pipeline>> {
    let name = child.labels.as_ref()?.get(labels::PIPELINE)?;
    Some(ObjectRef::new(name).within(child.namespace.as_deref()?))
}

fn is_gone(known: &Store<Pipeline>, pipeline: &Pipeline) -> bool {
    let now = known.get(&ObjectRef::from_obj(pipeline));
    now.is_none_or(|now| now.metadata.uid != pipeline.metadata.uid)
}

fn child_selector() -> watcher::Config {
    watcher::Config::default().labels(&labels::watch_selector())
}

/// Without what nobody here reads, which is most of an object.
fn strip<K: Resource>(
    events: impl futures::Stream<Item = watcher::Result<watcher::Event<K>>>,
    modify: fn(&mut K),
) -> impl futures::Stream<Item = watcher::Result<watcher::Event<K>>> {
    events.modify(move |object| {
        object.managed_fields_mut().clear();
        modify(object);
    })
}

/// Keeps a store up to date and tells of each change after the store has it.
async fn follow<K>(
    events: impl futures::Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
    mut writer: Writer<K>,
    mut tell: impl FnMut(&watcher::Event<K>) + Send,
) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let mut events = Box::pin(events.default_backoff());
    let kind = K::plural(&()).into_owned();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                writer.apply_watcher_event(&event);
                tell(&event);
            }
            Err(error) => warn!(kind, %error, "a watch failed and starts again"),
        }
    }
    Err(WatchEnded(kind).into())
}
