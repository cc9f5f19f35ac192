//! Connections with one life.
//!
//! The client library keeps what it was given while it is disconnected, and sends it when it is connected again:
//! publishes that were answered as unknown, and acknowledgements whose sequences may be other messages' by then. So a
//! connection here never comes back: once it has been established, it refuses to authenticate again, and the library
//! gives up.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    Auth, AuthError, Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr,
    jetstream::{self, context::ContextBuilder},
};
use tokio_util::sync::CancellationToken;

use super::NatsOptions;
use crate::queue::QueueError;

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to answer a request about streams and consumers.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a silent server is asked for a sign of life; two that it does not give are the end.
const PING_INTERVAL: Duration = Duration::from_secs(3);
/// The oldest server whose work queues keep what they promise.
const OLDEST_SERVER: (i64, i64, i64) = (2, 14, 0);

/// A connection that works, or has ended for good.
pub(super) struct Connection {
    pub(super) client: Client,
    pub(super) jetstream: jetstream::Context,
    /// Cancelled when the connection has ended.
    pub(super) ended: CancellationToken,
}

impl Connection {
    pub(super) async fn open(options: &NatsOptions) -> Result<Self, QueueError> {
        let servers = parse_servers(&options.servers)?;
        let credentials = Credentials::read(options.credentials.as_deref()).await?;
        let (established, ended) = (Arc::new(AtomicBool::new(false)), CancellationToken::new());
        let connect = credentials
            .options(established.clone())
            .name(&options.client_name)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .ping_interval(PING_INTERVAL)
            // One attempt with each, now; later ones are refused by us.
            .max_reconnects(servers.len())
            .ignore_discovered_servers()
            .event_callback({
                let ended = ended.clone();
                move |event| {
                    let ended = ended.clone();
                    async move {
                        if matches!(event, Event::Disconnected | Event::Closed) {
                            ended.cancel();
                        }
                    }
                }
            });
        let client = connect.connect(servers).await.map_err(|error| refusal(&error))?;
        established.store(true, Ordering::Release);
        let (major, minor, patch) = OLDEST_SERVER;
        if !client.is_server_compatible(major, minor, patch) {
            let version = client.server_info().version;
            return Err(QueueError::Unsupported(format!(
                "the NATS server is {version}: {major}.{minor} or newer is needed"
            )));
        }
        let jetstream = ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .build(client.clone());
        Ok(Self {
            client,
            jetstream,
            ended,
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}

fn parse_servers(servers: &str) -> Result<Vec<ServerAddr>, QueueError> {
    let parse = |url: &str| {
        url.trim().parse::<ServerAddr>().map_err(|_| {
            QueueError::Unsupported(
                "the URL of the queue is no NATS URL: write nats://host:4222, and commas between several"
                    .into(),
            )
        })
    };
    servers.split(',').map(parse).collect()
}

fn refusal(error: &ConnectError) -> QueueError {
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            QueueError::Unauthorized("NATS refuses the credentials".into())
        }
        // The library tells no more than the last attempt's error, which holds no secret.
        _ => QueueError::Unreachable(format!("NATS cannot be reached: {error}")),
    }
}

/// What a client shows of itself.
#[derive(Default)]
struct Credentials {
    username: Option<String>,
    password: Option<String>,
    token: Option<String>,
    creds: Option<(String, Arc<nkeys::KeyPair>)>,
    authority: Option<std::path::PathBuf>,
    certificate: Option<(std::path::PathBuf, std::path::PathBuf)>,
}

impl Credentials {
    async fn read(directory: Option<&Path>) -> Result<Self, QueueError> {
        let Some(directory) = directory else {
            return Ok(Self::default());
        };
        let mut texts = [const { None }; 4];
        for (text, key) in texts
            .iter_mut()
            .zip(["username", "password", "token", "nats.creds"])
        {
            *text = read_key(directory, key).await?;
        }
        let [username, password, token, creds] = texts;
        let present = |key: &str| Some(directory.join(key)).filter(|path| path.exists());
        Ok(Self {
            username,
            password,
            token,
            creds: creds.map(|text| parse_creds(&text)).transpose()?,
            authority: present("ca.crt"),
            certificate: present("tls.crt").zip(present("tls.key")),
        })
    }

    fn options(self, established: Arc<AtomicBool>) -> ConnectOptions {
        let (authority, certificate) = (self.authority.clone(), self.certificate.clone());
        let credentials = Arc::new(self);
        let mut options = ConnectOptions::with_auth_callback(move |nonce| {
            let (credentials, established) = (credentials.clone(), established.clone());
            async move {
                if established.load(Ordering::Acquire) {
                    return Err(AuthError::new("a connection that ended is not opened again"));
                }
                credentials.sign(&nonce)
            }
        });
        if let Some(authority) = authority {
            options = options.add_root_certificates(authority).require_tls(true);
        }
        if let Some((certificate, key)) = certificate {
            options = options.add_client_certificate(certificate, key);
        }
        options
    }

    fn sign(&self, nonce: &[u8]) -> Result<Auth, AuthError> {
        let mut auth = Auth::new();
        auth.username.clone_from(&self.username);
        auth.password.clone_from(&self.password);
        auth.token.clone_from(&self.token);
        if let Some((jwt, key)) = &self.creds {
            auth.jwt = Some(jwt.clone());
            auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
        }
        Ok(auth)
    }
}

async fn read_key(directory: &Path, key: &str) -> Result<Option<String>, QueueError> {
    match tokio::fs::read_to_string(directory.join(key)).await {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(QueueError::Unauthorized(format!(
            "the key {key:?} of the queue's Secret cannot be read: {error}"
        ))),
    }
}

/// A `.creds` file: a JWT and the seed of its key, each between two lines of dashes.
fn parse_creds(text: &str) -> Result<(String, Arc<nkeys::KeyPair>), QueueError> {
    let mut parts = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('-') && !line.contains(' '));
    let invalid = || {
        QueueError::Unauthorized("the key \"nats.creds\" of the queue's Secret is no credentials file".into())
    };
    let jwt = parts.next().ok_or_else(invalid)?;
    let seed = parts.next().ok_or_else(invalid)?;
    let key = nkeys::KeyPair::from_seed(seed).map_err(|_| invalid())?;
    Ok((jwt.to_owned(), Arc::new(key)))
}
