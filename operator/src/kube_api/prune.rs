//! Deletes one object that is no longer wanted: by uid, so that another object which took its name stays.

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Preconditions},
};
use serde::de::DeserializeOwned;

use super::apply::RequestError;

/// Deletes the object that was observed, and no other. An object that is gone or changed is no error: the next look
/// decides anew.
pub async fn delete<K>(client: Client, observed: &ObjectMeta) -> Result<(), RequestError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let namespace = observed.namespace.as_deref().unwrap_or_default();
    let name = observed.name.as_deref().unwrap_or_default();
    let parameters = DeleteParams::background().preconditions(Preconditions {
        uid: observed.uid.clone(),
        resource_version: observed.resource_version.clone(),
    });
    match Api::<K>::namespaced(client, namespace)
        .delete(name, &parameters)
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(RequestError::new::<K>("delete", namespace, name, error)),
    }
}
