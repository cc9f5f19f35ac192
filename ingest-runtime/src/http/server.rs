//! Connections: accepted up to a limit, each served by hyper until it ends, stalls, or the pod leaves.

use std::{
    convert::Infallible,
    io,
    net::{self, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, request::Parts};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::gauge::Gauge;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Answer,
    activity::{Activity, Stalled, Watched},
    body::Inbound,
    close_after, linger, listener,
    problem::{Problem, ProblemKind},
};
use crate::shutdown::Shutdown;

/// The most connections at once. One takes some 22 kB, and 32 kB within the longest head (measured without
/// optimization): together a sixth to a quarter of the pod's default memory limit.
pub const MAX_CONNECTIONS: usize = 4096;
/// What hyper reads of a head, and of a body at once, in bytes. A head that is not complete by then is refused by
/// hyper; ours may hold 16 kB of names and values, and more between them than they need, so that we can say it first.
const MAX_HEAD_BYTES: usize = 24 * 1024;
/// The most refused connections whose clients are waited for, to see their refusal; others are closed at once. Each
/// takes a file descriptor and less than a kB.
const MAX_REFUSED: usize = 256;
/// How often a connection is looked at, whether it stalls.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long connections that were accepted last have to send their request, once no more are accepted.
const LAST_REQUEST_TIME: Duration = Duration::from_secs(1);
/// When to come again where there are too many connections.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(2);

/// What answers the requests of a port.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request whose head arrived at `start`. What is left of the body is thrown away before the answer is
    /// sent.
    fn answer(&self, head: &Parts, body: &mut Inbound, start: Instant)
    -> impl Future<Output = Answer> + Send;
}

/// A port that is open.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    options: ServerOptions,
}

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Tells when to stop accepting.
    pub shutdown: Shutdown,
    /// Counts open connections.
    pub connections: Gauge,
    /// The most connections at once; further ones are refused. [`MAX_CONNECTIONS`], but in tests.
    pub max_connections: usize,
    /// The longest that a request may take, what is thrown away of it included.
    pub request_timeout: Duration,
}

impl Server {
    /// Opens a port.
    pub async fn bind(address: SocketAddr, options: ServerOptions) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            options,
        })
    }

    /// Where the port is.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the pod has left: returns when the last request is answered.
    pub async fn serve(self, handler: impl Handler) {
        let handler = Arc::new(handler);
        let (tracker, ending) = (TaskTracker::new(), CancellationToken::new());
        let refused = TaskTracker::new();
        let accept = |stream: TcpStream| {
            if tracker.len() >= self.options.max_connections {
                refuse(stream, &refused);
                return;
            }
            let connection = Connection {
                ending: ending.child_token(),
                open: Open::new(self.options.connections.clone()),
                request_timeout: self.options.request_timeout,
            };
            tracker.spawn(connection.serve(stream, handler.clone()));
        };
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => accept(stream),
                    Err(error) => {
                        tracing::warn!(%error, "failed to accept a connection");
                        tokio::time::sleep(listener::ACCEPT_PAUSE).await;
                    }
                },
                () = self.options.shutdown.closing() => break,
            }
        }
        listener::close(self.listener, accept).await;
        tracker.close();
        let finish = async {
            if tokio::time::timeout(LAST_REQUEST_TIME, tracker.wait())
                .await
                .is_err()
            {
                ending.cancel();
                tracker.wait().await;
            }
        };
        let longest = LAST_REQUEST_TIME + self.options.request_timeout + CHECK_INTERVAL + linger::LINGER_TIME;
        if tokio::time::timeout(longest, finish).await.is_err() {
            tracing::warn!(connections = tracker.len(), "connections are cut that do not end");
        }
    }
}

/// Counts a connection for as long as it is there.
struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

struct Connection {
    ending: CancellationToken,
    open: Open,
    request_timeout: Duration,
}

impl Connection {
    async fn serve(self, stream: TcpStream, handler: Arc<impl Handler>) {
        // An answer is one packet, and nothing follows it that it could wait for.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "failed to set TCP_NODELAY");
        }
        let activity = Arc::new(Activity::new(Instant::now()));
        let service = service_fn(|request| {
            let start = Instant::now();
            activity.busy();
            let (handler, activity) = (&handler, &activity);
            let deadline = start + self.request_timeout;
            async move {
                let answer = answer(handler.as_ref(), request, start, deadline, activity).await;
                activity.idle(Instant::now());
                Ok::<_, Infallible>(answer)
            }
        });
        let io = TokioIo::new(Watched::new(stream, activity.clone()));
        let mut connection = http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(io, service);
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                result = &mut connection => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a connection ended with an error");
                    }
                    if activity.leaves_unread() {
                        linger::discard(&connection.into_parts().io.into_inner().into_stream()).await;
                    }
                    break;
                }
                () = self.ending.cancelled(), if !told => {
                    told = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                _ = check.tick() => match activity.stalled(Instant::now()) {
                    None => {}
                    Some(Stalled::Idle) if !told => {
                        told = true;
                        std::pin::Pin::new(&mut connection).graceful_shutdown();
                    }
                    // What is no request yet is owed no answer, and who reads no answer is not waited for.
                    Some(_) => break,
                },
            }
        }
        drop(self.open);
    }
}

/// Answers a request, and leaves nothing of its body behind that would break the connection under the answer.
async fn answer(
    handler: &impl Handler,
    request: Request<Incoming>,
    start: Instant,
    deadline: Instant,
    activity: &Activity,
) -> Answer {
    let (head, mut body) = Inbound::split(request);
    let mut answer = handler.answer(&head, &mut body, start).await;
    if !body.drain(deadline.into()).await {
        activity.leave_unread();
        close_after(&mut answer);
    }
    answer
}

/// Tells a client that there are too many. What does not fit into the new socket is not worth waiting for.
fn refuse(stream: TcpStream, refused: &TaskTracker) {
    let problem =
        Problem::new(ProblemKind::Overloaded, "too many connections are open").retry_after(FULL_RETRY_AFTER);
    // Not through tokio: whether it knows of a new socket that there is room depends on its release.
    let socket = SockRef::from(&stream);
    let told = socket
        .send(&problem.into_closing_bytes())
        .and_then(|_| socket.shutdown(net::Shutdown::Write));
    if let Err(error) = told {
        tracing::debug!(%error, "failed to tell a client that there are too many connections");
    } else if refused.len() < MAX_REFUSED {
        refused.spawn(async move { linger::discard(&stream).await });
    }
}
