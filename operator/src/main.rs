//! Reconciles `IngestionPipeline` resources.

use anyhow::Context;
use clap::Parser;
use kube::Client;
use operator::{Config, run, telemetry};
use tokio::signal::unix::{SignalKind, signal};

// The operator waits nearly all of its time: one thread is enough, and takes less memory.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    telemetry::start()?;
    let client = Client::try_default()
        .await
        .context("failed to find the API server")?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run(config, client, stop).await
}
