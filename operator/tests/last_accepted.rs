//! What is in use stays in use, on a real API server: whoever refuses the written spec, whatever becomes of the record
//! of the last accepted one, and whichever release wrote it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{ConfigMap, PodTemplateSpec, Secret, Service},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use nomnom_crds::IngestionPipeline;
use serde_json::{Value, json};
use support::{Bed, Child, condition, eventually, example};

/// The example with another timeout, which is another configuration.
fn with_timeout(timeout: &str) -> Value {
    let mut pipeline = example("orders");
    pipeline["spec"]["ingest"]["requestLimits"] = json!({"timeout": timeout});
    pipeline
}

/// A spec that contradicts itself.
fn bad() -> Value {
    let mut pipeline = with_timeout("33s");
    pipeline["spec"]["records"][0]["columns"][1]["name"] = "order_key".into();
    pipeline
}

/// Applies a good spec, waits for its roll-out, and says the name of its ControllerRevision.
async fn roll_out(bed: &Bed, timeout: &str) -> String {
    bed.apply(&with_timeout(timeout)).await;
    let pipeline = bed
        .wait_for_pipeline("orders", &format!("serves {timeout}"), |it| {
            let resolved = it.status.as_ref().unwrap().resolved.as_ref();
            resolved.is_some_and(|resolved| resolved.timeout.to_string() == timeout)
        })
        .await;
    bed.wait_for("orders", "Accepted", ("True", "Valid")).await;
    pipeline.status.unwrap().ingest.unwrap().revision
}

async fn template(bed: &Bed) -> PodTemplateSpec {
    let deployment = bed.api::<Deployment>().get("orders-ingest").await.unwrap();
    deployment.spec.unwrap().template
}

/// A policy of the cluster, in force when this returns: `refused` is a patch of `name` that it refuses.
async fn refuse<K: Child>(bed: &Bed, rule: Value, expression: &str, (name, refused): (&str, Value)) {
    let policy: ValidatingAdmissionPolicy = serde_json::from_value(json!({
        "metadata": {"name": "refuse"},
        "spec": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": expression, "message": "not in this cluster", "reason": "Forbidden"}],
        },
    }))
    .unwrap();
    let binding: ValidatingAdmissionPolicyBinding = serde_json::from_value(json!({
        "metadata": {"name": "refuse"},
        "spec": {"policyName": "refuse", "validationActions": ["Deny"]},
    }))
    .unwrap();
    let parameters = PostParams::default();
    Api::all(bed.client.clone())
        .create(&parameters, &policy)
        .await
        .unwrap();
    Api::all(bed.client.clone())
        .create(&parameters, &binding)
        .await
        .unwrap();
    let dry_run = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    eventually("the policy", || async {
        let patched = bed
            .api::<K>()
            .patch(name, &dry_run, &Patch::Merge(&refused))
            .await;
        match patched {
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn refuse_no_more(bed: &Bed) {
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(bed.client.clone());
    policies.delete("refuse", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn what_a_policy_refuses_leaves_the_last_spec_in_use() {
    let mut bed = Bed::start().await;
    roll_out(&bed, "11s").await;
    let before = template(&bed).await;
    refuse::<Deployment>(
        &bed,
        json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"], "operations": ["CREATE", "UPDATE"]}),
        "object.spec.template.spec.terminationGracePeriodSeconds < 60",
        (
            "orders-ingest",
            json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 60}}}}),
        ),
    )
    .await;
    bed.apply(&with_timeout("50s")).await;
    let accepted = bed.wait_for("orders", "Accepted", ("False", "Forbidden")).await;
    assert!(
        accepted.message.contains("not in this cluster"),
        "{}",
        accepted.message
    );
    let pipeline = bed
        .wait_for_pipeline("orders", "Reconciling", |it| {
            condition(it, "Reconciling").is_some()
        })
        .await;
    assert_eq!(condition(&pipeline, "Reconciling").unwrap().reason, "Forbidden");
    assert_eq!(condition(&pipeline, "Stalled"), None);

    bed.delete_and_wait::<Service>("orders").await;
    bed.kill_operator().await;
    bed.delete::<Deployment>("orders-ingest").await;
    bed.start_operator().await;
    bed.wait_for_object::<Deployment>("orders-ingest", |_| true).await;
    assert_eq!(template(&bed).await, before);
    bed.wait_for_quiet().await;

    refuse_no_more(&bed).await;
    bed.wait_for("orders", "Accepted", ("True", "Valid")).await;
    bed.wait_for_object::<Deployment>("orders-ingest", |it| {
        let pod = it.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        pod.termination_grace_period_seconds > Some(60)
    })
    .await;
}

#[tokio::test]
async fn a_deleted_record_leads_back_to_no_older_spec() {
    let mut bed = Bed::start().await;
    roll_out(&bed, "11s").await;
    let second = roll_out(&bed, "12s").await;
    bed.wait_for_quiet().await;
    let before = template(&bed).await;

    // Who has it in mind writes it anew.
    bed.apply(&bad()).await;
    bed.wait_for("orders", "Accepted", ("False", "InvalidSpec")).await;
    bed.delete_and_wait::<ControllerRevision>(&second).await;
    bed.delete_and_wait::<Deployment>("orders-ingest").await;
    assert_eq!(template(&bed).await, before);

    // Who comes anew leaves everything as it is, and says so.
    bed.kill_operator().await;
    bed.delete::<ControllerRevision>(&second).await;
    bed.start_operator().await;
    let said = format!("ControllerRevision shop/{second} is gone");
    let pipeline = bed
        .wait_for_pipeline("orders", &said, |it| {
            condition(it, "Stalled").is_some_and(|stalled| stalled.message.contains(&said))
        })
        .await;
    bed.wait_for_quiet().await;
    assert_eq!(template(&bed).await, before);
    let status = pipeline.status.as_ref().unwrap();
    assert_eq!(status.ingest.as_ref().unwrap().revision, second);
    assert!(status.url.is_some() && status.resolved.is_some());
    assert_eq!(condition(&pipeline, "Stalled").unwrap().reason, "InvalidSpec");

    assert_ne!(roll_out(&bed, "13s").await, second);
}

/// Back to a spec that is known needs no dry run, only its number anew; the pods wait for that.
#[tokio::test]
async fn pods_wait_until_their_spec_is_recorded() {
    let bed = Bed::start().await;
    let first = roll_out(&bed, "11s").await;
    let second = roll_out(&bed, "12s").await;
    bed.wait_for_quiet().await;
    let before = template(&bed).await;
    refuse::<ControllerRevision>(
        &bed,
        json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["controllerrevisions"], "operations": ["UPDATE"]}),
        "false",
        (&first, json!({"metadata": {"annotations": {"a": "b"}}})),
    )
    .await;
    bed.apply(&with_timeout("11s")).await;
    bed.wait_for("orders", "Reconciling", ("True", "Forbidden")).await;
    bed.wait_for_passes(3).await;
    assert_eq!(template(&bed).await, before);

    // A bad edit now finds in use what was in use, and heals it.
    bed.apply(&bad()).await;
    bed.wait_for("orders", "Accepted", ("False", "InvalidSpec")).await;
    bed.delete_and_wait::<Deployment>("orders-ingest").await;
    assert_eq!(template(&bed).await, before);
    let pipeline = bed.api::<IngestionPipeline>().get("orders").await.unwrap();
    assert_eq!(pipeline.status.unwrap().ingest.unwrap().revision, second);

    // The API server goes on refusing for a moment.
    refuse_no_more(&bed).await;
    bed.apply(&with_timeout("11s")).await;
    bed.wait_for_pipeline("orders", "the first spec is in use again", |it| {
        let ingest = it.status.as_ref().unwrap().ingest.as_ref();
        ingest.is_some_and(|ingest| ingest.revision == first)
    })
    .await;
}

/// The pods know the key that they were started with, also where the status does not.
#[tokio::test]
async fn a_status_without_a_fingerprint_replaces_no_key() {
    let mut bed = Bed::start().await;
    roll_out(&bed, "11s").await;
    bed.wait_for_quiet().await;
    bed.kill_operator().await;
    let nothing = json!({"status": {"receiptKeyFingerprint": null}});
    let pipeline = bed
        .api::<IngestionPipeline>()
        .patch_status("orders", &PatchParams::default(), &Patch::Merge(&nothing))
        .await
        .unwrap();
    assert_eq!(pipeline.status.unwrap().receipt_key_fingerprint, None);
    bed.delete::<Secret>("orders-receipt").await;
    bed.start_operator().await;
    bed.wait_for("orders", "Stalled", ("True", "ReceiptKeyLost"))
        .await;
    assert_eq!(bed.api::<Secret>().get_opt("orders-receipt").await.unwrap(), None);
    let annotations = template(&bed).await.metadata.unwrap().annotations.unwrap();
    let pipeline = bed.api::<IngestionPipeline>().get("orders").await.unwrap();
    assert_eq!(
        pipeline.status.unwrap().receipt_key_fingerprint.as_ref(),
        annotations.get("nomnom.dev/receipt-key-fingerprint")
    );
    let config_maps = bed
        .api::<ConfigMap>()
        .list(&ListParams::default().labels("nomnom.dev/pipeline"))
        .await
        .unwrap();
    assert_eq!(config_maps.items.len(), 1);
}
