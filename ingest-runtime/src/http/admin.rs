//! The pod's own port: for kubelet, Prometheus and the operator, never for clients.

use std::{sync::Arc, time::Instant};

use http::{HeaderValue, Method, Response, header, request::Parts};
use http_body_util::Full;
use nomnom_crds::runtime::RuntimeState;
use prometheus_client::registry::Registry;

use super::{
    Answer, Handler, Inbound, json_answer,
    problem::{Problem, ProblemKind},
};
use crate::{config::Loaded, metrics, shutdown::Shutdown, store::Store};

/// What answers the admin port.
pub struct Admin {
    /// What the pod was started with.
    pub loaded: Loaded,
    /// All metrics.
    pub registry: Arc<Registry>,
    /// The database as it is seen now.
    pub store: Store,
    /// Tells when the pod is leaving.
    pub shutdown: Shutdown,
}

impl Handler for Admin {
    async fn answer(&self, head: &Parts, _: &mut Inbound, _: Instant) -> Answer {
        let answer = match head.method {
            Method::GET | Method::HEAD => self.route(head.uri.path()),
            _ => Err(Problem::method_not_allowed("GET, HEAD")),
        };
        answer.unwrap_or_else(Problem::into_answer)
    }
}

impl Admin {
    /// Every route of the admin port.
    fn route(&self, path: &str) -> Result<Answer, Problem> {
        match path {
            "/livez" => Ok(text("ok\n", "text/plain")),
            "/readyz" => self.ready(),
            "/metrics" => Ok(text(
                metrics::encode(&self.registry).unwrap_or_default(),
                metrics::CONTENT_TYPE,
            )),
            "/state" => Ok(json_answer(serde_json::to_vec(&self.state()).unwrap_or_default())),
            _ => Err(Problem::new(
                ProblemKind::NotFound,
                "there are /livez, /readyz, /metrics and /state",
            )),
        }
    }

    /// Ready from the moment that this port is open, whatever the database does, until the pod leaves.
    fn ready(&self) -> Result<Answer, Problem> {
        if self.shutdown.is_draining() {
            return Err(Problem::new(ProblemKind::Overloaded, "the pod is leaving"));
        }
        Ok(text("ok\n", "text/plain"))
    }

    fn state(&self) -> RuntimeState {
        RuntimeState {
            config_hash: self.loaded.config_hash.clone(),
            pipeline_uid: self.loaded.config.pipeline.uid.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            receipt_key_fingerprint: self.loaded.receipt_key_fingerprint.clone(),
            database: self.store.state(),
        }
    }
}

fn text(body: impl Into<bytes::Bytes>, content_type: &'static str) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
