//! How many pods there are. `spec.replicas` is in no apply, since an apply that leaves it out later resets it to 1; it is
//! set through `/scale` alone.

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::Problem;
use crate::{context::Context, desired::labels, kube_api::apply::RequestError};

/// Gives a Deployment the number of pods that the spec asks for.
///
/// There is no autoscaler yet that owns the number, so that it is exactly the least: somebody who lowers `minReplicas`
/// wants fewer pods. Under an autoscaler this step only fills in max(current, least, 1).
pub async fn scale(context: &Context, deployment: &mut Deployment, replicas: i32) -> Result<(), Problem> {
    let current = deployment.spec.as_ref().and_then(|spec| spec.replicas);
    if current == Some(replicas) {
        return Ok(());
    }
    let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), &namespace);
    let parameters = PatchParams {
        field_manager: Some(labels::OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    let patch = json!({"metadata": {"uid": deployment.metadata.uid}, "spec": {"replicas": replicas}});
    api.patch_scale(&name, &parameters, &Patch::Merge(&patch))
        .await
        .map_err(|error| RequestError::new::<Deployment>("scale", &namespace, &name, error))?;
    context.metrics.count_write("Deployment", "scale");
    deployment.spec.get_or_insert_default().replicas = Some(replicas);
    // The Deployment has another generation now, which its controller has not seen: the roll-out is not complete.
    deployment.metadata.generation = deployment.metadata.generation.map(|generation| generation + 1);
    Ok(())
}
