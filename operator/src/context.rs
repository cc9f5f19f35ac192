//! What every reconcile needs: the client, what the watches and the pods said last, and what is written with.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use kube::{
    Client,
    runtime::{events::Recorder, reflector::ObjectRef},
};

use crate::{
    config::Config,
    desired::labels::OPERATOR,
    kube_api::{apply::Applier, events, leadership::Leadership},
    metrics::Metrics,
    pipeline::Pipeline,
    pod_state::PodStates,
    reconcile::accept::InUse,
    watch::Stores,
};

/// The first pause after a failed pass.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two failed passes.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Shared by all passes.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The image of the pods.
    pub runtime_image: String,
    /// How long until a pipeline is looked at again although nothing changed.
    pub resync: Duration,
    /// What the watches said.
    pub stores: Stores,
    /// What the pods said.
    pub pod_states: PodStates,
    /// Writes children.
    pub applier: Applier,
    /// Writes events.
    pub recorder: Recorder,
    /// Whether this process may delete.
    pub leadership: Leadership,
    /// Counts.
    pub metrics: Metrics,
    failures: Mutex<HashMap<ObjectRef<Pipeline>, u32>>,
    in_use: Mutex<HashMap<String, InUse>>,
}

impl Context {
    /// A context without failures.
    #[must_use]
    pub fn new(
        config: &Config,
        client: Client,
        stores: Stores,
        leadership: Leadership,
        metrics: Metrics,
    ) -> Self {
        Self {
            applier: Applier::new(client.clone(), OPERATOR),
            recorder: events::recorder(client.clone(), OPERATOR, config.pod_name.clone()),
            runtime_image: config.runtime_image.clone(),
            resync: Duration::from_secs(config.resync_seconds),
            stores,
            pod_states: PodStates::default(),
            leadership,
            metrics,
            failures: Mutex::default(),
            in_use: Mutex::default(),
            client,
        }
    }

    /// How long to wait after one more failure of a pipeline: twice as long as after the last.
    pub fn pause_after_failure(&self, pipeline: ObjectRef<Pipeline>) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(pipeline).or_default();
        let pause = FIRST_PAUSE
            .saturating_mul(1 << (*count).min(16))
            .min(LONGEST_PAUSE);
        *count += 1;
        pause
    }

    /// What the pipeline with this uid was put to use with last: surer than any record, which anybody may delete and
    /// of which the watch may not have told yet.
    pub fn last_in_use(&self, uid: &str) -> Option<InUse> {
        let in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.get(uid).cloned()
    }

    /// A spec is put to use.
    pub fn remember_in_use(&self, uid: &str, in_use: &InUse) {
        self.in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid.to_owned(), in_use.clone());
    }

    /// A pipeline is gone.
    pub fn forget_in_use(&self, uid: &str) {
        self.in_use
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }

    /// A pass of a pipeline went well, or the pipeline is gone.
    pub fn clear_failures(&self, pipeline: &ObjectRef<Pipeline>) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(pipeline);
    }
}
