//! The outside of the runtime: every route, on the public port and on the pod's own.
//!
//! Requests go from hyper straight to these functions, without a router's boxes in between: on the path of every
//! record, what is not done is what is fast. What is no success is a problem, in RFC 9457's form.

mod activity;
mod admin;
mod body;
mod idempotency;
mod ingest;
mod linger;
mod listener;
mod problem;
mod server;
mod status;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, header, request::Parts};
use http_body_util::Full;
use nomnom_crds::runtime::{INGEST_PATH, RuntimeConfig};

pub use admin::Admin;
pub use body::Inbound;
pub use problem::ProblemKind;
pub use server::{Handler, MAX_CONNECTIONS, Server, ServerOptions};

use crate::{metrics::Metrics, receipt::Receipts, record::Decoder, shutdown::Shutdown, store::Store};
use body::Memory;
use problem::Problem;

/// The path of a message's status, before its id.
pub const STATUS_PATH: &str = "/api/ingest/status/";

/// The largest head of a request, in bytes of names and values: four times what browsers and gateways send.
const MAX_HEADER_BYTES: usize = 16 * 1024;

type Answer = Response<Full<Bytes>>;

/// What answers the public port.
pub struct Endpoint {
    config: Arc<RuntimeConfig>,
    decoder: Decoder,
    receipts: Receipts,
    store: Store,
    metrics: Arc<Metrics>,
    memory: Memory,
    shutdown: Shutdown,
}

/// What an [`Endpoint`] is made of.
pub struct EndpointParts {
    /// The pipeline.
    pub config: Arc<RuntimeConfig>,
    /// Reads its records.
    pub decoder: Decoder,
    /// Makes its ids.
    pub receipts: Receipts,
    /// Commits its rows.
    pub store: Store,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Tells when the pod is leaving.
    pub shutdown: Shutdown,
}

impl Endpoint {
    /// An endpoint.
    #[must_use]
    pub fn new(parts: EndpointParts) -> Self {
        Self {
            memory: Memory::new(&parts.config.limits),
            config: parts.config,
            decoder: parts.decoder,
            receipts: parts.receipts,
            store: parts.store,
            metrics: parts.metrics,
            shutdown: parts.shutdown,
        }
    }

    /// Every public route.
    async fn route(&self, head: &Parts, body: &mut Inbound, start: Instant) -> Result<Answer, Problem> {
        check_head(head)?;
        let (method, path) = (&head.method, head.uri.path());
        if path == INGEST_PATH {
            return match *method {
                Method::POST => Ok(ingest::post(self, &head.headers, body, start).await),
                _ => Err(Problem::method_not_allowed("POST")),
            };
        }
        if let Some(id) = path.strip_prefix(STATUS_PATH) {
            return match *method {
                Method::GET | Method::HEAD => status::get(self, id, start).await,
                _ => Err(Problem::method_not_allowed("GET, HEAD")),
            };
        }
        Err(Problem::not_found())
    }
}

impl Handler for Endpoint {
    async fn answer(&self, head: &Parts, body: &mut Inbound, start: Instant) -> Answer {
        let answer = self.route(head, body, start).await;
        let mut answer = answer.unwrap_or_else(Problem::into_answer);
        if self.shutdown.is_draining() {
            close_after(&mut answer);
        }
        answer
    }
}

/// Refuses a head that is too large. hyper's own limits are wider and its refusals plain.
fn check_head(head: &Parts) -> Result<(), Problem> {
    let headers = head.headers.iter();
    let bytes: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    let path = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if bytes + path > MAX_HEADER_BYTES {
        let detail = format!("path and headers are longer than {MAX_HEADER_BYTES} bytes");
        return Err(Problem::new(ProblemKind::HeadersTooLarge, detail).closing());
    }
    Ok(())
}

/// Asks the client to open another connection for its next request.
fn close_after(answer: &mut Answer) {
    answer
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
}

fn json_answer(body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
