//! The key of message ids: created once, recognised by its fingerprint, and never replaced without an admin's word. With
//! another key every id that was given out would look forged.

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use nomnom_crds::{
    condition::Reason,
    runtime::{RECEIPT_KEY_FILE, config::PipelineIdentity, content_hash},
};
use rand::{TryRng, rngs::SysRng};
use serde_json::json;

use super::{Problem, observe::Observed};
use crate::{
    context::Context,
    desired::{
        labels::{self, REGENERATE_RECEIPT_KEY},
        metadata, names,
        receipt_secret::{self, KEY_BYTES},
    },
    kube_api::{apply::RequestError, ownership::contains},
};

/// The Secret under the name of the receipt key.
#[derive(Clone, Debug, PartialEq)]
pub enum ObservedKey {
    /// There is none.
    Absent,
    /// It is a pipeline's of this name.
    Ours {
        /// The fingerprint of the key; none where it is no key.
        fingerprint: Option<String>,
        /// Name, uid, resource version and labels.
        metadata: Box<ObjectMeta>,
    },
    /// It is somebody else's.
    Foreign,
}

/// What is to be done about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPlan {
    /// It is there: nothing, but for labels that name another pipeline.
    Keep(String),
    /// There was never one, or an admin let it go.
    Create,
    /// The name is taken.
    Foreign,
    /// The key that ids were made with is gone; says what is there in its place.
    Lost(String),
}

impl ObservedKey {
    /// What a look at the Secret gave.
    #[must_use]
    pub fn new(pipeline: &str, secret: Option<&Secret>) -> Self {
        let Some(secret) = secret else { return Self::Absent };
        let has_controller = secret
            .metadata
            .owner_references
            .as_ref()
            .is_some_and(|owners| !owners.is_empty());
        if has_controller || !contains(secret.metadata.labels.as_ref(), &labels::identifying(pipeline)) {
            return Self::Foreign;
        }
        let key = secret.data.as_ref().and_then(|data| data.get(RECEIPT_KEY_FILE));
        Self::Ours {
            fingerprint: key
                .filter(|key| key.0.len() == KEY_BYTES)
                .map(|key| content_hash(&key.0)),
            metadata: Box::new(ObjectMeta {
                managed_fields: None,
                ..secret.metadata.clone()
            }),
        }
    }
}

/// Decides about the key: `known` is the fingerprint that ids were made with, `replaceable` the one that an admin lets go.
#[must_use]
pub fn plan_key(known: Option<&str>, replaceable: Option<&str>, observed: &ObservedKey) -> KeyPlan {
    let may_change = known.is_none_or(|known| replaceable == Some(known));
    match observed {
        ObservedKey::Ours {
            fingerprint: Some(found),
            ..
        } if may_change || known == Some(found) => KeyPlan::Keep(found.clone()),
        ObservedKey::Absent if may_change => KeyPlan::Create,
        ObservedKey::Foreign if may_change => KeyPlan::Foreign,
        ObservedKey::Ours {
            fingerprint: None, ..
        } if may_change => KeyPlan::Lost("holds no key of 32 bytes".into()),
        ObservedKey::Absent => KeyPlan::Lost("is gone".into()),
        ObservedKey::Foreign => KeyPlan::Lost("is not nomnom's".into()),
        ObservedKey::Ours { fingerprint, .. } => KeyPlan::Lost(match fingerprint {
            Some(found) => format!("holds another key (fingerprint {found})"),
            None => "holds no key of 32 bytes".into(),
        }),
    }
}

/// Sees to the key, and says its fingerprint.
pub async fn ensure_key(context: &Context, observed: &Observed) -> Result<String, Problem> {
    let known = observed.known_key.as_deref();
    let identity = &observed.identity;
    match plan_key(known, observed.replaceable_key.as_deref(), &observed.key) {
        KeyPlan::Keep(fingerprint) => {
            if let ObservedKey::Ours { metadata, .. } = &observed.key {
                relabel(context, identity, metadata).await?;
            }
            Ok(fingerprint)
        }
        KeyPlan::Create => create(context, identity).await,
        KeyPlan::Foreign => Err(Problem::foreign(
            "Secret",
            &identity.namespace,
            &names::receipt_secret(&identity.name),
            "was made by somebody else",
        )),
        KeyPlan::Lost(what) => Err(lost(identity, known.unwrap_or("unknown"), &what)),
    }
}

fn lost(identity: &PipelineIdentity, known: &str, what: &str) -> Problem {
    let secret = names::receipt_secret(&identity.name);
    Problem {
        reason: Reason::ReceiptKeyLost,
        message: format!(
            "Secret {}/{secret} {what}, but message ids were made with the key of fingerprint {known}: restore that Secret, \
             or annotate this pipeline with {REGENERATE_RECEIPT_KEY}={known} to use another key, after which earlier \
             message ids are unknown. Pods that run keep serving; none starts with another key",
            identity.namespace
        ),
        kind: "Secret".to_owned(),
    }
}

/// By POST only: whoever is second finds the key of the first.
async fn create(context: &Context, identity: &PipelineIdentity) -> Result<String, Problem> {
    let name = names::receipt_secret(&identity.name);
    let mut key = [0; KEY_BYTES];
    SysRng.try_fill_bytes(&mut key).map_err(|error| Problem {
        reason: Reason::ApiError,
        message: format!("failed to make a receipt key: {error}"),
        kind: "Secret".to_owned(),
    })?;
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &identity.namespace);
    let parameters = PostParams {
        field_manager: Some(labels::OPERATOR.to_owned()),
        ..PostParams::default()
    };
    match api
        .create(&parameters, &receipt_secret::build(identity, key))
        .await
    {
        Ok(_) => {
            context.metrics.count_write("Secret", "create");
            Ok(content_hash(&key))
        }
        // AlreadyExists is an ApiError that the next pass, which reads the Secret, does not have.
        Err(error) => Err(RequestError::new::<Secret>("create", &identity.namespace, &name, error).into()),
    }
}

/// A predecessor's Secret becomes this pipeline's, so that ids which were given out stay valid.
async fn relabel(
    context: &Context,
    identity: &PipelineIdentity,
    current: &ObjectMeta,
) -> Result<(), Problem> {
    let name = names::receipt_secret(&identity.name);
    let wanted = metadata::labelled(identity, name.clone());
    if contains(
        current.labels.as_ref(),
        &wanted.labels.clone().unwrap_or_default(),
    ) {
        return Ok(());
    }
    let patch = json!({"metadata": {
        "uid": current.uid,
        "resourceVersion": current.resource_version,
        "labels": wanted.labels,
    }});
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &identity.namespace);
    let parameters = PatchParams {
        field_manager: Some(labels::OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    context.metrics.count_write("Secret", "patch");
    match api
        .patch_metadata(&name, &parameters, &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) => Err(RequestError::new::<Secret>("label", &identity.namespace, &name, error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(fingerprint: Option<&str>) -> ObservedKey {
        ObservedKey::Ours {
            fingerprint: fingerprint.map(str::to_owned),
            metadata: Box::default(),
        }
    }

    #[test]
    fn a_key_is_never_replaced_without_a_word() {
        use KeyPlan::{Create, Foreign, Keep, Lost};
        let keep = |fingerprint: &str| Keep(fingerprint.into());
        let gone = Lost("is gone".into());
        for (known, replaceable, observed, expected) in [
            (None, None, ObservedKey::Absent, Create),
            (None, None, ours(Some("a")), keep("a")),
            (None, None, ObservedKey::Foreign, Foreign),
            (Some("a"), None, ours(Some("a")), keep("a")),
            (Some("a"), None, ObservedKey::Absent, gone.clone()),
            (Some("a"), Some("b"), ObservedKey::Absent, gone),
            (Some("a"), Some("a"), ObservedKey::Absent, Create),
            (Some("a"), Some("a"), ours(Some("b")), keep("b")),
            (Some("a"), Some("a"), ours(Some("a")), keep("a")),
            (
                Some("a"),
                None,
                ObservedKey::Foreign,
                Lost("is not nomnom's".into()),
            ),
            (
                Some("a"),
                None,
                ours(Some("b")),
                Lost("holds another key (fingerprint b)".into()),
            ),
            (None, None, ours(None), Lost("holds no key of 32 bytes".into())),
        ] {
            let plan = plan_key(known, replaceable, &observed);
            assert_eq!(plan, expected, "{known:?} {replaceable:?} {observed:?}");
        }
    }
}
