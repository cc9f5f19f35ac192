//! What an operator of the system sees of the store; every handle is registered once.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// From a commit on a local disk (half a millisecond) to a statement that times out.
const SECONDS: [f64; 14] = [
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0, 16.0,
];
/// Up to the largest batch.
const ROWS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0];

/// The metrics of the store.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) database_latency: Histogram,
    pub(super) connections_active: Gauge,
    pub(super) connections_idle: Gauge,
    pub(super) batch_rows: Histogram,
    pub(super) channel_wait: Histogram,
    pub(super) channel_rows: Gauge,
    pub(super) breaker_open: Gauge,
    pub(super) duplicates: Counter<u64, AtomicU64>,
    pub(super) resent: Counter<u64, AtomicU64>,
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            database_latency: Histogram::new(SECONDS),
            connections_active: Gauge::default(),
            connections_idle: Gauge::default(),
            batch_rows: Histogram::new(ROWS),
            channel_wait: Histogram::new(SECONDS),
            channel_rows: Gauge::default(),
            breaker_open: Gauge::default(),
            duplicates: Counter::default(),
            resent: Counter::default(),
        };
        metrics.add_to(registry);
        metrics
    }

    fn add_to(&self, registry: &mut Registry) {
        registry.register(
            "ingestion_db_latency_seconds",
            "How long PostgreSQL took to commit a batch",
            self.database_latency.clone(),
        );
        registry.register(
            "ingestion_db_connections_active",
            "Writers' connections that commit a batch now",
            self.connections_active.clone(),
        );
        registry.register(
            "ingestion_db_connections_idle",
            "Writers' connections that wait for rows",
            self.connections_idle.clone(),
        );
        registry.register(
            "ingestion_db_batch_rows",
            "Rows of a batch",
            self.batch_rows.clone(),
        );
        registry.register(
            "ingestion_db_channel_wait_seconds",
            "How long the first row of a batch waited for a writer",
            self.channel_wait.clone(),
        );
        registry.register(
            "ingestion_db_channel_rows",
            "Rows that wait for a writer",
            self.channel_rows.clone(),
        );
        registry.register(
            "ingestion_db_breaker_open",
            "1 while rows are refused because the database takes none",
            self.breaker_open.clone(),
        );
        registry.register(
            "ingestion_db_duplicates",
            "Rows that were in their table already",
            self.duplicates.clone(),
        );
        registry.register(
            "ingestion_db_resent",
            "Rows sent again after a connection broke",
            self.resent.clone(),
        );
    }
}
