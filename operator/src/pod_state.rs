//! What the pods say of themselves at `GET /state`, asked every 10 seconds and kept until a reconcile looks at it.
//!
//! A pod may say anything, slowly and at any length: redirects are not followed, and time, size and the number
//! of requests at once are bounded.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{StreamExt, channel::mpsc::UnboundedSender, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use nomnom_crds::runtime::{ADMIN_PORT, RuntimeState, state::DatabaseReason};
use tracing::debug;

use crate::{context::Context, pipeline::Pipeline, watch::pipeline_of};

/// How often a pod is asked.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often a pod is asked that has not said yet what it sees of the database: right after its start.
const INTERVAL_UNSETTLED: Duration = Duration::from_secs(1);
/// After this many failures in a row a pod is asked at the ordinary interval, and what it said is no longer believed.
const MAX_FAILURES: u32 = 3;
/// A pod answers from memory.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A state with all the differences that a pod may list is a tenth of this.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// At most so many pods are asked at once.
const CONCURRENCY: usize = 32;

/// What the pods said last, by their uid.
#[derive(Default)]
pub struct PodStates(Mutex<HashMap<String, Entry>>);

struct Entry {
    state: Option<Arc<RuntimeState>>,
    failures: u32,
    due: Instant,
}

impl PodStates {
    /// What a pod said last.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Arc<RuntimeState>> {
        self.entries().get(uid)?.state.clone()
    }

    fn is_due(&self, uid: &str, now: Instant) -> bool {
        self.entries().get(uid).is_none_or(|entry| entry.due <= now)
    }

    /// Keeps an answer; true where it differs from what is known.
    fn record(&self, uid: &str, answer: Option<RuntimeState>, now: Instant) -> bool {
        let mut entries = self.entries();
        let entry = entries.entry(uid.to_owned()).or_insert(Entry {
            state: None,
            failures: 0,
            due: now,
        });
        let former = entry.state.clone();
        if let Some(state) = answer {
            entry.failures = 0;
            entry.state = Some(Arc::new(state));
        } else {
            entry.failures = entry.failures.saturating_add(1);
            if entry.failures >= MAX_FAILURES {
                entry.state = None;
            }
        }
        entry.due = now + entry.interval();
        former != entry.state
    }

    fn retain(&self, uids: &HashSet<String>) {
        self.entries().retain(|uid, _| uids.contains(uid));
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn interval(&self) -> Duration {
        let is_settled = match &self.state {
            Some(state) => state.database.reason != DatabaseReason::DatabaseUnknown,
            None => self.failures >= MAX_FAILURES,
        };
        if is_settled { INTERVAL } else { INTERVAL_UNSETTLED }
    }
}

/// Whether a pod is in the Service.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Asks the ready pods for as long as the process lives.
pub async fn run(context: Arc<Context>, changed: UnboundedSender<ObjectRef<Pipeline>>) -> anyhow::Result<()> {
    let http = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        // A pod is asked every 10 seconds; a connection would outlive many of them.
        .pool_max_idle_per_host(0)
        .build()?;
    let mut ticks = tokio::time::interval(INTERVAL_UNSETTLED);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        ask_due_pods(&context, &http, &changed).await;
    }
}

async fn ask_due_pods(
    context: &Context,
    http: &reqwest::Client,
    changed: &UnboundedSender<ObjectRef<Pipeline>>,
) {
    let now = Instant::now();
    let ready = context.stores.pods.state_filter(is_ready);
    context
        .pod_states
        .retain(&ready.iter().filter_map(|pod| pod.uid()).collect());
    let due = ready.into_iter().filter_map(|pod| {
        let uid = pod.uid().filter(|uid| context.pod_states.is_due(uid, now))?;
        let address: IpAddr = pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()?;
        Some((pod, uid, SocketAddr::new(address, ADMIN_PORT)))
    });
    stream::iter(due)
        .for_each_concurrent(CONCURRENCY, |(pod, uid, address)| async move {
            let answer = ask(http, address).await;
            context.metrics.count_state_request(answer.is_ok());
            if let Err(error) = &answer {
                debug!(pod = pod.name_any(), namespace = pod.namespace(), %error, "a pod does not say its state");
            }
            if context.pod_states.record(&uid, answer.ok(), Instant::now())
                && let Some(pipeline) = pipeline_of(&pod.metadata)
            {
                let _ = changed.unbounded_send(pipeline);
            }
        })
        .await;
}

async fn ask(http: &reqwest::Client, address: SocketAddr) -> anyhow::Result<RuntimeState> {
    let mut response = http.get(format!("http://{address}/state")).send().await?;
    anyhow::ensure!(
        response.status() == reqwest::StatusCode::OK,
        "answered {}",
        response.status()
    );
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(
            body.len() + chunk.len() <= MAX_BODY_BYTES,
            "more than {MAX_BODY_BYTES} bytes"
        );
        body.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use nomnom_crds::runtime::state::DatabaseState;

    use super::*;

    fn state(reason: DatabaseReason) -> RuntimeState {
        RuntimeState {
            config_hash: String::new(),
            pipeline_uid: String::new(),
            version: String::new(),
            receipt_key_fingerprint: String::new(),
            database: DatabaseState {
                ready: false,
                reason,
                message: String::new(),
                differences: Vec::new(),
                receipt_key_fingerprint: None,
            },
        }
    }

    #[test]
    fn one_failure_is_forgiven_and_three_are_not() {
        let (states, now) = (PodStates::default(), Instant::now());
        assert!(states.record("a", Some(state(DatabaseReason::Connected)), now));
        assert!(!states.record("a", Some(state(DatabaseReason::Connected)), now));
        assert!(!states.is_due("a", now + INTERVAL_UNSETTLED));
        assert!(!states.record("a", None, now));
        assert!(!states.record("a", None, now));
        assert!(states.get("a").is_some());
        assert!(states.record("a", None, now));
        assert!(states.get("a").is_none());
    }

    #[test]
    fn a_pod_that_does_not_know_yet_is_asked_sooner() {
        let (states, now) = (PodStates::default(), Instant::now());
        states.record("a", Some(state(DatabaseReason::DatabaseUnknown)), now);
        assert!(states.is_due("a", now + INTERVAL_UNSETTLED));
    }
}
