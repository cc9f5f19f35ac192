//! Makes an object that nobody controls an owner's again, as it was before an orphaning delete.

use std::collections::BTreeMap;

use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{
    apply::{RequestError, is_of_another_uid},
    ownership::Owner,
};

/// Gives the object that was observed an owner and its labels; nothing else of it changes. An object that is gone or
/// changed is no error: the next look decides anew.
pub async fn adopt<K>(
    client: Client,
    owner: &Owner,
    observed: &ObjectMeta,
    labels: &BTreeMap<String, String>,
) -> Result<(), RequestError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let name = observed.name.as_deref().unwrap_or_default();
    let mut references = observed.owner_references.clone().unwrap_or_default();
    references.push(owner.reference.clone());
    let patch = json!({"metadata": {
        "uid": observed.uid,
        "resourceVersion": observed.resource_version,
        "labels": labels,
        "ownerReferences": references,
    }});
    let api: Api<K> = Api::namespaced(client, &owner.namespace);
    match api
        .patch_metadata(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) || is_of_another_uid(&status) => {
            Ok(())
        }
        Err(error) => Err(RequestError::new::<K>("adopt", &owner.namespace, name, error)),
    }
}
