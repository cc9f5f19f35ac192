//! What an operator of the operator watches: passes and their length, writes, questions to pods, leadership.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// A pass takes a few milliseconds when nothing changed, and up to the sum of its timeouts.
const PASS_SECONDS: [f64; 8] = [0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0];

/// Why a pass ended as it did: `ok`, or the reason of the condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    verb: &'static str,
}

/// All metrics of the operator.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    passes: Family<ResultLabel, Counter>,
    pass_seconds: Histogram,
    writes: Family<WriteLabels, Counter>,
    state_requests: Family<ResultLabel, Counter>,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nomnom_operator");
        let passes: Family<ResultLabel, Counter> = Family::default();
        let pass_seconds = Histogram::new(PASS_SECONDS);
        let writes: Family<WriteLabels, Counter> = Family::default();
        let state_requests: Family<ResultLabel, Counter> = Family::default();
        let leader = Gauge::default();
        registry.register(
            "reconciles",
            "Passes over a pipeline, by their result",
            passes.clone(),
        );
        registry.register(
            "reconcile_duration_seconds",
            "How long a pass took",
            pass_seconds.clone(),
        );
        registry.register("writes", "Objects written, by kind and verb", writes.clone());
        registry.register(
            "state_requests",
            "Questions to pods, by their result",
            state_requests.clone(),
        );
        registry.register("leader", "Whether this process is the leader", leader.clone());
        Self {
            registry: Arc::new(registry),
            passes,
            pass_seconds,
            writes,
            state_requests,
            leader,
        }
    }
}

impl Metrics {
    /// Counts a pass.
    pub fn count_pass(&self, result: &'static str, duration: Duration) {
        self.passes.get_or_create(&ResultLabel { result }).inc();
        self.pass_seconds.observe(duration.as_secs_f64());
    }

    /// Counts a write.
    pub fn count_write(&self, kind: &'static str, verb: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind, verb }).inc();
    }

    /// Counts a question to a pod.
    pub fn count_state_request(&self, is_ok: bool) {
        let result = if is_ok { "ok" } else { "error" };
        self.state_requests.get_or_create(&ResultLabel { result }).inc();
    }

    /// Says that this process is the leader.
    pub fn set_leader(&self) {
        self.leader.set(1);
    }

    /// All metrics in the text format of OpenMetrics.
    ///
    /// # Errors
    /// Formatting failed.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
