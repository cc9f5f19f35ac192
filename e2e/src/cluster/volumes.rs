//! Volumes for claims of the default StorageClass: directories of the machine, as PersistentVolumes of type `local`.
//!
//! Kubernetes' own host-path provisioner makes volumes that only root can write, since the kubelet does not
//! apply `fsGroup` to them; it does to `local` ones.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::layout::NODE;
use crate::kubernetes;

/// The hidden command of the `cluster` program that runs `provision`.
pub const COMMAND: &str = "provision-volumes";
/// Where it accepts connections, and so says that it watches; loopback of the cluster's network.
pub const PORT: u16 = 10300;
/// The default StorageClass.
const CLASS: &str = "standard";
/// Whose claims are whose: Kubernetes writes it on each claim that waits for a volume.
const PROVISIONER: &str = "nomnom.dev/local";
/// Where the volumes are, as pods' mounts see them.
const DIRECTORY: &str = "/run/volumes";

/// The default StorageClass.
pub fn objects() -> Vec<Value> {
    vec![json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    })]
}

/// Makes a volume for every claim that asks for one, and removes what was released. Never returns unless it fails.
pub async fn provision(kubeconfig: &Path) -> Result<()> {
    let client = kubernetes::client(kubeconfig).await?;
    let _answers = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))
        .await
        .context("failed to listen")?;
    tokio::try_join!(make_volumes(client.clone()), remove_volumes(client))?;
    Ok(())
}

async fn make_volumes(client: Client) -> Result<()> {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let claims: Api<PersistentVolumeClaim> = Api::all(client);
    let mut changes = std::pin::pin!(
        watcher(claims, watcher::Config::default())
            .default_backoff()
            .touched_objects()
    );
    while let Some(change) = futures::StreamExt::next(&mut changes).await {
        match change {
            Ok(claim) if asks_for_volume(&claim) => make_volume(&volumes, &claim).await?,
            Ok(_) => (),
            Err(error) => eprintln!("failed to watch claims: {error}"),
        }
    }
    Ok(())
}

async fn remove_volumes(client: Client) -> Result<()> {
    let volumes: Api<PersistentVolume> = Api::all(client);
    let changes = watcher(volumes.clone(), watcher::Config::default())
        .default_backoff()
        .touched_objects();
    let mut changes = std::pin::pin!(changes);
    while let Some(change) = futures::StreamExt::next(&mut changes).await {
        match change {
            Ok(volume) if is_released(&volume) => remove_volume(&volumes, &volume).await?,
            Ok(_) => (),
            Err(error) => eprintln!("failed to watch volumes: {error}"),
        }
    }
    Ok(())
}

/// Kubernetes names the provisioner on a claim when a pod needs it and a node was chosen.
fn asks_for_volume(claim: &PersistentVolumeClaim) -> bool {
    let ours = claim
        .annotations()
        .get("volume.kubernetes.io/storage-provisioner")
        .is_some_and(|name| name == PROVISIONER);
    let bound = claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_some());
    ours && !bound
        && claim.metadata.deletion_timestamp.is_none()
        && claim
            .annotations()
            .contains_key("volume.kubernetes.io/selected-node")
}

fn is_released(volume: &PersistentVolume) -> bool {
    let ours = volume
        .annotations()
        .get("pv.kubernetes.io/provisioned-by")
        .is_some_and(|name| name == PROVISIONER);
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    ours && phase == Some("Released") && policy == Some("Delete")
}

async fn make_volume(volumes: &Api<PersistentVolume>, claim: &PersistentVolumeClaim) -> Result<()> {
    let volume = build_volume(claim)?;
    let directory = directory(&volume.name_any());
    fs::create_dir_all(&directory)?;
    // Pods run as any user; with `fsGroup` the kubelet narrows this down.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
    match volumes.create(&PostParams::default(), &volume).await {
        Ok(_) => println!(
            "made {} for {}/{}",
            volume.name_any(),
            claim.namespace().unwrap_or_default(),
            claim.name_any()
        ),
        Err(kube::Error::Api(status)) if status.code == 409 => (),
        Err(error) => return Err(error).with_context(|| format!("failed to create {}", volume.name_any())),
    }
    Ok(())
}

async fn remove_volume(volumes: &Api<PersistentVolume>, volume: &PersistentVolume) -> Result<()> {
    let name = volume.name_any();
    let directory = directory(&name);
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("failed to remove {}", directory.display()))?;
    }
    match volumes.delete(&name, &DeleteParams::default()).await {
        Ok(_) => println!("removed {name}"),
        Err(kube::Error::Api(status)) if status.code == 404 => (),
        Err(error) => return Err(error).with_context(|| format!("failed to delete {name}")),
    }
    Ok(())
}

fn directory(volume: &str) -> PathBuf {
    Path::new(DIRECTORY).join(volume)
}

fn build_volume(claim: &PersistentVolumeClaim) -> Result<PersistentVolume> {
    let spec = claim.spec.as_ref().context("a claim without spec")?;
    let uid = claim.metadata.uid.as_deref().context("a claim without uid")?;
    let name = format!("pvc-{uid}");
    let size = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref()?.get("storage"));
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
        "spec": {
            "accessModes": spec.access_modes,
            "capacity": {"storage": size},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace(),
                "name": claim.name_any(),
                "uid": uid,
            },
            "local": {"path": directory(&name)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]},
            ]}]}},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec.storage_class_name,
        },
    });
    Ok(serde_json::from_value(volume)?)
}
