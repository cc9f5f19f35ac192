//! Logs: one JSON object a line on standard error, for the cluster's log collector, or text for people.
//! `RUST_LOG` filters them.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

/// Without the NATS client, which calls it an error that a connection stays closed which we closed for good; what
/// matters of it is told by the queue.
const DEFAULT_FILTER: &str = "info,async_nats=off";

/// Starts writing logs; once in a process.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
        LogFormat::Text => subscriber.init(),
    }
}
