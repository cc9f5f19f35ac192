//! A real nats-server with JetStream, for one test: private data, private ports, credentials checked.
//!
//! The cluster's server gets its configuration from here too.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    build::{self, NATS},
    certificates::{self, Authority, Subject},
    process,
};

/// The server's program in [`NATS`].
pub(crate) const PROGRAM: &str = "nats-server";
/// Where the monitoring endpoint says whether JetStream is on. It waits until clients are let in, which is after
/// the streams were read, and does not ask for each stream's health: a test may have broken one.
pub(crate) const READY_PATH: &str = "/healthz?js-enabled-only=true";

/// How long a server may take to answer, reading its streams after a crash included.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one question about readiness may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// The account of those whose account has no JetStream, and the name of its only user where nobody has to show one.
const PLAIN_ACCOUNT: &str = "plain";

/// How a server is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whom it lets in; anybody where left out.
    pub authorization: Option<Authorization>,
    /// Whether it takes connections over TLS alone, as `localhost`, by a certificate of [`Nats::authority`].
    pub tls: bool,
    /// When it syncs what it stores.
    pub sync_interval: SyncInterval,
    /// The largest message in bytes; the server's own default (1 MiB) where left out.
    pub max_payload: Option<u64>,
    /// The most bytes that all streams may take; three quarters of the free disk where left out.
    pub max_file_store: Option<u64>,
    /// Whether the clients' account has no JetStream, though the server has.
    pub without_jetstream: bool,
    /// Where the streams are kept, for a test that brings a file system to fill or to cut off; a temporary directory
    /// where left out.
    pub store: Option<PathBuf>,
}

/// What a client has to show.
#[derive(Clone, Debug)]
pub enum Authorization {
    /// A name and a password.
    User(String, String),
    /// A token.
    Token(String),
}

/// When a server syncs what it stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncInterval {
    /// As the server does by itself: every two minutes. A message that it acknowledged may be lost with the machine.
    #[default]
    Default,
    /// Before it acknowledges.
    Always,
    /// Once in this time.
    Every(Duration),
}

/// A running server; dropped, it is killed and its data removed.
pub struct Nats {
    directory: TempDir,
    address: SocketAddr,
    monitoring: SocketAddr,
    options: Options,
    process: Option<Child>,
}

impl Nats {
    /// Starts a server on a free port of the loopback interface.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts a server.
    pub async fn start_with(options: Options) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nomnom-nats-").tempdir()?;
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let [address, monitoring] = process::free_addresses(host)?;
        let mut server = Self {
            directory,
            address,
            monitoring,
            options,
            process: None,
        };
        server.configure()?;
        server.start_again().await?;
        Ok(server)
    }

    /// Starts the server again after [`Self::stop`] or [`Self::kill`], on its ports and its data.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "nats-server is running already");
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = process::bound_command(NATS.program(PROGRAM)?, None);
        command
            .arg("--config")
            .arg(self.configuration_file())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(process::spawn(command).context("failed to start nats-server")?);
        let ready = self.wait_until_ready().await;
        if ready.is_err() {
            // What does not start may be repaired, and started once more.
            self.kill()?;
        }
        ready
    }

    /// The URL for clients, without credentials.
    #[must_use]
    pub fn url(&self) -> String {
        if self.options.tls {
            format!("tls://localhost:{}", self.address.port())
        } else {
            format!("nats://{}", self.address)
        }
    }

    /// The URL of the monitoring endpoint, which asks for no credentials.
    #[must_use]
    pub fn monitoring_url(&self) -> String {
        format!("http://{}", self.monitoring)
    }

    /// The certificate of the authority that issued the server's, with [`Options::tls`].
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// The directory of the streams, for those who break it, or put an earlier copy back, while the server is stopped.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        let own = || self.directory.path().join("store");
        self.options.store.clone().unwrap_or_else(own)
    }

    /// The server's log, of all of its starts.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("nats.log")
    }

    /// Ends the server as an administrator would: clients are told, and what is stored is synced.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::TERM)
    }

    /// Kills the server.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Freezes the server: connections stay open, and nothing answers.
    pub fn pause(&self) -> Result<()> {
        Ok(process::freeze(self.id()?)?)
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) -> Result<()> {
        Ok(process::signal(self.id()?, Signal::CONT)?)
    }

    /// Removes all streams while the server is stopped, as a pod that comes back without its volume would.
    pub fn wipe(&self) -> Result<()> {
        ensure!(self.process.is_none(), "nats-server is running");
        wipe(&self.store())
    }

    fn id(&self) -> Result<u32> {
        let process = self.process.as_ref().context("nats-server is not running")?;
        Ok(process.id())
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.process.take() else {
            return Ok(());
        };
        process::signal(child.id(), signal)?;
        // A frozen server notices only when it goes on.
        process::signal(child.id(), Signal::CONT)?;
        child.wait().context("failed to wait for nats-server")?;
        Ok(())
    }

    fn configuration_file(&self) -> PathBuf {
        self.directory.path().join("nats.conf")
    }

    fn configure(&self) -> Result<()> {
        let mut configuration = configuration(self.address, self.monitoring, &self.store(), &self.options)?;
        if self.options.tls {
            configuration["tls"] = write_certificates(self.directory.path())?;
        }
        certificates::write_private(&self.configuration_file(), &configuration.to_string())
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        let url = self.monitoring_url() + READY_PATH;
        while !answers(&url).await {
            let ended = self.process.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                let log = build::end_of(&self.log());
                bail!("nats-server does not start; the end of its log:\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        // Nothing is left to tell an error to; the parent-death signal ends what this does not.
        let _ = self.kill();
    }
}

/// The configuration of a server, all but [`Options::tls`]. The server's own format takes JSON too.
pub(crate) fn configuration(
    address: SocketAddr,
    monitoring: SocketAddr,
    store: &Path,
    options: &Options,
) -> Result<Value> {
    let mut jetstream = json!({"store_dir": store});
    match options.sync_interval {
        SyncInterval::Default => (),
        SyncInterval::Always => jetstream["sync_interval"] = json!("always"),
        SyncInterval::Every(interval) => {
            jetstream["sync_interval"] = json!(format!("{}ns", interval.as_nanos()));
        }
    }
    if let Some(bytes) = options.max_file_store {
        jetstream["max_file_store"] = json!(bytes);
    }
    let mut configuration = json!({
        "listen": address,
        "http": monitoring,
        "jetstream": jetstream,
    });
    if let Some(bytes) = options.max_payload {
        configuration["max_payload"] = json!(bytes);
    }
    match (&options.authorization, options.without_jetstream) {
        (None, false) => (),
        (Some(Authorization::User(user, password)), false) => {
            configuration["authorization"] = json!({"user": user, "password": password});
        }
        (Some(Authorization::Token(token)), false) => {
            configuration["authorization"] = json!({"token": token});
        }
        (None, true) => {
            configuration["accounts"] = plain_account(PLAIN_ACCOUNT, PLAIN_ACCOUNT);
            configuration["no_auth_user"] = json!(PLAIN_ACCOUNT);
        }
        (Some(Authorization::User(user, password)), true) => {
            configuration["accounts"] = plain_account(user, password);
        }
        (Some(Authorization::Token(_)), true) => bail!("a token is of no account but the one with JetStream"),
    }
    Ok(configuration)
}

fn plain_account(user: &str, password: &str) -> Value {
    json!({PLAIN_ACCOUNT: {"users": [{"user": user, "password": password}]}})
}

/// Removes what a server that is stopped keeps in `store`; the directory itself stays, as it may be a mount.
pub(crate) fn wipe(store: &Path) -> Result<()> {
    let streams = store.join("jetstream");
    match fs::remove_dir_all(&streams) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", streams.display()))
        }
        _ => Ok(()),
    }
}

async fn answers(url: &str) -> bool {
    let answer = tokio::time::timeout(PROBE_TIMEOUT, reqwest::get(url)).await;
    matches!(answer, Ok(Ok(answer)) if answer.status().is_success())
}

/// Writes an authority and a server's certificate, and returns what the server is told about them.
fn write_certificates(directory: &Path) -> Result<Value> {
    let authority = Authority::new("nats")?;
    authority.write(directory, "ca")?;
    let subject = Subject {
        user: "nats",
        names: &["localhost"],
        addresses: &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        ..Subject::default()
    };
    authority.issue(&subject)?.write(directory, "server")?;
    Ok(json!({
        "cert_file": directory.join("server.crt"),
        "key_file": directory.join("server.key"),
    }))
}
