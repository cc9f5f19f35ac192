//! Server-side apply that never takes an object away from somebody else, and does nothing when nothing changed.
//!
//! An absent object is applied without force: an answer of 200 instead of 201, or 409, means that somebody
//! made it meanwhile. What is ours is applied with force and with the uid that was seen, so that an object which took
//! its place is not touched. The apply is skipped while the desired content and the object are what they were after
//! the last one.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
};

use http::StatusCode;
use http_body_util::BodyExt;
use k8s_openapi::{NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    client::Body,
    core::{Request, Status},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::ownership::{Owner, contains};

/// Applies objects under one field manager.
pub struct Applier {
    client: Client,
    field_manager: &'static str,
    memory: Mutex<HashMap<Key, Memory>>,
}

/// What became of an apply.
#[derive(Debug)]
pub enum Applied<K> {
    /// It is as desired already; nothing was sent.
    Unchanged,
    /// It was sent; this is the object now.
    Sent(Box<K>),
    /// The object belongs to somebody else and was not touched; says to whom.
    Foreign(String),
    /// The object changed while it was looked at: the next look decides.
    Moved,
}

/// A failed request about one object.
#[derive(Debug, thiserror::Error)]
#[error("failed to {verb} {kind} {namespace}/{name}")]
pub struct RequestError {
    /// What was asked.
    pub verb: &'static str,
    /// The kind of the object.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why it failed.
    #[source]
    pub source: kube::Error,
}

impl RequestError {
    /// A failed request about the object `name` of kind `K`.
    #[must_use]
    pub fn new<K: Resource<DynamicType = ()>>(
        verb: &'static str,
        namespace: &str,
        name: &str,
        source: kube::Error,
    ) -> Self {
        Self {
            verb,
            kind: K::kind(&()).into_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            source,
        }
    }

    /// The HTTP status of the API server's answer.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match &self.source {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        }
    }
}

/// Kind, namespace and name.
type Key = (String, String, String);

/// What the last apply sent, and the object after it.
#[derive(PartialEq)]
struct Memory {
    content: u64,
    uid: Option<String>,
    version: Option<String>,
}

impl Applier {
    /// An applier whose fields belong to `field_manager`.
    #[must_use]
    pub fn new(client: Client, field_manager: &'static str) -> Self {
        Self {
            client,
            field_manager,
            memory: Mutex::default(),
        }
    }

    /// Makes an object of `owner` what is desired. `observed` is what the watch last said of it.
    pub async fn apply<K>(
        &self,
        owner: &Owner,
        observed: Option<&ObjectMeta>,
        desired: &K,
    ) -> Result<Applied<K>, RequestError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let looked_up = self.look_up::<K>(owner, observed, desired.meta()).await?;
        let Some(current) = looked_up else {
            return self.create(owner, desired).await;
        };
        if !owner.owns(&current) {
            return Ok(Applied::Foreign(owner.describe_other(&current)));
        }
        let content = content_of(desired);
        if self.is_unchanged::<K>(&current, desired.meta(), content) {
            return Ok(Applied::Unchanged);
        }
        let parameters = PatchParams::apply(self.field_manager).force();
        match self
            .send(owner, &with_uid(desired, current.uid.as_deref()), &parameters)
            .await
        {
            Ok((_, object)) => {
                self.remember(content, &object);
                Ok(Applied::Sent(Box::new(object)))
            }
            Err(error) if is_conflict(&error) => Ok(Applied::Moved),
            Err(error) => Err(failed::<K>("apply", desired.meta(), error)),
        }
    }

    /// Asks the API server whether it would take an object. Foreign objects are not its matter.
    pub async fn check<K>(
        &self,
        owner: &Owner,
        observed: Option<&ObjectMeta>,
        desired: &K,
    ) -> Result<(), RequestError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + std::fmt::Debug,
    {
        let current = self.look_up::<K>(owner, observed, desired.meta()).await?;
        if current.as_ref().is_some_and(|current| !owner.owns(current)) {
            return Ok(());
        }
        let parameters = PatchParams::apply(self.field_manager).force().dry_run();
        let uid = current.as_ref().and_then(|current| current.uid.as_deref());
        match self.send::<K>(owner, &with_uid(desired, uid), &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(failed::<K>("check", desired.meta(), error)),
        }
    }

    /// What the watch saw, or else what the API server says: the watch sees only what carries our labels.
    async fn look_up<K>(
        &self,
        owner: &Owner,
        observed: Option<&ObjectMeta>,
        desired: &ObjectMeta,
    ) -> Result<Option<ObjectMeta>, RequestError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug,
    {
        if let Some(observed) = observed {
            return Ok(Some(observed.clone()));
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &owner.namespace);
        let found = api
            .get_metadata_opt(desired.name.as_deref().unwrap_or_default())
            .await;
        match found {
            Ok(object) => Ok(object.map(|object| object.metadata)),
            Err(error) => Err(failed::<K>("get", desired, error)),
        }
    }

    async fn create<K>(&self, owner: &Owner, desired: &K) -> Result<Applied<K>, RequestError>
    where
        K: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let parameters = PatchParams::apply(self.field_manager);
        match self.send::<K>(owner, &with_uid(desired, None), &parameters).await {
            // A repeated request (the client repeats on 429, 503 and 504) finds what its predecessor created.
            Ok((status, object)) if status == StatusCode::CREATED || self.is_sole_manager(object.meta()) => {
                self.remember(content_of(desired), &object);
                Ok(Applied::Sent(Box::new(object)))
            }
            Ok((_, object)) => {
                self.withdraw::<K>(owner, object.meta()).await?;
                Ok(Applied::Foreign("was made by somebody else".to_owned()))
            }
            Err(error) if is_conflict(&error) => Ok(Applied::Moved),
            Err(error) => Err(failed::<K>("create", desired.meta(), error)),
        }
    }

    /// Gives up every field that an apply took of an object that turned out to be somebody else's.
    async fn withdraw<K>(&self, owner: &Owner, metadata: &ObjectMeta) -> Result<(), RequestError>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let empty = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        });
        let parameters = PatchParams::apply(self.field_manager);
        match self.send::<K>(owner, &empty, &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(failed::<K>("withdraw from", metadata, error)),
        }
    }

    /// [`Api::patch`] hides whether the object was created, which is what this is about.
    async fn send<K>(
        &self,
        owner: &Owner,
        object: &Value,
        parameters: &PatchParams,
    ) -> Result<(StatusCode, K), kube::Error>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned,
    {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let request = Request::new(K::url_path(&(), Some(&owner.namespace)))
            .patch(name, parameters, &Patch::Apply(object))
            .map_err(kube::Error::BuildRequest)?;
        let response = self.client.send(request.map(Body::from)).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            let object = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
            return Ok((status, object));
        }
        let reported = serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| {
            Status::failure(&String::from_utf8_lossy(&body), "no status in the answer")
                .with_code(status.as_u16())
        });
        Err(kube::Error::Api(reported.boxed()))
    }

    fn is_unchanged<K>(&self, current: &ObjectMeta, desired: &ObjectMeta, content: u64) -> bool
    where
        K: Resource<DynamicType = ()>,
    {
        let now = Memory {
            content,
            uid: current.uid.clone(),
            version: version_of(current),
        };
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // A generation does not count changes of metadata.
        memory.get(&key_of::<K>(current)) == Some(&now) && has_metadata(current, desired)
    }

    fn remember<K: Resource<DynamicType = ()>>(&self, content: u64, object: &K) {
        let metadata = object.meta();
        let memory = Memory {
            content,
            uid: metadata.uid.clone(),
            version: version_of(metadata),
        };
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key_of::<K>(metadata), memory);
    }

    /// Forgets the objects of an owner that is gone.
    pub fn forget(&self, namespace: &str, is_of_owner: impl Fn(&str) -> bool) {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(_, its_namespace, name), _| its_namespace != namespace || !is_of_owner(name));
    }

    fn is_sole_manager(&self, metadata: &ObjectMeta) -> bool {
        metadata
            .managed_fields
            .iter()
            .flatten()
            .filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty())
            .all(|entry| {
                entry.manager.as_deref() == Some(self.field_manager)
                    && entry.operation.as_deref() == Some("Apply")
            })
    }
}

fn has_metadata(current: &ObjectMeta, desired: &ObjectMeta) -> bool {
    let references = current.owner_references.as_deref().unwrap_or_default();
    let has_pairs = |held, wanted: Option<&_>| wanted.is_none_or(|wanted| contains(held, wanted));
    has_pairs(current.labels.as_ref(), desired.labels.as_ref())
        && has_pairs(current.annotations.as_ref(), desired.annotations.as_ref())
        && desired
            .owner_references
            .iter()
            .flatten()
            .all(|reference| references.contains(reference))
}

/// The generation, or the resource version where there is none.
fn version_of(metadata: &ObjectMeta) -> Option<String> {
    let generation = metadata.generation.filter(|generation| *generation > 0);
    generation.map_or_else(
        || metadata.resource_version.clone(),
        |generation| Some(generation.to_string()),
    )
}

fn key_of<K: Resource<DynamicType = ()>>(metadata: &ObjectMeta) -> Key {
    (
        K::kind(&()).into_owned(),
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

fn content_of<K: Serialize>(desired: &K) -> u64 {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(desired)
        .unwrap_or_default()
        .hash(&mut hasher);
    hasher.finish()
}

/// As JSON, with the uid as a precondition.
fn with_uid<K: Serialize>(desired: &K, uid: Option<&str>) -> Value {
    let mut object = serde_json::to_value(desired).unwrap_or_default();
    if let Some(uid) = uid {
        object["metadata"]["uid"] = uid.into();
    }
    object
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == StatusCode::CONFLICT.as_u16() || is_of_another_uid(status))
}

/// The uid that was seen is a precondition: where another object took the place, the API server calls it a change of an
/// immutable field (422), and a conflict only where there is none.
#[must_use]
pub fn is_of_another_uid(answer: &Status) -> bool {
    let causes = answer.details.iter().flat_map(|details| &details.causes);
    answer.code == StatusCode::UNPROCESSABLE_ENTITY.as_u16()
        && causes.into_iter().any(|cause| cause.field == "metadata.uid")
}

fn failed<K: Resource<DynamicType = ()>>(
    verb: &'static str,
    metadata: &ObjectMeta,
    error: kube::Error,
) -> RequestError {
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    RequestError::new::<K>(
        verb,
        namespace,
        metadata.name.as_deref().unwrap_or_default(),
        error,
    )
}
