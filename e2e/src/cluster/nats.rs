//! The cluster's nats-server, and the faults that a test can give it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    Cluster,
    component::State,
    components::NATS,
    layout::{NATS_PORT, node_socket},
};
use crate::nats;

/// A stop syncs what is stored.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The nats-server of a cluster that was brought up with one. Its clients need no credentials.
#[derive(Clone, Debug)]
pub struct ClusterNats {
    cluster: Cluster,
}

impl ClusterNats {
    pub(super) const fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// The URL, as pods reach it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://nats.queues.svc:{NATS_PORT}")
    }

    /// The URL, as tests reach it inside of [`Cluster::run`], where names do not resolve.
    #[must_use]
    pub fn node_url(&self) -> String {
        format!("nats://{}", node_socket(NATS_PORT))
    }

    /// Ends the server as an administrator would: clients are told, and what is stored is synced.
    pub fn stop(&self) -> Result<()> {
        NATS.stop(&self.cluster.layout, STOP_TIMEOUT)
    }

    /// Kills the server, as a crash would.
    pub fn kill(&self) -> Result<()> {
        NATS.kill(&self.cluster.layout)
    }

    /// Starts the server again, on its data, and waits until JetStream is on.
    pub fn start(&self) -> Result<()> {
        self.cluster.start_component(&NATS)
    }

    /// Freezes the server: connections stay open, and nothing answers.
    pub fn pause(&self) -> Result<()> {
        NATS.pause(&self.cluster.layout)
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) -> Result<()> {
        NATS.resume(&self.cluster.layout)
    }

    /// Removes all streams while the server is stopped, as a pod that comes back without its volume would.
    pub fn wipe(&self) -> Result<()> {
        let Cluster { layout, sandbox } = &self.cluster;
        ensure!(
            NATS.state(layout, sandbox) == State::Stopped,
            "nats-server is running"
        );
        nats::wipe(&layout.path(NATS.name))
    }
}
