//! Deleting a pipeline in each of the three ways, with the garbage collector of Kubernetes at work.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use e2e::control_plane::Options;
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment},
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use nomnom_crds::IngestionPipeline;
use support::{Bed, eventually, example};

async fn start() -> Bed {
    let mut bed = Bed::install(Options {
        controller_manager: true,
    })
    .await;
    bed.start_operator().await;
    bed
}

/// Applies the example and waits for its children; says the fingerprint of its receipt key.
async fn create(bed: &Bed, name: &str) -> String {
    bed.apply(&example(name)).await;
    bed.wait_for_object::<Deployment>(&format!("{name}-ingest"), |it| {
        it.spec.as_ref().unwrap().replicas == Some(2)
    })
    .await;
    let pipeline = bed
        .wait_for_pipeline(name, "a fingerprint", |it| {
            it.status.as_ref().unwrap().receipt_key_fingerprint.is_some()
        })
        .await;
    pipeline.status.unwrap().receipt_key_fingerprint.unwrap()
}

async fn delete(bed: &Bed, name: &str, parameters: &DeleteParams) {
    bed.api::<IngestionPipeline>()
        .delete(name, parameters)
        .await
        .unwrap();
    bed.wait_until_gone::<IngestionPipeline>(name).await;
}

async fn wait_until_all_is_gone(bed: &Bed, name: &str) {
    bed.wait_until_gone::<Deployment>(&format!("{name}-ingest")).await;
    bed.wait_until_gone::<Service>(name).await;
    bed.wait_until_gone::<ServiceAccount>(&format!("{name}-ingest"))
        .await;
    bed.wait_until_gone::<Secret>(&format!("{name}-receipt")).await;
    let ours = ListParams::default().labels(&format!("nomnom.dev/pipeline={name}"));
    let (config_maps, revisions): (Api<ConfigMap>, Api<ControllerRevision>) = (bed.api(), bed.api());
    eventually("no object left", || async {
        let config_maps = config_maps.list(&ours).await.unwrap().items;
        let revisions = revisions.list(&ours).await.unwrap().items;
        if config_maps.is_empty() && revisions.is_empty() {
            Ok(())
        } else {
            Err(format!("{config_maps:#?} {revisions:#?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn takes_everything_in_background_and_foreground() {
    let bed = start().await;
    for parameters in [DeleteParams::background(), DeleteParams::foreground()] {
        let former = create(&bed, "orders").await;
        delete(&bed, "orders", &parameters).await;
        wait_until_all_is_gone(&bed, "orders").await;
        // Another life is another key.
        assert_ne!(create(&bed, "orders").await, former);
        delete(&bed, "orders", &parameters).await;
        wait_until_all_is_gone(&bed, "orders").await;
    }
}

#[tokio::test]
async fn orphans_keep_their_key_and_are_taken_over() {
    let bed = start().await;
    let former = create(&bed, "orders").await;
    let deployment = bed.api::<Deployment>().get("orders-ingest").await.unwrap();
    delete(&bed, "orders", &DeleteParams::orphan()).await;
    let orphan = bed
        .wait_for_object::<Deployment>("orders-ingest", |it| it.owner_references().is_empty())
        .await;
    assert_eq!(orphan.uid(), deployment.uid());

    // Made anew, the pipeline takes over its pods and its key: ids that were given out stay valid.
    assert_eq!(create(&bed, "orders").await, former);
    let pipeline = bed.api::<IngestionPipeline>().get("orders").await.unwrap();
    let adopted = bed
        .wait_for_object::<Deployment>("orders-ingest", |it| !it.owner_references().is_empty())
        .await;
    assert_eq!(adopted.uid(), deployment.uid());
    assert_eq!(adopted.owner_references()[0].uid, pipeline.uid().unwrap());
    let secret = bed.api::<Secret>().get("orders-receipt").await.unwrap();
    assert_eq!(
        secret.labels()["nomnom.dev/pipeline-uid"],
        pipeline.uid().unwrap()
    );
    bed.wait_for_quiet().await;
    delete(&bed, "orders", &DeleteParams::background()).await;
    wait_until_all_is_gone(&bed, "orders").await;
}
