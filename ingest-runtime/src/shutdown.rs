//! The end of a pod, in steps that everybody who takes part can wait for.
//!
//! Kubernetes tells the pod to end and tells everybody else to stop sending, at the same time: connections still
//! arrive for some seconds. So the pod goes on serving, not ready any more, and asks its clients to reconnect;
//! then it stops accepting, finishes what it has, and ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How far the end of the process is.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    draining: Arc<AtomicBool>,
    closing: CancellationToken,
}

impl Shutdown {
    /// Waits for SIGTERM or SIGINT.
    pub async fn requested() -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("failed to listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for SIGINT")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }

    /// Says that the pod is leaving, and after `delay` that it accepts no more connections.
    pub async fn drain(&self, delay: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(delay).await;
        self.closing.cancel();
    }

    /// Whether the pod is leaving: not ready, and each answer is the last of its connection.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Waits until no more connections are to be accepted.
    pub async fn closing(&self) {
        self.closing.cancelled().await;
    }
}
