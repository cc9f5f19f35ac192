//! What the runtime is started with: arguments (or variables), and the files that they name.
//!
//! The configuration and the receipt key are read once: another content comes with another pod. The database's
//! URL is the store's business, which reads it again whenever it connects.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, Parser, Subcommand};
use nomnom_crds::{
    duration,
    runtime::{
        ADMIN_PORT, CONFIG_DIRECTORY, CONFIG_FILE, DATABASE_DIRECTORY, DATABASE_URL_FILE, HTTP_PORT,
        RECEIPT_DIRECTORY, RECEIPT_KEY_FILE, RECEIPT_KEY_FINGERPRINT_VARIABLE, RuntimeConfig, content_hash,
    },
};

use crate::{receipt::KEY_BYTES, telemetry::LogFormat};

/// Accepts records over HTTP and writes them to PostgreSQL.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// How logs are written.
    #[arg(long, global = true, env = "NOMNOM_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the runtime can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the ingest endpoint of a pipeline
    Serve(ServeOptions),
}

/// The options of `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeOptions {
    /// The configuration that the operator rendered
    #[arg(long, env = "NOMNOM_CONFIG", default_value_os_t = path(CONFIG_DIRECTORY, CONFIG_FILE))]
    pub config: PathBuf,
    /// The file of the database's URL; it may be missing, and come later
    #[arg(long, env = "NOMNOM_DATABASE_URL_FILE", default_value_os_t = path(DATABASE_DIRECTORY, DATABASE_URL_FILE))]
    pub database_url_file: PathBuf,
    /// The file of the key of the message ids, 32 bytes
    #[arg(long, env = "NOMNOM_RECEIPT_KEY_FILE", default_value_os_t = path(RECEIPT_DIRECTORY, RECEIPT_KEY_FILE))]
    pub receipt_key_file: PathBuf,
    /// The fingerprint that this key must have; not compared where left out or empty
    #[arg(long, env = RECEIPT_KEY_FINGERPRINT_VARIABLE)]
    pub receipt_key_fingerprint: Option<String>,
    /// Where records are taken
    #[arg(long, env = "NOMNOM_LISTEN", default_value_t = SocketAddr::from(([0, 0, 0, 0], HTTP_PORT)))]
    pub listen: SocketAddr,
    /// Where /livez, /readyz, /metrics and /state are
    #[arg(long, env = "NOMNOM_ADMIN_LISTEN", default_value_t = SocketAddr::from(([0, 0, 0, 0], ADMIN_PORT)))]
    pub admin_listen: SocketAddr,
    /// How long connections are still accepted after SIGTERM: until every node and gateway has heard that this
    /// pod is leaving
    #[arg(long, env = "NOMNOM_DRAIN_DELAY", default_value = "5s", value_parser = parse_duration)]
    pub drain_delay: Duration,
}

/// What the files hold.
#[derive(Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Arc<RuntimeConfig>,
    /// The hash of its file.
    pub config_hash: String,
    /// The key of the message ids.
    pub receipt_key: [u8; KEY_BYTES],
    /// The hash that names the key without giving it away.
    pub receipt_key_fingerprint: String,
}

impl fmt::Debug for Loaded {
    /// Everything but the key.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Loaded")
            .field("config_hash", &self.config_hash)
            .field("receipt_key_fingerprint", &self.receipt_key_fingerprint)
            .finish_non_exhaustive()
    }
}

impl ServeOptions {
    /// Reads the files.
    pub fn load(&self) -> Result<Loaded> {
        let json = fs::read(&self.config)
            .with_context(|| format!("failed to read the configuration {}", self.config.display()))?;
        let config = RuntimeConfig::from_json(&json)
            .with_context(|| format!("failed to use {}", self.config.display()))?;
        let key = fs::read(&self.receipt_key_file).with_context(|| {
            format!(
                "failed to read the receipt key {}",
                self.receipt_key_file.display()
            )
        })?;
        let receipt_key = <[u8; KEY_BYTES]>::try_from(key).map_err(|key| {
            let (path, length) = (self.receipt_key_file.display(), key.len());
            anyhow!("the receipt key {path} has {length} bytes, but must have {KEY_BYTES}")
        })?;
        let receipt_key_fingerprint = content_hash(&receipt_key);
        let expected = self.receipt_key_fingerprint.as_deref().unwrap_or_default();
        // With another key, ids that were given out would be called forged.
        ensure!(
            expected.is_empty() || expected == receipt_key_fingerprint,
            "the receipt key has the fingerprint {receipt_key_fingerprint}, but message ids of this pipeline were made \
             with {expected}: bring the former Secret back"
        );
        Ok(Loaded {
            config: Arc::new(config),
            config_hash: content_hash(&json),
            receipt_key,
            receipt_key_fingerprint,
        })
    }
}

fn path(directory: &str, file: &str) -> PathBuf {
    Path::new(directory).join(file)
}

fn parse_duration(text: &str) -> Result<Duration, duration::InvalidDuration> {
    text.parse::<duration::Duration>().map(duration::Duration::as_std)
}
