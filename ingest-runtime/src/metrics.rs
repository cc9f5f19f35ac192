//! What an operator of the system sees of the endpoint; the store registers its own. Each handle is registered
//! once; labels have few values, all known here.

use std::{fmt, sync::Arc, time::Instant};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, prometheus_text},
    metrics::{MetricType, TypedMetric, counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::http::ProblemKind;

pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// From a commit on a fast disk to the greatest deadline that is usual.
const LATENCY_SECONDS: [f64; 13] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0, 16.0,
];

type FailureLabels = [(&'static str, &'static str); 1];

/// A counter whose name is fixed and does not end in `_total`, which makes it untyped to Prometheus.
#[derive(Clone, Debug, Default)]
pub struct FixedName(Counter);

impl FixedName {
    fn inc(&self) {
        self.0.inc();
    }
}

impl EncodeMetric for FixedName {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0.get())
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for FixedName {
    const TYPE: MetricType = MetricType::Unknown;
}

/// The metrics of the endpoint.
#[derive(Clone, Debug)]
pub struct Metrics {
    messages: Counter,
    persisted: FixedName,
    failed: Family<FailureLabels, FixedName>,
    latency: Histogram,
    /// Connections that are open.
    pub connections: Gauge,
}

impl Metrics {
    /// Registers the metrics under the fixed names of the product.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            messages: Counter::default(),
            persisted: FixedName::default(),
            failed: Family::default(),
            latency: Histogram::new(LATENCY_SECONDS),
            connections: Gauge::default(),
        };
        for reason in ProblemKind::ALL
            .iter()
            .map(|kind| kind.name())
            .chain([DISCONNECTED])
        {
            // A series that starts at 0 shows its first increase.
            let _: FixedName = metrics.failed.get_or_create_owned(&[(REASON, reason)]);
        }
        registry.register(
            // The library appends _total to the name of a counter.
            "ingestion_messages",
            "Messages that were posted, whatever became of them",
            metrics.messages.clone(),
        );
        registry.register(
            "ingestion_messages_persisted",
            "Messages that were answered 200: they are committed",
            metrics.persisted.clone(),
        );
        registry.register(
            "ingestion_messages_failed",
            "Messages that were answered otherwise, by the problem's type",
            metrics.failed.clone(),
        );
        registry.register(
            "ingestion_latency_seconds",
            "From a request's headers to its answer",
            metrics.latency.clone(),
        );
        registry.register(
            "ingestion_http_connections",
            "Connections that clients hold open",
            metrics.connections.clone(),
        );
        metrics
    }

    /// Counts a message whose headers arrived at `start`.
    #[must_use]
    pub fn begin(self: &Arc<Self>, start: Instant) -> Measured {
        self.messages.inc();
        Measured {
            metrics: self.clone(),
            start,
            answered: false,
        }
    }
}

const REASON: &str = "reason";
/// The client went away before its answer; the row may be committed all the same.
const DISCONNECTED: &str = "disconnected";

/// A message on its way to an answer.
#[derive(Debug)]
pub struct Measured {
    metrics: Arc<Metrics>,
    start: Instant,
    answered: bool,
}

impl Measured {
    /// It is committed.
    pub fn persisted(mut self) {
        self.answered = true;
        self.metrics.persisted.inc();
        self.metrics.latency.observe(self.start.elapsed().as_secs_f64());
    }

    /// It is answered with a problem.
    pub fn failed(mut self, kind: ProblemKind) {
        self.answered = true;
        self.metrics.failed.get_or_create(&[(REASON, kind.name())]).inc();
        self.metrics.latency.observe(self.start.elapsed().as_secs_f64());
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.answered {
            self.metrics.failed.get_or_create(&[(REASON, DISCONNECTED)]).inc();
        }
    }
}

/// All metrics in Prometheus' text format.
pub fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    prometheus_text::encode(&mut text, registry)?;
    Ok(text)
}
