//! Wires everything together. Any task that ends ends the process, which then starts from what the cluster says.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::channel::mpsc::unbounded;
use kube::Client;
use rand::{TryRng, rngs::SysRng};
use tokio::{net::TcpListener, task::JoinSet};
use tracing::info;

use crate::{
    admin::{self, Readiness},
    config::Config,
    context::Context,
    controller,
    kube_api::leadership::{Candidate, Leadership},
    metrics::Metrics,
    pod_state, reconcile,
    watch::{self, Listeners},
};

/// Runs the operator until `stop`, or until something that it needs ends.
///
/// # Errors
/// What ended: a lost lease, a port that is taken, a task. Dropping the future ends all that it started.
pub async fn run(config: Config, client: Client, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let listener = TcpListener::bind(config.admin_address)
        .await
        .with_context(|| format!("failed to listen at {}", config.admin_address))?;
    tasks.spawn(admin::serve(listener, metrics.clone(), readiness.clone()));
    let candidate = candidate(&config, &client)?;
    tokio::pin!(stop);
    if let Some(candidate) = &candidate {
        tokio::select! {
            // A stand-by is ready to take over once it has seen the lease.
            () = candidate.acquire(|| readiness.set(true)) => {}
            () = &mut stop => return Ok(()),
            ended = first_to_end(&mut tasks) => return ended,
        }
    }
    readiness.set(false);
    metrics.set_leader();
    let leadership = candidate
        .as_ref()
        .map_or_else(Leadership::undisputed, |candidate| candidate.leadership());
    start(&config, client, (leadership, metrics, readiness), &mut tasks);
    if let Some(candidate) = candidate.clone() {
        tasks.spawn(async move { Err(candidate.hold().await.into()) });
    }
    let ended = tokio::select! {
        () = &mut stop => Ok(()),
        ended = first_to_end(&mut tasks) => ended,
    };
    tasks.shutdown().await;
    if let (Some(candidate), Ok(())) = (candidate, &ended) {
        candidate.release().await.context("failed to release the lease")?;
    }
    ended
}

fn candidate(config: &Config, client: &Client) -> anyhow::Result<Option<Arc<Candidate>>> {
    let Some(namespace) = &config.lease_namespace else {
        return Ok(None);
    };
    // A pod that starts anew under its old name is another process.
    let nonce = SysRng.try_next_u32().context("no random numbers")?;
    let identity = format!("{}-{nonce:08x}", config.pod_name.as_deref().unwrap_or("operator"));
    let lease = (namespace.as_str(), config.lease_name.as_str());
    let duration = Duration::from_secs(config.lease_duration_seconds);
    Ok(Some(Arc::new(Candidate::new(
        client.clone(),
        lease,
        identity,
        duration,
    ))))
}

fn start(
    config: &Config,
    client: Client,
    (leadership, metrics, readiness): (Leadership, Metrics, Readiness),
    tasks: &mut JoinSet<anyhow::Result<()>>,
) {
    let (changed, requests) = unbounded();
    let (deleted, deletions) = unbounded();
    let listeners = Listeners {
        changed: changed.clone(),
        deleted,
    };
    let stores = watch::start(&client, config.namespace.as_deref(), &listeners, tasks);
    let context = Arc::new(Context::new(config, client, stores.clone(), leadership, metrics));
    tasks.spawn(async move {
        stores.wait_until_ready().await;
        readiness.set(true);
        info!("seen all objects");
        tokio::try_join!(
            pod_state::run(context.clone(), changed),
            reconcile::cleanup::run(context.clone(), deletions),
            controller::run(context, requests),
        )?;
        Ok(())
    });
}

async fn first_to_end(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    match tasks.join_next().await {
        Some(result) => result.context("a task panicked")?,
        None => anyhow::bail!("no task is left"),
    }
}
