//! Logs: JSON lines on standard output, at `info` unless `RUST_LOG` says otherwise.

use tracing_subscriber::EnvFilter;

/// Starts logging.
///
/// # Errors
/// Logging was started before.
pub fn start() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .json()
        .with_env_filter(filter)
        .try_init()
        .map_err(|error| anyhow::anyhow!("failed to start logging: {error}"))
}
