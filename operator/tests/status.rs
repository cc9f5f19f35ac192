//! What the status says while pods come, roll and report, on a real API server. The pods are objects and small servers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::net::Ipv4Addr;

use nomnom_crds::{IngestionPipeline, runtime::state::DatabaseReason};
use serde_json::json;
use support::{
    Bed, condition, example,
    pods::{FakePod, say_rolled_out},
};

fn served(pipeline: &IngestionPipeline) -> Option<i64> {
    condition(pipeline, "Ready")?.observed_generation
}

async fn wait_for_deployment(bed: &Bed, config_hash_is_not: &str) -> String {
    let deployment: k8s_openapi::api::apps::v1::Deployment = bed
        .wait_for_object("orders-ingest", |it: &k8s_openapi::api::apps::v1::Deployment| {
            hash_of(it) != config_hash_is_not && it.spec.as_ref().unwrap().replicas == Some(2)
        })
        .await;
    hash_of(&deployment)
}

fn hash_of(deployment: &k8s_openapi::api::apps::v1::Deployment) -> String {
    let template = &deployment.spec.as_ref().unwrap().template;
    template.metadata.as_ref().unwrap().labels.as_ref().unwrap()["nomnom.dev/config-hash"].clone()
}

#[tokio::test]
async fn follows_the_pods_through_a_roll_out() {
    let bed = Bed::start().await;
    let pipeline = example("orders");
    bed.apply(&pipeline).await;
    let first_hash = wait_for_deployment(&bed, "").await;
    let reconciling = bed
        .wait_for("orders", "Reconciling", ("True", "RollingOut"))
        .await;
    assert_eq!(reconciling.observed_generation, Some(1));
    bed.wait_for("orders", "DatabaseReady", ("Unknown", "DatabaseUnknown"))
        .await;

    let one = FakePod::start(&bed, "orders", Ipv4Addr::new(127, 90, 1, 1)).await;
    let two = FakePod::start(&bed, "orders", Ipv4Addr::new(127, 90, 1, 2)).await;
    say_rolled_out(&bed, "orders", 2, true).await;
    bed.wait_for("orders", "Ready", ("True", "Serving")).await;
    bed.wait_for("orders", "DatabaseReady", ("True", "Connected"))
        .await;
    let ready = bed
        .wait_for_pipeline("orders", "settled", |it| condition(it, "Reconciling").is_none())
        .await;
    assert_eq!(served(&ready), Some(1));
    let ingest = ready.status.unwrap().ingest.unwrap();
    assert_eq!((ingest.replicas, ingest.ready_replicas), (2, 2));
    let wait = [
        "wait",
        "--for=condition=Ready",
        "ipl/orders",
        "--namespace=shop",
        "--timeout=20s",
    ];
    bed.plane.kubectl(&wait).unwrap();
    bed.wait_for_quiet().await;
    roll(&bed, pipeline, &first_hash, [one, two]).await;
}

/// Until the pods with the new configuration have taken over, what is served is the former generation: `kubectl
/// wait` waits for what was applied, although records are accepted all the time.
async fn roll(bed: &Bed, mut pipeline: serde_json::Value, first_hash: &str, [one, two]: [FakePod; 2]) {
    pipeline["spec"]["ingest"]["requestLimits"] = json!({"timeout": "5s"});
    bed.apply(&pipeline).await;
    wait_for_deployment(bed, first_hash).await;
    say_rolled_out(bed, "orders", 2, false).await;
    bed.wait_for("orders", "Ready", ("True", "RollingOut")).await;
    let rolling = bed
        .wait_for_pipeline("orders", "is rolling", |it| {
            condition(it, "Reconciling").is_some()
        })
        .await;
    assert_eq!(served(&rolling), Some(1));
    assert!(
        bed.plane
            .kubectl(&[
                "wait",
                "--for=condition=Ready",
                "ipl/orders",
                "--namespace=shop",
                "--timeout=1s"
            ])
            .is_err()
    );
    // Nobody with the new configuration has said anything yet.
    bed.wait_for("orders", "DatabaseReady", ("Unknown", "DatabaseUnknown"))
        .await;

    one.remove(bed).await;
    two.remove(bed).await;
    let _new = FakePod::start(bed, "orders", Ipv4Addr::new(127, 90, 1, 3)).await;
    say_rolled_out(bed, "orders", 2, true).await;
    bed.wait_for("orders", "Ready", ("True", "Serving")).await;
    let rolled = bed
        .wait_for_pipeline("orders", "settled", |it| condition(it, "Reconciling").is_none())
        .await;
    assert_eq!(served(&rolled), Some(2));
    bed.wait_for_quiet().await;
}

#[tokio::test]
async fn says_the_worst_that_any_pod_says_of_the_database() {
    let bed = Bed::start().await;
    bed.apply(&example("orders")).await;
    wait_for_deployment(&bed, "").await;
    let one = FakePod::start(&bed, "orders", Ipv4Addr::new(127, 90, 2, 1)).await;
    let two = FakePod::start(&bed, "orders", Ipv4Addr::new(127, 90, 2, 2)).await;
    say_rolled_out(&bed, "orders", 2, true).await;
    bed.wait_for("orders", "Ready", ("True", "Serving")).await;

    one.say(DatabaseReason::Unreachable, "connection refused");
    bed.wait_for("orders", "DatabaseReady", ("False", "Unreachable"))
        .await;
    two.say(DatabaseReason::SecretNotFound, "Secret \"orders-db\" is missing");
    let database = bed
        .wait_for("orders", "DatabaseReady", ("False", "SecretNotFound"))
        .await;
    assert_eq!(database.message, "Secret \"orders-db\" is missing");
    bed.wait_for("orders", "Ready", ("False", "SecretNotFound")).await;
    bed.wait_for("orders", "Reconciling", ("True", "SecretNotFound"))
        .await;
    bed.wait_for("orders", "EndpointReady", ("True", "PodsReady"))
        .await;
    bed.wait_for_quiet().await;

    one.say(DatabaseReason::Connected, "");
    two.say(DatabaseReason::Connected, "");
    bed.wait_for("orders", "Ready", ("True", "Serving")).await;
    let healed = bed
        .wait_for_pipeline("orders", "settled", |it| condition(it, "Reconciling").is_none())
        .await;
    assert!(condition(&healed, "Stalled").is_none());
}
