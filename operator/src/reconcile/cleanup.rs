//! After a pipeline is gone: its receipt Secret, which no owner reference takes along.
//!
//! It stays while pods that need it may start: an orphaning delete leaves the Deployment. It stays as well for a
//! pipeline of the same name that exists by now, which takes it over, so that ids which were given out stay valid.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, api::ListParams, runtime::reflector::ObjectRef};
use nomnom_crds::runtime::config::PipelineIdentity;
use tracing::{info, warn};

use super::{Problem, receipt::ObservedKey};
use crate::{
    context::Context,
    desired::{labels, names},
    kube_api::{apply::RequestError, prune},
    pipeline::Pipeline,
};

/// The first pause while the garbage collector is at work.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);
/// At most so many pipelines are cleaned up at once.
const CONCURRENCY: usize = 64;

/// What is to be done about the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    Keep(&'static str),
    Wait,
    Delete,
}

/// Cleans up after each pipeline that is gone, for as long as the process lives.
pub async fn run(context: Arc<Context>, deleted: UnboundedReceiver<Arc<Pipeline>>) -> anyhow::Result<()> {
    deleted
        .for_each_concurrent(CONCURRENCY, |pipeline| clean_up(&context, pipeline.identity()))
        .await;
    anyhow::bail!("the watch of pipelines ended")
}

async fn clean_up(context: &Context, identity: PipelineIdentity) {
    let (namespace, name) = (identity.namespace.as_str(), identity.name.as_str());
    context.clear_failures(&ObjectRef::new(name).within(namespace));
    context.forget_in_use(&identity.uid);
    let prefix = format!("{name}-");
    context
        .applier
        .forget(namespace, |child| child == name || child.starts_with(&prefix));
    let mut pause = FIRST_PAUSE;
    loop {
        match step(context, &identity).await {
            Ok(Plan::Wait) => {}
            Ok(Plan::Keep(why)) => return info!(namespace, name, why, "kept the receipt Secret"),
            Ok(Plan::Delete) => return info!(namespace, name, "deleted the receipt Secret"),
            Err(problem) => warn!(namespace, name, problem.message, "failed to clean up"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn step(context: &Context, identity: &PipelineIdentity) -> Result<Plan, Problem> {
    let (namespace, name) = (&identity.namespace, names::receipt_secret(&identity.name));
    let client = &context.client;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets
        .get_opt(&name)
        .await
        .map_err(|error| RequestError::new::<Secret>("get", namespace, &name, error))?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let of_pipeline = ListParams::default().labels(&format!("{}={}", labels::PIPELINE_UID, identity.uid));
    let deployments = deployments
        .list_metadata(&of_pipeline)
        .await
        .map_err(|error| RequestError::new::<Deployment>("list", namespace, "", error))?;
    let deployments: Vec<_> = deployments.items.into_iter().map(|it| it.metadata).collect();
    // Last, so that no pipeline of the name came while the others were read.
    let pipelines: Api<Pipeline> = Api::namespaced(client.clone(), namespace);
    let pipeline = pipelines
        .get_metadata_opt(&identity.name)
        .await
        .map_err(|error| RequestError::new::<Pipeline>("get", namespace, &identity.name, error))?;
    let key = ObservedKey::new(&identity.name, secret.as_ref());
    let plan = plan(identity, pipeline.is_some(), &key, &deployments);
    if let (Plan::Delete, ObservedKey::Ours { metadata, .. }) = (&plan, &key) {
        if !context.leadership.is_fresh() {
            return Ok(Plan::Wait);
        }
        prune::delete::<Secret>(client.clone(), metadata).await?;
        context.metrics.count_write("Secret", "delete");
    }
    Ok(plan)
}

fn plan(
    identity: &PipelineIdentity,
    has_successor: bool,
    key: &ObservedKey,
    deployments: &[ObjectMeta],
) -> Plan {
    let ObservedKey::Ours { metadata, .. } = key else {
        return Plan::Keep("there is none of ours");
    };
    if has_successor {
        return Plan::Keep("a pipeline of this name takes it over");
    }
    let label = metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(labels::PIPELINE_UID));
    if label != Some(&identity.uid) {
        return Plan::Keep("it is another pipeline's");
    }
    let is_owned = |deployment: &ObjectMeta| {
        let mut references = deployment.owner_references.iter().flatten();
        references.any(|reference| reference.uid == identity.uid)
    };
    match deployments {
        [] => Plan::Delete,
        some if some.iter().any(is_owned) => Plan::Wait,
        _ => Plan::Keep("the Deployment was orphaned"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    #[test]
    fn the_key_goes_last() {
        let identity = PipelineIdentity {
            namespace: "shop".into(),
            name: "orders".into(),
            uid: "1".into(),
        };
        let key = |uid: &str| ObservedKey::Ours {
            fingerprint: None,
            metadata: Box::new(ObjectMeta {
                labels: Some(BTreeMap::from([(labels::PIPELINE_UID.into(), uid.into())])),
                ..ObjectMeta::default()
            }),
        };
        let owned = ObjectMeta {
            owner_references: Some(vec![OwnerReference {
                uid: "1".into(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        };
        let plan = |has_successor, key: &ObservedKey, deployments: &[ObjectMeta]| {
            super::plan(&identity, has_successor, key, deployments)
        };
        assert_eq!(plan(false, &key("1"), &[]), Plan::Delete);
        assert_eq!(plan(false, &key("1"), &[owned]), Plan::Wait);
        assert!(matches!(
            plan(false, &key("1"), &[ObjectMeta::default()]),
            Plan::Keep(_)
        ));
        assert!(matches!(plan(true, &key("1"), &[]), Plan::Keep(_)));
        assert!(matches!(plan(false, &key("2"), &[]), Plan::Keep(_)));
        assert!(matches!(plan(false, &ObservedKey::Absent, &[]), Plan::Keep(_)));
        assert!(matches!(plan(false, &ObservedKey::Foreign, &[]), Plan::Keep(_)));
    }
}
