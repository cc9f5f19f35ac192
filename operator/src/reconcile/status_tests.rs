//! A table: what is known on the left, what is said on the right.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use nomnom_crds::{
    IngestionPipelineSpec, ResolvedSpec,
    runtime::{
        RuntimeState,
        state::{DatabaseReason, DatabaseState},
    },
};
use serde_json::json;

use super::*;
use crate::reconcile::accept::InUse;

/// Everything is well; each test spoils one thing.
struct Scene {
    former: IngestionPipelineStatus,
    acceptance: Acceptance,
    outcome: Outcome,
    pods: Vec<ObservedPod>,
}

fn spec() -> ResolvedSpec {
    let yaml =
        "{database: {urlSecretRef: {name: db}}, records: [{table: t, columns: [{name: a, type: text}]}]}";
    let spec: IngestionPipelineSpec = serde_yaml::from_str(yaml).unwrap();
    ResolvedSpec::resolve(&spec).unwrap()
}

fn deployment(updated: i32, ready: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"generation": 2},
        "spec": {"replicas": 3, "selector": {}, "template": {}},
        "status": {
            "observedGeneration": 2, "replicas": 3, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready
        },
    }))
    .unwrap()
}

fn pod(hash: &str, reason: DatabaseReason, message: &str) -> ObservedPod {
    ObservedPod {
        config_hash: hash.into(),
        is_ready: true,
        waits_for: None,
        state: Some(Arc::new(RuntimeState {
            config_hash: hash.into(),
            pipeline_uid: "1".into(),
            version: "0.1.0".into(),
            receipt_key_fingerprint: "f".into(),
            database: DatabaseState {
                ready: reason == DatabaseReason::Connected,
                reason,
                message: message.into(),
                differences: Vec::new(),
                receipt_key_fingerprint: None,
            },
        })),
    }
}

fn problem(reason: Reason, kind: &str) -> Problem {
    Problem {
        reason,
        message: "what happened".into(),
        kind: kind.into(),
    }
}

impl Scene {
    fn new() -> Self {
        Self {
            former: IngestionPipelineStatus::default(),
            acceptance: Acceptance {
                in_use: Some(InUse {
                    spec: spec(),
                    generation: 5,
                    revision: "orders-abc".into(),
                }),
                refusal: None,
            },
            outcome: Outcome {
                deployment: Some(deployment(3, 3)),
                config_hash: "new".into(),
                receipt_key_fingerprint: Some("f".into()),
                revision: Some("orders-abc".into()),
                ..Outcome::default()
            },
            pods: vec![pod("new", DatabaseReason::Connected, "")],
        }
    }

    fn compute(&self) -> IngestionPipelineStatus {
        let identity = PipelineIdentity {
            namespace: "shop".into(),
            name: "orders".into(),
            uid: "1".into(),
        };
        let facts = Facts {
            identity: &identity,
            generation: 5,
            former: &self.former,
            acceptance: &self.acceptance,
            outcome: &self.outcome,
            pods: &self.pods,
        };
        compute_status(&facts, Timestamp::UNIX_EPOCH)
    }

    /// As `Type=Status/Reason@generation`, for comparison and for reading.
    fn conditions(&self) -> Vec<String> {
        let say = |condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            let generation = condition.observed_generation.unwrap();
            format!(
                "{}={}/{}@{generation}",
                condition.type_, condition.status, condition.reason
            )
        };
        self.compute().conditions.iter().map(say).collect()
    }

    /// What was said before: Ready for this generation.
    fn served(mut self, generation: i64) -> Self {
        let ready = Verdict::new(State::True, Reason::Serving, "").about(READY, generation);
        self.former.conditions = state_all(&[], vec![ready], Timestamp::UNIX_EPOCH);
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

#[test]
#[allow(clippy::too_many_lines)] // a table
fn says_what_is_known() {
    use DatabaseReason::{Connected, SecretNotFound, Unreachable};
    let roll = |it: &mut Scene| it.outcome.deployment = Some(deployment(1, 3));
    let lose = |it: &mut Scene| {
        it.outcome
            .problems
            .push(problem(Reason::ReceiptKeyLost, "Secret"));
    };
    let refuse = |it: &mut Scene| {
        it.acceptance.refusal = Some(problem(Reason::InvalidSpec, ""));
        it.acceptance.in_use.as_mut().unwrap().generation = 4;
    };
    let fail =
        |reason, kind: &'static str| move |it: &mut Scene| it.outcome.problems.push(problem(reason, kind));
    let table: Vec<(&str, Scene, [&str; 4], Option<&str>)> = vec![
        (
            "all is well",
            Scene::new(),
            [
                "True/Serving@5",
                "True/Valid@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            None,
        ),
        (
            "nothing runs yet",
            Scene::new().with(|it| {
                it.outcome.deployment = Some(deployment(0, 0));
                it.pods.clear();
            }),
            [
                "False/PodsNotReady@5",
                "True/Valid@5",
                "Unknown/DatabaseUnknown@5",
                "False/PodsNotReady@5",
            ],
            Some("Reconciling=True/RollingOut@5"),
        ),
        (
            "a roll-out serves the former generation",
            Scene::new().served(4).with(roll),
            [
                "True/RollingOut@4",
                "True/Valid@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/RollingOut@5"),
        ),
        (
            "a pod that is away for a while",
            Scene::new()
                .served(5)
                .with(|it| it.outcome.deployment = Some(deployment(3, 2))),
            [
                "True/Serving@5",
                "True/Valid@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/PodsNotReady@5"),
        ),
        (
            "only old pods have spoken",
            Scene::new()
                .served(4)
                .with(roll)
                .with(|it| it.pods = vec![pod("old", Connected, "")]),
            [
                "True/RollingOut@4",
                "True/Valid@5",
                "Unknown/DatabaseUnknown@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/RollingOut@5"),
        ),
        (
            "a database away",
            Scene::new()
                .served(5)
                .with(|it| it.pods.push(pod("new", Unreachable, "refused"))),
            [
                "False/Unreachable@5",
                "True/Valid@5",
                "False/Unreachable@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/Unreachable@5"),
        ),
        (
            "what needs a person goes first",
            Scene::new().with(|it| {
                it.pods
                    .extend([pod("new", Unreachable, ""), pod("new", SecretNotFound, "")]);
            }),
            [
                "False/SecretNotFound@5",
                "True/Valid@5",
                "False/SecretNotFound@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/SecretNotFound@5"),
        ),
        (
            "a pod that has not spoken yet says nothing",
            Scene::new().with(|it| it.pods.push(pod("new", DatabaseReason::DatabaseUnknown, ""))),
            [
                "True/Serving@5",
                "True/Valid@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            None,
        ),
        (
            "a bad edit keeps serving",
            Scene::new().served(4).with(refuse),
            [
                "True/Serving@4",
                "False/InvalidSpec@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Stalled=True/InvalidSpec@5"),
        ),
        (
            "a bad edit, and a database away",
            Scene::new()
                .served(4)
                .with(refuse)
                .with(|it| it.pods = vec![pod("new", Unreachable, "")]),
            [
                "False/Unreachable@4",
                "False/InvalidSpec@5",
                "False/Unreachable@5",
                "True/PodsReady@5",
            ],
            Some("Stalled=True/InvalidSpec@5"),
        ),
        (
            "never anything good",
            Scene::new().with(|it| {
                it.acceptance.refusal = Some(problem(Reason::InvalidSpec, ""));
                it.acceptance.in_use = None;
                it.outcome = Outcome::default();
                it.pods.clear();
            }),
            [
                "False/InvalidSpec@5",
                "False/InvalidSpec@5",
                "Unknown/DatabaseUnknown@5",
                "False/InvalidSpec@5",
            ],
            Some("Stalled=True/InvalidSpec@5"),
        ),
        (
            "a policy forbids the edit",
            Scene::new().served(4).with(refuse).with(|it| {
                it.acceptance.refusal = Some(problem(Reason::Forbidden, "Deployment"));
            }),
            [
                "True/Serving@4",
                "False/Forbidden@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/Forbidden@5"),
        ),
        (
            "the API server does not say whether it takes the edit",
            Scene::new().served(4).with(refuse).with(|it| {
                it.acceptance.refusal = Some(problem(Reason::ApiError, "Deployment"));
            }),
            [
                "True/Serving@4",
                "Unknown/ApiError@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/ApiError@5"),
        ),
        (
            "a bad edit, and the spec in use is lost",
            Scene::new()
                .with(|it| it.former = it.compute())
                .served(4)
                .with(|it| {
                    it.acceptance.refusal = Some(problem(Reason::InvalidSpec, ""));
                    it.acceptance.in_use = None;
                }),
            [
                "True/Serving@4",
                "False/InvalidSpec@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Stalled=True/InvalidSpec@5"),
        ),
        (
            "an accepted child that the API server refuses",
            Scene::new()
                .served(4)
                .with(fail(Reason::ChildRejected, "Deployment")),
            [
                "True/RollingOut@4",
                "True/Valid@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/ChildRejected@5"),
        ),
        (
            "the receipt key is gone",
            Scene::new().served(5).with(lose),
            [
                "False/ReceiptKeyLost@5",
                "True/Valid@5",
                "True/Connected@5",
                "False/ReceiptKeyLost@5",
            ],
            Some("Stalled=True/ReceiptKeyLost@5"),
        ),
        (
            "somebody else's Service",
            Scene::new().with(fail(Reason::ForeignObject, "Service")),
            [
                "False/ForeignObject@5",
                "True/Valid@5",
                "True/Connected@5",
                "False/ForeignObject@5",
            ],
            Some("Reconciling=True/ForeignObject@5"),
        ),
        (
            "a quota without room for a Service",
            Scene::new().served(5).with(fail(Reason::Forbidden, "Service")),
            [
                "False/Forbidden@5",
                "True/Valid@5",
                "True/Connected@5",
                "False/Forbidden@5",
            ],
            Some("Reconciling=True/Forbidden@5"),
        ),
        (
            "no right for a ServiceAccount",
            Scene::new()
                .served(4)
                .with(fail(Reason::Forbidden, "ServiceAccount")),
            [
                "True/RollingOut@4",
                "True/Valid@5",
                "True/Connected@5",
                "True/PodsReady@5",
            ],
            Some("Reconciling=True/Forbidden@5"),
        ),
    ];
    for (what, scene, [ready, accepted, database, endpoint], progress) in table {
        let mut expected = vec![
            format!("Ready={ready}"),
            format!("Accepted={accepted}"),
            format!("DatabaseReady={database}"),
            format!("EndpointReady={endpoint}"),
        ];
        expected.extend(progress.map(str::to_owned));
        assert_eq!(scene.conditions(), expected, "{what}");
    }
}

#[test]
fn the_same_facts_give_the_same_status() {
    let mut scene = Scene::new().with(|it| {
        it.pods = vec![
            pod("new", DatabaseReason::Unreachable, "b"),
            pod("new", DatabaseReason::Unreachable, "a"),
        ];
    });
    let first = scene.compute();
    scene.pods.reverse();
    scene.former = first.clone();
    assert_eq!(scene.compute(), first);
    assert_eq!(find(&first.conditions, DATABASE_READY).unwrap().message, "a");
}

#[test]
fn a_pod_that_does_not_start_says_why() {
    let scene = Scene::new().with(|it| {
        it.outcome.deployment = Some(deployment(1, 0));
        it.pods = vec![ObservedPod {
            waits_for: Some("ImagePullBackOff".into()),
            ..ObservedPod::default()
        }];
    });
    let status = scene.compute();
    let message = &find(&status.conditions, ENDPOINT_READY).unwrap().message;
    assert_eq!(message, "no pod is ready: ImagePullBackOff");
}

/// A request that failed says nothing of the pipeline: what was known stays.
#[test]
fn an_obstacle_changes_nothing_else() {
    let mut former = Scene::new().compute();
    let obstacle = problem(Reason::ApiError, "Secret");
    let status = add_obstacle(former.clone(), 6, Some(&obstacle), Timestamp::UNIX_EPOCH);
    assert_eq!(find(&status.conditions, RECONCILING).unwrap().reason, "ApiError");
    assert_eq!(status.observed_generation, Some(5));
    former.conditions.extend(status.conditions.last().cloned());
    assert_eq!(status, former);
    assert_eq!(
        add_obstacle(status.clone(), 6, Some(&obstacle), Timestamp::UNIX_EPOCH),
        status
    );
}

/// What an older spec was stalled by is not what is in the way of this one.
#[test]
fn an_obstacle_replaces_what_an_older_spec_was_stalled_by() {
    let stalled = Scene::new()
        .with(|it| it.acceptance.refusal = Some(problem(Reason::InvalidSpec, "")))
        .compute();
    let obstacle = problem(Reason::ApiError, "Secret");
    let at = |generation| {
        add_obstacle(
            stalled.clone(),
            generation,
            Some(&obstacle),
            Timestamp::UNIX_EPOCH,
        )
    };
    assert_eq!(at(5), stalled);
    let newer = at(6);
    assert_eq!(find(&newer.conditions, STALLED), None);
    assert_eq!(find(&newer.conditions, RECONCILING).unwrap().reason, "ApiError");
}
