//! The outside of the runtime: every route, on the public port and on the pod's own.
//!
//! Requests go from hyper straight to these functions, without a router's boxes in between: on the path of every
//! record, what is not done is what is fast. Whatever is no answer is a [`problem`], in RFC 9457's form.

mod activity;
mod admin;
mod body;
mod idempotency;
mod ingest;
mod problem;
mod server;
mod status;

use std::{convert::Infallible, sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use nomnom_crds::runtime::{INGEST_PATH, RuntimeConfig};

pub use admin::Admin;
pub use problem::ProblemKind;
pub use server::{Server, ServerOptions};

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

    /// Answers a request to the public port.
    pub async fn answer(&self, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let start = Instant::now();
        let mut answer = match self.route(request, start).await {
            Ok(answer) => answer,
            Err(problem) => problem.into_answer(),
        };
        if self.shutdown.is_draining() {
            close_after(&mut answer);
        }
        Ok(answer)
    }

    /// Every public route.
    async fn route(&self, request: Request<Incoming>, start: Instant) -> Result<Answer, Box<Problem>> {
        check_head(&request)?;
        let (method, path) = (request.method(), request.uri().path());
        if path == INGEST_PATH {
            return match *method {
                Method::POST => Ok(ingest::post(self, request, start).await),
                _ => Err(Problem::method_not_allowed("POST")),
            };
        }
        if let Some(id) = path.strip_prefix(STATUS_PATH) {
            return match *method {
                Method::GET | Method::HEAD => status::get(self, id).await,
                _ => Err(Problem::method_not_allowed("GET, HEAD")),
            };
        }
        Err(Problem::not_found())
    }
}

/// Refuses a head that is too large. hyper's own limits are wider and its refusals plain.
fn check_head(request: &Request<Incoming>) -> Result<(), Box<Problem>> {
    let headers = request.headers().iter();
    let bytes: usize = headers
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    if bytes + request.uri().path().len() > MAX_HEADER_BYTES {
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
