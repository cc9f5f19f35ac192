//! One pass over one pipeline, and when there is another.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
    runtime::{
        controller::{self, Action, ReconcileRequest, applier},
        reflector::ObjectRef,
    },
};
use nomnom_crds::{
    IngestionPipelineStatus,
    condition::{self, Reason},
};
use serde_json::{Value, json};
use tokio::time::{error::Elapsed, timeout};
use tracing::{error, warn};

use crate::{
    context::Context,
    desired::labels,
    kube_api::{apply::RequestError, events::publish_changes},
    pipeline::Pipeline,
    reconcile::{
        Problem, STEP_TIMEOUT,
        accept::{Acceptance, accept},
        apply::{Outcome, apply},
        in_time,
        observe::{Observed, observe},
        status::{Facts, add_obstacle, compute_status},
    },
};

/// The most pipelines that are looked at at once.
const CONCURRENCY: u16 = 16;
/// Changes come in bursts: an apply is followed by the watch events of what it wrote.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// After an object changed under a pass.
const SOON: Duration = Duration::from_secs(1);

/// Why a pass did not even write a status.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// Writing the status took too long.
    #[error("writing the status took too long")]
    Timeout(#[from] Elapsed),
    /// The status could not be written.
    #[error(transparent)]
    Status(#[from] RequestError),
}

/// Looks at every pipeline that is asked for, for as long as the process lives.
pub async fn run(
    context: Arc<Context>,
    changed: UnboundedReceiver<ObjectRef<Pipeline>>,
) -> anyhow::Result<()> {
    let requests =
        changed.map(|pipeline| Ok::<_, std::convert::Infallible>(ReconcileRequest::from(pipeline)));
    let config = controller::Config::default()
        .concurrency(CONCURRENCY)
        .debounce(DEBOUNCE);
    let pipelines = context.stores.pipelines.clone();
    let pass = |pipeline, context| Box::pin(reconcile(pipeline, context));
    applier(pass, pause_after_error, context, pipelines, requests, config)
        .for_each(|result| async {
            match result {
                // Children outlive a pipeline by a moment, and tell of it.
                Ok(_)
                | Err(controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)) => {}
                Err(failure) => error!(%failure, "the controller failed"),
            }
        })
        .await;
    anyhow::bail!("the controller ended")
}

/// What a pass found out, as far as it came.
#[derive(Default)]
struct Findings {
    observed: Option<Observed>,
    acceptance: Option<Acceptance>,
    outcome: Option<Outcome>,
    /// Why the pass came no further.
    obstacle: Option<Problem>,
}

/// One pass: observe, accept (validate), apply, status.
async fn reconcile(pipeline: Arc<Pipeline>, context: Arc<Context>) -> Result<Action, PassError> {
    // Nobody makes a child anew while the garbage collector takes them; there is no finalizer without a queue.
    if pipeline.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let started_at = Instant::now();
    let mut findings = Findings::default();
    if let Err(problem) = Box::pin(change_children(&context, &pipeline, &mut findings)).await {
        findings.obstacle = Some(problem);
    }
    let is_written = timeout(STEP_TIMEOUT, write_status(&context, &pipeline, &findings)).await??;
    let result = findings
        .first_problem()
        .map_or("ok", |problem| problem.reason.as_str());
    context.metrics.count_pass(result, started_at.elapsed());
    Ok(next(&context, &pipeline, &findings, is_written))
}

async fn change_children(
    context: &Context,
    pipeline: &Pipeline,
    findings: &mut Findings,
) -> Result<(), Problem> {
    let observed = in_time("observing", observe(context, pipeline)).await?;
    let observed = findings.observed.insert(observed);
    let acceptance = accept(context, pipeline, observed).await?;
    let acceptance = findings.acceptance.insert(acceptance);
    let outcome = match &acceptance.in_use {
        Some(in_use) => in_time("applying", apply(context, observed, in_use)).await?,
        None => Outcome::leave(observed),
    };
    findings.outcome = Some(outcome);
    Ok(())
}

impl Findings {
    fn first_problem(&self) -> Option<&Problem> {
        let refusal = self.acceptance.iter().flat_map(|it| &it.refusal);
        let to_repeat = refusal.filter(|problem| !problem.needs_edit());
        let problems = self.outcome.iter().flat_map(|outcome| &outcome.problems);
        self.obstacle.iter().chain(to_repeat).chain(problems).next()
    }

    fn compute_status(&self, pipeline: &Pipeline, now: Timestamp) -> IngestionPipelineStatus {
        match self {
            Self {
                observed: Some(observed),
                acceptance: Some(acceptance),
                outcome: Some(outcome),
                obstacle: None,
            } => compute_status(
                &Facts {
                    identity: &observed.identity,
                    generation: observed.generation,
                    former: &observed.status,
                    acceptance,
                    outcome,
                    pods: &observed.pods,
                },
                now,
            ),
            unfinished => add_obstacle(
                pipeline.status(),
                pipeline.generation(),
                unfinished.obstacle.as_ref(),
                now,
            ),
        }
    }
}

/// Computes the status and writes it where it differs; false where the pipeline changed meanwhile.
async fn write_status(
    context: &Context,
    pipeline: &Pipeline,
    findings: &Findings,
) -> Result<bool, RequestError> {
    let former = pipeline.status();
    let identity = pipeline.identity();
    let status = findings.compute_status(pipeline, Timestamp::now());
    if status == former {
        return Ok(true);
    }
    let api: Api<Pipeline> = Api::namespaced(context.client.clone(), &identity.namespace);
    let parameters = PatchParams {
        field_manager: Some(labels::OPERATOR.to_owned()),
        ..PatchParams::default()
    };
    let patch = status_patch(pipeline, &former, &status);
    match api
        .patch_status(&identity.name, &parameters, &Patch::Merge(&patch))
        .await
    {
        Ok(_) => {}
        // Computed from what is no longer so, or about what is gone: the watch brings what is.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => return Ok(false),
        Err(error) => {
            return Err(RequestError::new::<Pipeline>(
                "write status of",
                &identity.namespace,
                &identity.name,
                error,
            ));
        }
    }
    context.metrics.count_write("IngestionPipeline", "status");
    let changes = (former.conditions.as_slice(), status.conditions.as_slice());
    publish_changes(&context.recorder, &pipeline.object_ref(&()), changes, is_good).await;
    Ok(true)
}

/// A merge patch that takes away what the former status has and the new one has not, and is refused where the
/// pipeline is no longer the one that was looked at.
fn status_patch(
    pipeline: &Pipeline,
    former: &IngestionPipelineStatus,
    new: &IngestionPipelineStatus,
) -> Value {
    let mut status = json!(new);
    if let (Some(new), Value::Object(former)) = (status.as_object_mut(), json!(former)) {
        for (field, _) in former {
            new.entry(field).or_insert(Value::Null);
        }
    }
    json!({"metadata": {"resourceVersion": pipeline.metadata.resource_version}, "status": status})
}

fn is_good(condition: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> bool {
    match condition.type_.as_str() {
        condition::STALLED => false,
        condition::RECONCILING => [Reason::RollingOut, Reason::DatabaseUnknown]
            .iter()
            .any(|reason| condition.reason == reason.as_str()),
        _ => condition.status != "False" || condition.reason == Reason::PodsNotReady.as_str(),
    }
}

/// When to look again.
fn next(context: &Context, pipeline: &Pipeline, findings: &Findings, is_written: bool) -> Action {
    let key = ObjectRef::from_obj(pipeline);
    if !is_written || findings.outcome.as_ref().is_some_and(|outcome| outcome.has_moved) {
        return Action::requeue(SOON);
    }
    let Some(problem) = findings.first_problem() else {
        context.clear_failures(&key);
        return Action::requeue(context.resync);
    };
    warn!(pipeline = %key, reason = problem.reason.as_str(), problem.message, "a pass did not reach its end");
    Action::requeue(context.pause_after_failure(key).min(context.resync))
}

#[allow(clippy::needless_pass_by_value)] // the applier's signature
fn pause_after_error(pipeline: Arc<Pipeline>, error: &PassError, context: Arc<Context>) -> Action {
    let key = ObjectRef::from_obj(&*pipeline);
    let cause = (error as &dyn std::error::Error)
        .source()
        .map(ToString::to_string);
    warn!(pipeline = %key, %error, cause, "a pass failed");
    context.metrics.count_pass("error", Duration::ZERO);
    Action::requeue(context.pause_after_failure(key))
}
