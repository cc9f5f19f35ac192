//! Pods as the operator sees them: an object, and a server at its address that says its state. What the runtime itself
//! does is the matter of the end-to-end tests.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::{Json, Router, extract::State, routing::get};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use nomnom_crds::runtime::{
    ADMIN_PORT, RuntimeState,
    state::{DatabaseReason, DatabaseState},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::{Bed, NAMESPACE};

type Shared = Arc<Mutex<RuntimeState>>;

/// A ready pod of a pipeline.
pub struct FakePod {
    name: String,
    state: Shared,
    server: JoinHandle<()>,
}

impl FakePod {
    /// A pod as the pipeline's Deployment describes it now.
    pub async fn start(bed: &Bed, pipeline: &str, address: Ipv4Addr) -> Self {
        let deployment: Deployment = bed.api().get(&format!("{pipeline}-ingest")).await.unwrap();
        let template = json!(deployment.spec.unwrap().template);
        let label = |key: &str| template["metadata"]["labels"][key].as_str().unwrap().to_owned();
        let state = Arc::new(Mutex::new(RuntimeState {
            config_hash: label("nomnom.dev/config-hash"),
            pipeline_uid: label("nomnom.dev/pipeline-uid"),
            version: "0.1.0".into(),
            receipt_key_fingerprint: String::new(),
            database: DatabaseState {
                ready: true,
                reason: DatabaseReason::Connected,
                message: String::new(),
                differences: Vec::new(),
                receipt_key_fingerprint: None,
            },
        }));
        let server = serve(address, state.clone()).await;
        let name = format!("{pipeline}-{}", address.to_string().replace('.', "-"));
        create(bed, &name, template, address).await;
        Self { name, state, server }
    }

    /// What the pod says of the database from now on.
    pub fn say(&self, reason: DatabaseReason, message: &str) {
        let mut state = self.state.lock().unwrap();
        state.database.ready = reason == DatabaseReason::Connected;
        state.database.reason = reason;
        message.clone_into(&mut state.database.message);
    }

    /// The pod is gone.
    pub async fn remove(self, bed: &Bed) {
        self.server.abort();
        bed.api::<Pod>()
            .delete(&self.name, &kube::api::DeleteParams::default().grace_period(0))
            .await
            .unwrap();
    }
}

impl Drop for FakePod {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(address: Ipv4Addr, state: Shared) -> JoinHandle<()> {
    let listener = tokio::net::TcpListener::bind(SocketAddr::from((address, ADMIN_PORT)))
        .await
        .unwrap();
    let say = |State(state): State<Shared>| async move { Json(state.lock().unwrap().clone()) };
    let router = Router::new().route("/state", get(say)).with_state(state);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() })
}

async fn create(bed: &Bed, name: &str, template: Value, address: Ipv4Addr) {
    let mut pod = template;
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["namespace"] = NAMESPACE.into();
    let pod: Pod = serde_json::from_value(pod).unwrap();
    let api = bed.api::<Pod>();
    api.create(&PostParams::default(), &pod).await.unwrap();
    let status = json!({"status": {
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}

/// Does what the Deployment's controller does at the end of a roll-out, or in the middle of it.
pub async fn say_rolled_out(bed: &Bed, pipeline: &str, ready: i32, is_complete: bool) {
    let api = bed.api::<Deployment>();
    let deployment = api.get(&format!("{pipeline}-ingest")).await.unwrap();
    let replicas = deployment.spec.as_ref().unwrap().replicas;
    let status = json!({"status": {
        "observedGeneration": deployment.metadata.generation,
        "replicas": replicas,
        "updatedReplicas": if is_complete { replicas } else { Some(0) },
        "readyReplicas": ready,
        "availableReplicas": ready,
    }});
    let name = deployment.name_any();
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
}
