//! The API server of the tests is a real one: RBAC holds, objects survive it, and nothing is left behind.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use e2e::{ControlPlane, control_plane::Options};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;

fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str) -> ConfigMap {
    object(json!({"metadata": {"name": name}}))
}

/// Polls until the object is gone.
async fn wait_until_gone(api: &Api<ConfigMap>, name: &str) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while api.get_opt(name).await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "{name} is still there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn serves_the_crd_and_survives_an_outage() {
    let mut plane = ControlPlane::start().await.unwrap();
    plane.apply_crds().await.unwrap();
    let listed = plane.kubectl(&["get", "ingestionpipelines", "--all-namespaces", "-o", "name"]);
    assert_eq!(listed.unwrap(), "");
    assert!(plane.kubectl(&["get", "nothing-of-this-kind"]).is_err());

    let config_maps: Api<ConfigMap> = Api::namespaced(plane.client(), "default");
    config_maps
        .create(&PostParams::default(), &config_map("kept"))
        .await
        .unwrap();
    plane.stop();
    assert!(config_maps.get("kept").await.is_err());
    plane.start_again().await.unwrap();
    config_maps.get("kept").await.unwrap();
}

#[tokio::test]
async fn gives_the_rights_of_rbac_and_no_more() {
    let plane = ControlPlane::start().await.unwrap();
    let role = [
        "create",
        "role",
        "reader",
        "--verb=get,list",
        "--resource=configmaps",
    ];
    plane.kubectl(&role).unwrap();
    plane.kubectl(&["create", "serviceaccount", "robot"]).unwrap();
    let binding = ["create", "rolebinding", "reader", "--role=reader"];
    plane
        .kubectl(
            &[
                binding.as_slice(),
                &["--group=readers", "--serviceaccount=default:robot"],
            ]
            .concat(),
        )
        .unwrap();

    let reads = |client: Client| async move {
        let config_maps: Api<ConfigMap> = Api::namespaced(client, "default");
        let denied = config_maps.create(&PostParams::default(), &config_map("x")).await;
        assert!(matches!(denied, Err(kube::Error::Api(status)) if status.code == 403));
        config_maps.list(&ListParams::default()).await.is_ok()
    };
    assert!(reads(plane.client_as("anna", &["readers"]).await.unwrap()).await);
    assert!(reads(plane.service_account_client("default", "robot").await.unwrap()).await);
    assert!(!reads(plane.client_as("otto", &[]).await.unwrap()).await);
}

#[tokio::test]
async fn collects_what_a_deleted_owner_leaves() {
    let options = Options {
        controller_manager: true,
    };
    let plane = ControlPlane::start_with(options).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(plane.client(), "default");
    let owner: Deployment = object(json!({
        "metadata": {"name": "owner"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "owner"}},
            "template": {
                "metadata": {"labels": {"app": "owner"}},
                "spec": {"containers": [{"name": "main", "image": "none"}]},
            },
        },
    }));
    let owner = deployments.create(&PostParams::default(), &owner).await.unwrap();
    let child: ConfigMap = object(json!({"metadata": {"name": "child", "ownerReferences": [{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "owner", "uid": owner.metadata.uid.unwrap(),
    }]}}));
    let config_maps: Api<ConfigMap> = Api::namespaced(plane.client(), "default");
    config_maps.create(&PostParams::default(), &child).await.unwrap();
    deployments
        .delete("owner", &DeleteParams::background())
        .await
        .unwrap();
    wait_until_gone(&config_maps, "child").await;
}

#[tokio::test]
async fn leaves_no_process_and_no_file_behind() {
    let plane = ControlPlane::start().await.unwrap();
    let kubeconfig = plane.kubeconfig();
    let directory = kubeconfig.parent().unwrap().parent().unwrap().to_path_buf();
    let of_this_plane = || {
        let path = directory.to_string_lossy().into_owned();
        std::fs::read_dir("/proc").unwrap().filter(move |process| {
            let command = process.as_ref().unwrap().path().join("cmdline");
            std::fs::read(command).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&path))
        })
    };
    assert_eq!(of_this_plane().count(), 2);
    drop(plane);
    assert_eq!(of_this_plane().count(), 0);
    assert!(!directory.exists());
}
