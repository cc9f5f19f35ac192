//! The children of a pipeline on a real API server: they come, heal, are left alone where they are somebody else's, and are
//! not written without need. The operator has the rights of `config/rbac` and no others.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::time::Duration;

use e2e::control_plane::Options;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    events::v1::Event,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use nomnom_crds::IngestionPipeline;
use serde::Serialize;
use serde_json::{Value, json};
use support::{Bed, Child, NAMESPACE, condition, eventually, example};

async fn wait_for_children(bed: &Bed, name: &str) {
    bed.wait_for(name, "Accepted", ("True", "Valid")).await;
    bed.wait_for_object::<Deployment>(&format!("{name}-ingest"), |it| replicas(it) == Some(2))
        .await;
}

fn replicas(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.replicas
}

/// The only object of a kind.
async fn only<K: Child>(bed: &Bed) -> K {
    let mut objects = bed
        .api::<K>()
        .list(&ListParams::default().labels("nomnom.dev/pipeline"))
        .await
        .unwrap()
        .items;
    assert_eq!(objects.len(), 1, "{objects:#?}");
    objects.remove(0)
}

async fn patch<K: Child>(bed: &Bed, name: &str, patch: Value) -> K {
    bed.api()
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap()
}

fn is_paused(deployment: &Deployment) -> bool {
    let spec = deployment.spec.as_ref();
    spec.and_then(|spec| spec.paused).unwrap_or_default()
}

#[tokio::test]
async fn children_come_and_heal_and_then_nothing_is_written() {
    let bed = Bed::start().await;
    bed.apply(&example("orders")).await;
    wait_for_children(&bed, "orders").await;
    bed.wait_for("orders", "EndpointReady", ("False", "PodsNotReady"))
        .await;
    bed.wait_for_quiet().await;

    let config_map = only::<ConfigMap>(&bed).await.name_any();
    let revision = only::<ControllerRevision>(&bed).await.name_any();
    bed.delete_and_wait::<ConfigMap>(&config_map).await;
    bed.delete_and_wait::<ControllerRevision>(&revision).await;
    bed.delete_and_wait::<Service>("orders").await;
    bed.delete_and_wait::<ServiceAccount>("orders-ingest").await;
    bed.delete_and_wait::<Deployment>("orders-ingest").await;
    wait_for_children(&bed, "orders").await;

    patch::<Service>(
        &bed,
        "orders",
        json!({"spec": {"selector": {"nomnom.dev/pipeline": "other"}}}),
    )
    .await;
    patch::<ServiceAccount>(
        &bed,
        "orders-ingest",
        json!({"automountServiceAccountToken": true}),
    )
    .await;
    patch::<Deployment>(
        &bed,
        "orders-ingest",
        json!({"spec": {"replicas": 7, "paused": true}}),
    )
    .await;
    patch::<Deployment>(
        &bed,
        "orders-ingest",
        json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}}),
    )
    .await;
    bed.wait_for_object::<Service>("orders", |service| {
        let selector = service.spec.as_ref().unwrap().selector.as_ref().unwrap();
        selector["nomnom.dev/pipeline"] == "orders"
    })
    .await;
    bed.wait_for_object::<ServiceAccount>("orders-ingest", |it| {
        it.automount_service_account_token == Some(false)
    })
    .await;
    bed.wait_for_object::<Deployment>("orders-ingest", |it| {
        replicas(it) == Some(2) && !is_paused(it) && it.labels().contains_key("app.kubernetes.io/managed-by")
    })
    .await;
    bed.wait_for_quiet().await;

    let writes = bed.count("nomnom_operator_writes_total").await;
    let versions = bed.versions().await;
    bed.wait_for_passes(6).await;
    assert_eq!(bed.versions().await, versions);
    assert!(
        (bed.count("nomnom_operator_writes_total").await - writes).abs() < 0.5,
        "a request without need"
    );
}

#[tokio::test]
async fn an_edit_rolls_out_and_leaves_no_configuration_behind() {
    let bed = Bed::start().await;
    let mut pipeline = example("orders");
    bed.apply(&pipeline).await;
    wait_for_children(&bed, "orders").await;
    let first = only::<ConfigMap>(&bed).await;
    // Nothing changes for the pods: no other configuration.
    pipeline["spec"]["ingest"]["autoscaling"]["minReplicas"] = 5.into();
    bed.apply(&pipeline).await;
    bed.wait_for_object::<Deployment>("orders-ingest", |it| replicas(it) == Some(5))
        .await;
    pipeline["spec"]["ingest"]["autoscaling"]["minReplicas"] = 1.into();
    bed.apply(&pipeline).await;
    bed.wait_for_object::<Deployment>("orders-ingest", |it| replicas(it) == Some(1))
        .await;
    assert_eq!(only::<ConfigMap>(&bed).await.name_any(), first.name_any());
    // Without a ReplicaSet that names it, the former configuration goes. At most three specs are kept.
    for timeout in ["11s", "12s", "13s", "14s"] {
        pipeline["spec"]["ingest"]["requestLimits"] = json!({"timeout": timeout});
        bed.apply(&pipeline).await;
        bed.wait_for_pipeline("orders", "the newest timeout", |it| {
            let resolved = it.status.as_ref().unwrap().resolved.as_ref();
            resolved.is_some_and(|resolved| resolved.timeout.to_string() == timeout)
        })
        .await;
    }
    bed.wait_until_gone::<ConfigMap>(&first.name_any()).await;
    bed.wait_for_quiet().await;
    only::<ConfigMap>(&bed).await;
    let revisions = bed
        .api::<ControllerRevision>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(revisions.items.len(), 3);
    assert_eq!(
        revisions.iter().map(|it| it.revision).max(),
        bed.api::<IngestionPipeline>()
            .get("orders")
            .await
            .unwrap()
            .metadata
            .generation
    );
}

#[tokio::test]
async fn a_bad_edit_keeps_what_runs_and_heals_it() {
    let mut bed = Bed::start().await;
    let good = example("orders");
    bed.apply(&good).await;
    wait_for_children(&bed, "orders").await;
    bed.wait_for_quiet().await;
    let config_map = only::<ConfigMap>(&bed).await.name_any();
    let deployment = bed.api::<Deployment>().get("orders-ingest").await.unwrap();

    let mut twice = good.clone();
    twice["spec"]["records"][0]["columns"][1]["name"] = "order_key".into();
    let mut above_limit = good.clone();
    above_limit["spec"]["ingest"]["resources"] =
        json!({"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}});
    for (bad, reason, message) in [
        (twice, "InvalidSpec", "spec.records[0].columns[1].name"),
        (
            above_limit,
            "ChildRejected",
            "must be less than or equal to memory limit",
        ),
    ] {
        bed.apply(&bad).await;
        let accepted = bed.wait_for("orders", "Accepted", ("False", reason)).await;
        assert!(accepted.message.contains(message), "{}", accepted.message);
        let pipeline = bed
            .wait_for_pipeline("orders", "is stalled", |it| condition(it, "Stalled").is_some())
            .await;
        assert!(condition(&pipeline, "Reconciling").is_none());
        assert_eq!(
            condition(&pipeline, "Ready").unwrap().observed_generation,
            Some(1)
        );
        bed.delete_and_wait::<ConfigMap>(&config_map).await;
        bed.kill_operator().await;
        bed.start_operator().await;
        bed.delete_and_wait::<Deployment>("orders-ingest").await;
        let healed = bed
            .wait_for_object::<Deployment>("orders-ingest", |it| replicas(it) == Some(2))
            .await;
        assert_eq!(
            healed.spec.unwrap().template,
            deployment.spec.clone().unwrap().template
        );
        bed.wait_for_quiet().await;
    }
    bed.apply(&good).await;
    bed.wait_for("orders", "Accepted", ("True", "Valid")).await;
    bed.wait_for_pipeline("orders", "is no longer stalled", |it| {
        condition(it, "Stalled").is_none()
    })
    .await;
    assert_eq!(only::<ConfigMap>(&bed).await.name_any(), config_map);
}

#[tokio::test]
async fn a_spec_that_is_wrong_from_the_start_makes_nothing() {
    let bed = Bed::start().await;
    let mut pipeline = example("orders");
    pipeline["spec"]["records"][1]["table"] = "Orders".into();
    bed.apply(&pipeline).await;
    bed.wait_for("orders", "Stalled", ("True", "InvalidSpec")).await;
    bed.wait_for("orders", "Ready", ("False", "InvalidSpec")).await;
    bed.wait_for_quiet().await;
    let versions = bed.versions().await;
    let others = versions
        .keys()
        .filter(|name| !name.starts_with("IngestionPipeline") && !name.starts_with("Event"));
    assert_eq!(others.count(), 0, "{versions:#?}");
}

async fn make<K: Child + Serialize>(bed: &Bed, object: Value) -> K {
    let object: K = serde_json::from_value(object).unwrap();
    bed.api().create(&PostParams::default(), &object).await.unwrap()
}

/// Whatever the kind: the object is as before, a condition and an event say so, and all goes on once it is gone.
async fn foreign<K: Child + Serialize + PartialEq>(bed: &Bed, pipeline: &str, object: Value) {
    let foreign: K = make(bed, object).await;
    bed.apply(&example(pipeline)).await;
    let reconciling = bed
        .wait_for(pipeline, "Reconciling", ("True", "ForeignObject"))
        .await;
    assert!(
        reconciling
            .message
            .contains(&format!("{} {NAMESPACE}/{}", K::kind(&()), foreign.name_any()))
    );
    eventually("an event", || async {
        let events = bed.api::<Event>().list(&ListParams::default()).await.unwrap();
        let is_it = |event: &Event| {
            event.reason.as_deref() == Some("ForeignObject")
                && event.regarding.as_ref().unwrap().name.as_deref() == Some(pipeline)
        };
        events
            .iter()
            .find(|event| is_it(event))
            .map(|_| ())
            .ok_or_else(|| format!("{events:#?}"))
    })
    .await;
    bed.wait_for_passes(3).await;
    let now = bed.api::<K>().get(&foreign.name_any()).await.unwrap();
    assert_eq!(now.resource_version(), foreign.resource_version(), "{now:#?}");
    bed.api::<K>()
        .delete(&foreign.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    wait_for_children(bed, pipeline).await;
    bed.wait_for_object::<K>(&foreign.name_any(), |it| {
        it.labels().contains_key("nomnom.dev/pipeline")
    })
    .await;
}

#[tokio::test]
async fn what_is_somebody_elses_is_not_touched() {
    let mut bed = Bed::start().await;
    foreign_config_map(&mut bed).await;
    let selector = json!({"matchLabels": {"app": "mine"}});
    let pods = json!({"metadata": {"labels": {"app": "mine"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}});
    let deployment =
        json!({"metadata": {"name": "b-ingest"}, "spec": {"selector": selector, "template": pods}});
    foreign::<Service>(
        &bed,
        "a",
        json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}}),
    )
    .await;
    foreign::<Deployment>(&bed, "b", deployment).await;
    foreign::<ServiceAccount>(&bed, "c", json!({"metadata": {"name": "c-ingest"}})).await;
    foreign::<Secret>(
        &bed,
        "d",
        json!({"metadata": {"name": "d-receipt"}, "stringData": {"key": "mine"}}),
    )
    .await;
}

/// The name of a ConfigMap holds the hash of a content with the pipeline's uid: only while the operator is down can somebody
/// be faster.
async fn foreign_config_map(bed: &mut Bed) {
    bed.apply(&example("first")).await;
    wait_for_children(bed, "first").await;
    let name = only::<ConfigMap>(bed).await.name_any();
    bed.kill_operator().await;
    bed.api::<ConfigMap>()
        .delete(&name, &DeleteParams::default())
        .await
        .unwrap();
    let made: ConfigMap = make(bed, json!({"metadata": {"name": name}})).await;
    bed.start_operator().await;
    bed.wait_for("first", "Reconciling", ("True", "ForeignObject"))
        .await;
    bed.wait_for_passes(3).await;
    let now = bed.api::<ConfigMap>().get(&name).await.unwrap();
    assert_eq!(now.resource_version(), made.resource_version());
}

#[tokio::test]
async fn a_receipt_key_is_never_replaced_without_a_word() {
    let bed = Bed::start().await;
    bed.apply(&example("orders")).await;
    wait_for_children(&bed, "orders").await;
    let has_fingerprint =
        |it: &IngestionPipeline| it.status.as_ref().unwrap().receipt_key_fingerprint.is_some();
    let pipeline = bed
        .wait_for_pipeline("orders", "a fingerprint", has_fingerprint)
        .await;
    let known = pipeline.status.unwrap().receipt_key_fingerprint.unwrap();
    let secret = bed.api::<Secret>().get("orders-receipt").await.unwrap();
    let key = secret.data.as_ref().unwrap()["key"].clone();
    assert_eq!((key.0.len(), secret.immutable), (32, Some(true)));
    assert_eq!(nomnom_crds::runtime::content_hash(&key.0), known);
    assert_eq!(secret.metadata.owner_references, None);
    assert_eq!(
        secret.labels().get("nomnom.dev/pipeline-uid"),
        pipeline.metadata.uid.as_ref()
    );

    // Gone: said, not made anew, and the pods are left alone.
    let deployment = bed.api::<Deployment>().get("orders-ingest").await.unwrap();
    bed.api::<Secret>()
        .delete("orders-receipt", &DeleteParams::default())
        .await
        .unwrap();
    for (type_, status) in [
        ("EndpointReady", "False"),
        ("Stalled", "True"),
        ("Ready", "False"),
    ] {
        bed.wait_for("orders", type_, (status, "ReceiptKeyLost")).await;
    }
    bed.wait_for_quiet().await;
    assert_eq!(bed.api::<Secret>().get_opt("orders-receipt").await.unwrap(), None);

    // Another key under our labels: still said.
    let mut other = secret.clone();
    other.metadata.resource_version = None;
    other.metadata.uid = None;
    other
        .data
        .as_mut()
        .unwrap()
        .insert("key".into(), k8s_openapi::ByteString(vec![7; 32]));
    bed.api().create(&PostParams::default(), &other).await.unwrap();
    bed.wait_for_passes(3).await;
    let stalled = bed
        .wait_for("orders", "Stalled", ("True", "ReceiptKeyLost"))
        .await;
    assert!(stalled.message.contains("another key"), "{}", stalled.message);
    let now = bed.api::<Deployment>().get("orders-ingest").await.unwrap();
    assert_eq!(now.resource_version(), deployment.resource_version());

    // The key brought back: all is well again.
    bed.api::<Secret>()
        .delete("orders-receipt", &DeleteParams::default())
        .await
        .unwrap();
    other.data = secret.data.clone();
    bed.api().create(&PostParams::default(), &other).await.unwrap();
    bed.wait_for_pipeline("orders", "no longer stalled", |it| {
        condition(it, "Stalled").is_none()
    })
    .await;

    regenerate(&bed, &known).await;
}

/// An admin's word: another key, and pods that use it.
async fn regenerate(bed: &Bed, known: &str) {
    bed.api::<Secret>()
        .delete("orders-receipt", &DeleteParams::default())
        .await
        .unwrap();
    bed.wait_for("orders", "Stalled", ("True", "ReceiptKeyLost"))
        .await;
    let annotation =
        |value: &str| json!({"metadata": {"annotations": {"nomnom.dev/regenerate-receipt-key": value}}});
    patch::<IngestionPipeline>(bed, "orders", annotation("0123456789abcdef")).await;
    bed.wait_for_passes(3).await;
    assert_eq!(bed.api::<Secret>().get_opt("orders-receipt").await.unwrap(), None);
    patch::<IngestionPipeline>(bed, "orders", annotation(known)).await;
    let pipeline = bed
        .wait_for_pipeline("orders", "another fingerprint", |it| {
            it.status.as_ref().unwrap().receipt_key_fingerprint.as_deref() != Some(known)
        })
        .await;
    let new = pipeline.status.unwrap().receipt_key_fingerprint.unwrap();
    bed.wait_for_object::<Deployment>("orders-ingest", |it| {
        let template = it.spec.as_ref().unwrap().template.metadata.clone().unwrap();
        template.annotations.unwrap()["nomnom.dev/receipt-key-fingerprint"] == new
    })
    .await;
    bed.wait_for_quiet().await;
}

/// Killed at many moments, the operator converges to what one run makes.
#[tokio::test]
async fn a_restart_midway_converges() {
    let mut bed = Bed::install(Options::default()).await;
    bed.apply(&example("orders")).await;
    for milliseconds in [20, 60, 100, 140, 180, 220, 260, 300, 350, 400, 500, 600] {
        bed.start_operator().await;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        bed.kill_operator().await;
    }
    bed.start_operator().await;
    wait_for_children(&bed, "orders").await;
    bed.wait_for_quiet().await;
    let pipeline = bed.api::<IngestionPipeline>().get("orders").await.unwrap();
    let status = pipeline.status.as_ref().unwrap();
    assert_eq!(
        status.url.as_deref(),
        Some("http://orders.shop.svc:8080/api/ingest/message")
    );
    let secret = bed.api::<Secret>().get("orders-receipt").await.unwrap();
    let fingerprint = nomnom_crds::runtime::content_hash(&secret.data.unwrap()["key"].0);
    assert_eq!(status.receipt_key_fingerprint.as_ref(), Some(&fingerprint));
    only::<ConfigMap>(&bed).await;
    only::<ControllerRevision>(&bed).await;
}

/// An object stored under a definition that this release does not know stops nobody else's.
#[tokio::test]
async fn an_unreadable_pipeline_is_invalid_and_no_more() {
    let bed = Bed::start().await;
    bed.apply(&example("good")).await;
    wait_for_children(&bed, "good").await;
    let mut definition = nomnom_crds::custom_resource_definition();
    let mut schema = json!(definition.spec.versions[0].schema);
    schema["openAPIV3Schema"]["properties"]["spec"]["properties"]["mode"]["enum"] =
        json!(["Sync", "Sideways"]);
    definition.spec.versions[0].schema = serde_json::from_value(schema).unwrap();
    bed.plane.apply_crd(&definition).await.unwrap();
    let mut other = example("other");
    other["spec"]["mode"] = "Sideways".into();
    let dynamic: Api<kube::api::DynamicObject> = Api::namespaced_with(
        bed.client.clone(),
        NAMESPACE,
        &kube::core::ApiResource::erase::<IngestionPipeline>(&()),
    );
    eventually("the new definition", || async {
        let applied = dynamic
            .patch(
                "other",
                &PatchParams::apply("user").force(),
                &Patch::Apply(&other),
            )
            .await;
        applied.map_err(|error| error.to_string())
    })
    .await;
    eventually("a condition", || async {
        let text = json!(dynamic.get("other").await.unwrap().data["status"]["conditions"]).to_string();
        if text.contains("Sideways") && text.contains("InvalidSpec") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
    bed.delete_and_wait::<Deployment>("good-ingest").await;
}
