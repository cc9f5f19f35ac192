//! Puts the runtime together: files, store, the two ports; and takes it apart in the order in which nothing that
//! was accepted is lost. Any task that ends early ends the process.

use std::{sync::Arc, thread::available_parallelism};

use anyhow::{Context, Result, anyhow};
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use tokio::{
    runtime,
    task::{JoinError, JoinSet},
};

use crate::{
    config::{Loaded, ServeOptions},
    http::{Admin, Endpoint, EndpointParts, MAX_CONNECTIONS, Server, ServerOptions},
    metrics::Metrics,
    receipt::Receipts,
    record::Decoder,
    shutdown::{EndSignals, Shutdown},
    store::{Store, StoreOptions},
};

/// More threads than this do not make one pod faster, and each costs memory: to scale is the autoscaler's job.
const MAX_THREADS: usize = 4;

/// Runs `serve` until SIGTERM.
pub fn serve(options: &ServeOptions) -> Result<()> {
    let loaded = options.load()?;
    let threads = available_parallelism().map_or(1, |cores| cores.get().min(MAX_THREADS));
    runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("failed to start the threads")?
        .block_on(run(options, loaded))
}

async fn run(options: &ServeOptions, loaded: Loaded) -> Result<()> {
    let mut signals = EndSignals::catch()?;
    let shutdown = Shutdown::default();
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::register(&mut registry));
    let decoder = Decoder::new(&loaded.config).context("failed to use the configuration's records")?;
    let store_options = StoreOptions {
        config: loaded.config.clone(),
        database_url_file: options.database_url_file.clone(),
        receipt_key_fingerprint: loaded.receipt_key_fingerprint.clone(),
    };
    let (store, mut store_tasks) = Store::start(store_options, &mut registry);
    let endpoint = Endpoint::new(EndpointParts {
        config: loaded.config.clone(),
        decoder,
        receipts: Receipts::new(&loaded.receipt_key),
        store: store.clone(),
        metrics: metrics.clone(),
        shutdown: shutdown.clone(),
    });
    let admin = Admin {
        loaded,
        registry: Arc::new(registry),
        store: store.clone(),
        shutdown: shutdown.clone(),
    };
    let mut servers = start_servers(options, &metrics, endpoint, admin).await?;
    tokio::select! {
        () = signals.received() => {}
        ended = &mut store_tasks => return ended.context("the store ended early"),
        ended = servers.join_next() => return Err(early_end(ended)),
    }
    tokio::select! {
        finished = finish(options, &shutdown, servers, store) => finished?,
        ended = &mut store_tasks => ended.context("the store ended before the last request")?,
    }
    tracing::info!("ended: every request was answered");
    Ok(())
}

/// Opens both ports, the admin port last: it says that all is ready.
async fn start_servers(
    options: &ServeOptions,
    metrics: &Metrics,
    endpoint: Endpoint,
    admin: Admin,
) -> Result<JoinSet<()>> {
    let config = &admin.loaded.config;
    let server_options = |connections: Gauge| ServerOptions {
        shutdown: admin.shutdown.clone(),
        connections,
        max_connections: MAX_CONNECTIONS,
        request_timeout: config.limits.timeout.as_std(),
    };
    let public = Server::bind(options.listen, server_options(metrics.connections.clone()))
        .await
        .with_context(|| format!("failed to listen on {}", options.listen))?;
    let private = Server::bind(options.admin_listen, server_options(Gauge::default()))
        .await
        .with_context(|| format!("failed to listen on {}", options.admin_listen))?;
    tracing::info!(
        pipeline = format!("{}/{}", config.pipeline.namespace, config.pipeline.name),
        config_hash = admin.loaded.config_hash,
        listen = %public.address()?,
        admin_listen = %private.address()?,
        "serves"
    );
    let mut servers = JoinSet::new();
    servers.spawn(public.serve(endpoint));
    servers.spawn(private.serve(admin));
    Ok(servers)
}

/// Serves on for the drain delay, answers what was accepted, and only then closes the store.
async fn finish(
    options: &ServeOptions,
    shutdown: &Shutdown,
    mut servers: JoinSet<()>,
    store: Store,
) -> Result<()> {
    tracing::info!(delay_seconds = options.drain_delay.as_secs_f64(), "drains");
    shutdown.drain(options.drain_delay).await;
    while let Some(ended) = servers.join_next().await {
        ended.context("a server failed while it drained")?;
    }
    store.close().await;
    Ok(())
}

fn early_end(ended: Option<Result<(), JoinError>>) -> anyhow::Error {
    match ended {
        Some(Err(error)) => anyhow!(error).context("a server failed"),
        _ => anyhow!("a server ended early"),
    }
}
