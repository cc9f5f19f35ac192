//! What is said about a pipeline. Pure: computed from what was observed and applied, and the same for the same input, so
//! that a status is written only when something changed.

use std::cmp::Ordering;

use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use nomnom_crds::{
    IngestionPipelineStatus,
    condition::{ACCEPTED, DATABASE_READY, ENDPOINT_READY, READY, RECONCILING, Reason, STALLED},
    runtime::config::PipelineIdentity,
    status::{IngestStatus, ResolvedStatus},
};

use super::{Problem, accept::Acceptance, apply::Outcome, observe::ObservedPod};
use crate::{
    desired::names,
    kube_api::conditions::{State, Statement, find, state_all},
};

/// What the pods may say of the database, the worst first: what needs a person, then what may pass.
const FROM_WORST: [Reason; 15] = [
    Reason::ReceiptKeyLost,
    Reason::SecretNotFound,
    Reason::InvalidUrl,
    Reason::AuthenticationFailed,
    Reason::DatabaseNotFound,
    Reason::SchemaMissing,
    Reason::TableMissing,
    Reason::SchemaMismatch,
    Reason::ForeignKeyBetweenTargets,
    Reason::SchemaDrift,
    Reason::PermissionDenied,
    Reason::ReadOnly,
    Reason::DatabaseError,
    Reason::Unreachable,
    Reason::Connected,
];

/// All that a status is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whose status it is.
    pub identity: &'a PipelineIdentity,
    /// The generation of the written spec.
    pub generation: i64,
    /// What was said last.
    pub former: &'a IngestionPipelineStatus,
    /// Which spec is in use.
    pub acceptance: &'a Acceptance,
    /// What became of the children.
    pub outcome: &'a Outcome,
    /// The pods.
    pub pods: &'a [ObservedPod],
}

/// A condition's status, reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    state: State,
    reason: Reason,
    message: String,
}

impl Verdict {
    fn new(state: State, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            state,
            reason,
            message: message.into(),
        }
    }

    fn holds(&self) -> bool {
        self.state == State::True
    }

    fn about(self, type_: &'static str, generation: i64) -> Statement {
        Statement {
            type_,
            state: self.state,
            reason: self.reason.as_str(),
            message: self.message,
            generation,
        }
    }
}

/// Computes the status.
#[must_use]
pub fn compute_status(facts: &Facts<'_>, now: Timestamp) -> IngestionPipelineStatus {
    let former = facts.former;
    let in_use = facts.acceptance.in_use.as_ref();
    let key = &facts.outcome.receipt_key_fingerprint;
    IngestionPipelineStatus {
        observed_generation: Some(facts.generation),
        conditions: state_all(&former.conditions, compute_conditions(facts), now),
        // Where the spec in use is lost, what was said of it still holds.
        mode: in_use.map(|in_use| in_use.spec.mode).or(former.mode),
        url: in_use
            .map(|_| names::url(facts.identity))
            .or_else(|| former.url.clone()),
        ingest: facts.outcome.revision.as_ref().map(|revision| IngestStatus {
            revision: revision.clone(),
            replicas: wanted_replicas(facts).unwrap_or_default(),
            ready_replicas: ready_replicas(facts.outcome.deployment.as_ref()),
        }),
        resolved: in_use
            .map(|in_use| ResolvedStatus::from(&in_use.spec))
            .or_else(|| former.resolved.clone()),
        receipt_key_fingerprint: key.clone().or_else(|| former.receipt_key_fingerprint.clone()),
    }
}

/// The status after a pass that did not come to know how the pipeline is: what it was, and what was in the way.
#[must_use]
pub fn add_obstacle(
    mut former: IngestionPipelineStatus,
    generation: i64,
    obstacle: Option<&Problem>,
    now: Timestamp,
) -> IngestionPipelineStatus {
    let is_stalled = find(&former.conditions, STALLED)
        .is_some_and(|stalled| stalled.observed_generation >= Some(generation));
    let (Some(problem), false) = (obstacle, is_stalled) else {
        return former;
    };
    let reconciling =
        Verdict::new(State::True, problem.reason, &problem.message).about(RECONCILING, generation);
    let reconciling = state_all(&former.conditions, vec![reconciling], now);
    former
        .conditions
        .retain(|condition| condition.type_ != RECONCILING && condition.type_ != STALLED);
    former.conditions.extend(reconciling);
    former
}

fn compute_conditions(facts: &Facts<'_>) -> Vec<Statement> {
    let accepted = accepted(facts);
    let database = database(facts);
    let endpoint = endpoint(facts, &accepted);
    let roll_out = roll_out(facts);
    let ready = ready(facts, &endpoint, &roll_out);
    let generation = facts.generation;
    let progress = match stalled(facts) {
        Some(stalled) => Some(stalled.about(STALLED, generation)),
        None => reconciling(facts, [&accepted, &roll_out, &endpoint, &database])
            .map(|it| it.about(RECONCILING, generation)),
    };
    let mut statements = vec![
        ready.about(READY, served_generation(facts, &roll_out)),
        accepted.about(ACCEPTED, generation),
        database.about(DATABASE_READY, generation),
        endpoint.about(ENDPOINT_READY, generation),
    ];
    statements.extend(progress);
    statements
}

/// Whether the written spec is the one in use.
fn accepted(facts: &Facts<'_>) -> Verdict {
    match &facts.acceptance.refusal {
        // The API server has not said yet.
        Some(problem) if problem.reason == Reason::ApiError => {
            Verdict::new(State::Unknown, problem.reason, &problem.message)
        }
        Some(problem) => Verdict::new(State::False, problem.reason, &problem.message),
        None => Verdict::new(State::True, Reason::Valid, "the spec is valid"),
    }
}

/// What the pods of the configuration in use say of the database.
fn database(facts: &Facts<'_>) -> Verdict {
    let hash = &facts.outcome.config_hash;
    let of_configuration = facts
        .pods
        .iter()
        .filter(|pod| pod.is_ready && pod.config_hash == *hash);
    worst(of_configuration).unwrap_or_else(|| {
        Verdict::new(
            State::Unknown,
            Reason::DatabaseUnknown,
            "no pod with the configuration in use has said yet what it sees of the database",
        )
    })
}

/// The worst that any of the pods says; nothing where none says anything.
fn worst<'a>(pods: impl Iterator<Item = &'a ObservedPod>) -> Option<Verdict> {
    pods.filter_map(|pod| {
        let database = &pod.state.as_ref()?.database;
        let reason = match Reason::from(database.reason) {
            _ if database.ready => Reason::Connected,
            Reason::Connected => Reason::DatabaseUnknown,
            reason => reason,
        };
        let rank = FROM_WORST.iter().position(|it| *it == reason)?;
        let mut parts = vec![database.message.clone()];
        parts.extend(database.differences.iter().cloned());
        parts.retain(|part| !part.is_empty());
        Some((rank, parts.join("; "), reason))
    })
    .min_by(|one, other| match one.0.cmp(&other.0) {
        Ordering::Equal => one.1.cmp(&other.1),
        order => order,
    })
    .map(|(_, message, reason)| match reason {
        Reason::Connected => Verdict::new(
            State::True,
            reason,
            "connected, and the tables are as the spec says",
        ),
        _ => Verdict::new(State::False, reason, message),
    })
}

/// Whether pods that take records stand behind the Service.
fn endpoint(facts: &Facts<'_>, accepted: &Verdict) -> Verdict {
    let problems = &facts.outcome.problems;
    let is_lost = |problem: &&Problem| problem.reason == Reason::ReceiptKeyLost;
    // Without a Service, pods that are ready take no records; a Deployment of somebody else has other pods.
    let is_without = |problem: &&Problem| {
        problem.kind == "Service" || problem.reason == Reason::ForeignObject && problem.kind == "Deployment"
    };
    if let Some(problem) = problems
        .iter()
        .find(is_lost)
        .or_else(|| problems.iter().find(is_without))
    {
        return Verdict::new(State::False, problem.reason, &problem.message);
    }
    if ready_replicas(facts.outcome.deployment.as_ref()) > 0 {
        return Verdict::new(
            State::True,
            Reason::PodsReady,
            "pods take records behind the Service",
        );
    }
    if let Some(problem) = problems.first() {
        return Verdict::new(State::False, problem.reason, &problem.message);
    }
    if facts.acceptance.in_use.is_none() && facts.outcome.revision.is_none() {
        return Verdict::new(State::False, accepted.reason, "no spec was accepted yet");
    }
    let message = match obstacle(facts) {
        Some(obstacle) => format!("no pod is ready: {obstacle}"),
        None => "no pod is ready yet".to_owned(),
    };
    Verdict::new(State::False, Reason::PodsNotReady, message)
}

/// Whether every pod that should be there is there, with what the spec in use asks for, and no other.
fn roll_out(facts: &Facts<'_>) -> Verdict {
    let is_complete = match (wanted_replicas(facts), &facts.outcome.deployment) {
        (Some(replicas), Some(deployment)) => {
            is_rolled_out(deployment, replicas) && facts.outcome.problems.is_empty()
        }
        _ => false,
    };
    if is_complete && !facts.outcome.has_moved {
        return Verdict::new(State::True, Reason::Serving, "records are accepted and stored");
    }
    let (reason, what) = match missing_pods(facts) {
        Some(what) => (Reason::PodsNotReady, what),
        None => (
            Reason::RollingOut,
            "pods with the newest configuration take over".to_owned(),
        ),
    };
    let message = match obstacle(facts) {
        Some(obstacle) => format!("{what}: {obstacle}"),
        None => what,
    };
    Verdict::new(State::False, reason, message)
}

/// Where all pods are of the newest configuration, and some of them are away: that is no roll-out.
fn missing_pods(facts: &Facts<'_>) -> Option<String> {
    let (wanted, deployment) = (wanted_replicas(facts)?, facts.outcome.deployment.as_ref()?);
    let status = deployment.status.as_ref().filter(|_| is_up_to_date(deployment))?;
    let available = status.available_replicas.unwrap_or_default();
    let all = status.updated_replicas == Some(wanted) && status.replicas == Some(wanted);
    (all && available < wanted).then(|| format!("{available} of {wanted} pods are ready"))
}

/// Whether the Deployment's controller has seen its newest spec.
fn is_up_to_date(deployment: &Deployment) -> bool {
    let seen = deployment
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    seen >= deployment.metadata.generation
}

/// How many pods there should be: where the spec in use is lost, as many as there were to be.
fn wanted_replicas(facts: &Facts<'_>) -> Option<i32> {
    let in_use = facts.acceptance.in_use.as_ref();
    in_use
        .map(|in_use| in_use.spec.ingest.min_replicas)
        .or_else(|| facts.former.ingest.as_ref().map(|ingest| ingest.replicas))
}

/// The rule of `kubectl rollout status`.
fn is_rolled_out(deployment: &Deployment, replicas: i32) -> bool {
    let Some(status) = &deployment.status else {
        return false;
    };
    let wanted = Some(replicas);
    deployment.spec.as_ref().and_then(|spec| spec.replicas) == wanted
        && is_up_to_date(deployment)
        && status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
}

/// Why pods do not come up, where Kubernetes says so.
fn obstacle(facts: &Facts<'_>) -> Option<String> {
    let deployment = facts.outcome.deployment.as_ref();
    let conditions = deployment.and_then(|deployment| deployment.status.as_ref()?.conditions.as_deref());
    let is_stuck = |type_: &str, status: &str| {
        type_ == "ReplicaFailure" && status == "True" || type_ == "Progressing" && status == "False"
    };
    let stuck = conditions
        .into_iter()
        .flatten()
        .find(|condition| is_stuck(&condition.type_, &condition.status));
    stuck
        .and_then(|condition| condition.message.clone())
        .or_else(|| facts.pods.iter().filter_map(|pod| pod.waits_for.clone()).min())
}

/// Whether records are accepted and stored now, by whichever pods stand behind the Service.
fn ready(facts: &Facts<'_>, endpoint: &Verdict, roll_out: &Verdict) -> Verdict {
    if !endpoint.holds() {
        return endpoint.clone();
    }
    match worst(facts.pods.iter().filter(|pod| pod.is_ready)) {
        None => Verdict::new(
            State::Unknown,
            Reason::DatabaseUnknown,
            "no pod has said yet whether it stores records",
        ),
        Some(database) if !database.holds() => database,
        Some(_) => {
            let reason = match roll_out.reason {
                Reason::PodsNotReady => Reason::Serving,
                reason => reason,
            };
            Verdict::new(State::True, reason, "records are accepted and stored")
        }
    }
}

/// The generation whose configuration serves: that of the spec in use once it is rolled out, before that the former.
/// So `kubectl wait --for=condition=Ready` waits for what was applied, although Ready is true meanwhile.
fn served_generation(facts: &Facts<'_>, roll_out: &Verdict) -> i64 {
    let target = facts.acceptance.in_use.as_ref().map(|in_use| in_use.generation);
    let former = find(&facts.former.conditions, READY).and_then(|ready| ready.observed_generation);
    let said = if roll_out.holds() {
        target.or(former)
    } else {
        former.or(target)
    };
    said.unwrap_or(facts.generation)
}

/// What only an edit of the pipeline mends.
fn stalled(facts: &Facts<'_>) -> Option<Verdict> {
    if let Some(refusal) = facts.acceptance.refusal.as_ref().filter(|it| it.needs_edit()) {
        return Some(Verdict::new(State::True, refusal.reason, &refusal.message));
    }
    let lost = facts
        .outcome
        .problems
        .iter()
        .find(|problem| problem.reason == Reason::ReceiptKeyLost)?;
    Some(Verdict::new(State::True, lost.reason, &lost.message))
}

/// What is under way, or waited for: the first of what keeps the pipeline from being as the spec says.
fn reconciling(facts: &Facts<'_>, wanted: [&Verdict; 4]) -> Option<Verdict> {
    if let Some(problem) = facts.outcome.problems.first() {
        return Some(Verdict::new(State::True, problem.reason, &problem.message));
    }
    let missing = wanted.into_iter().find(|verdict| !verdict.holds())?;
    Some(Verdict::new(State::True, missing.reason, &missing.message))
}

fn ready_replicas(deployment: Option<&Deployment>) -> i32 {
    deployment
        .and_then(|deployment| deployment.status.as_ref()?.ready_replicas)
        .unwrap_or_default()
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
