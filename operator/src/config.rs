//! What the operator is told on its command line or in its environment.

use std::net::SocketAddr;

use clap::Parser;

/// Reconciles `IngestionPipeline` resources into running HTTP ingestion endpoints.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Config {
    /// The namespace whose pipelines are reconciled; all namespaces where it is left out.
    #[arg(long, env = "WATCH_NAMESPACE")]
    pub namespace: Option<String>,

    /// The image of the pods that the operator makes.
    #[arg(
        long,
        env = "RUNTIME_IMAGE",
        default_value = "docker.io/nomnom/ingest-runtime:0.1.0"
    )]
    pub runtime_image: String,

    /// The address of /metrics, /healthz and /readyz.
    #[arg(long, env = "ADMIN_ADDRESS", default_value = "[::]:8080")]
    pub admin_address: SocketAddr,

    /// The namespace of the lease; without it the operator takes itself for the only one.
    #[arg(long, env = "POD_NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// The name of the lease.
    #[arg(long, default_value = "nomnom-operator")]
    pub lease_name: String,

    /// How long a leader that is gone keeps the others waiting.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lease_duration_seconds: u64,

    /// The name of this process in the lease and in events.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,

    /// How long until a pipeline is looked at again although no change was seen. It bounds how long the loss of a
    /// receipt Secret goes unnoticed, since Secrets are not watched.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub resync_seconds: u64,
}
