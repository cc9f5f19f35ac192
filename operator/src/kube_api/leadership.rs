//! Leader election by a Lease, for one process of many at a time.
//!
//! Times are measured by this process's monotonic clock from the moment at which it saw the lease change, never by the
//! time that is written in it: clocks of machines differ by hours. Every write carries the resource version that
//! was read, so of two candidates one is refused.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// A candidate for one lease.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    duration: Duration,
    leadership: Leadership,
}

/// Whether this process is the leader, and since when it has been sure of it.
#[derive(Clone)]
pub struct Leadership {
    trusted_for: Option<Duration>,
    renewed_at: Arc<Mutex<Option<Instant>>>,
}

/// The lease was not renewed in time, or somebody else holds it.
#[derive(Debug, thiserror::Error)]
#[error("lost the lease {0}")]
pub struct LeaseLost(String);

impl Leadership {
    /// Of a process that has no rivals.
    #[must_use]
    pub fn undisputed() -> Self {
        Self {
            trusted_for: None,
            renewed_at: Arc::default(),
        }
    }

    /// Whether the lease is younger than two thirds of its duration, so that nobody else can hold it by the
    /// time that a request which is sent now has been answered.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        let renewed_at = *self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.trusted_for, renewed_at) {
            (None, _) => true,
            (Some(trusted_for), Some(renewed_at)) => renewed_at.elapsed() < trusted_for,
            (Some(_), None) => false,
        }
    }

    fn renew(&self, at: Instant) {
        *self.renewed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }
}

impl Candidate {
    /// A candidate under a name that no other process has.
    #[must_use]
    pub fn new(
        client: Client,
        (namespace, name): (&str, &str),
        identity: String,
        duration: Duration,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            duration,
            leadership: Leadership {
                trusted_for: Some(duration * 2 / 3),
                renewed_at: Arc::default(),
            },
        }
    }

    /// What the candidate knows of its leadership.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Waits until this process is the leader; calls `looked` each time that the API server has answered.
    pub async fn acquire(&self, looked: impl Fn()) {
        let mut seen: Option<(String, Instant)> = None;
        loop {
            // An answer that never comes must not be waited for: nobody would lead. A claim that was written all the
            // same is seen at the next look.
            match timeout(self.duration / 4, self.try_acquire(&mut seen)).await {
                Ok(Ok(true)) => {
                    info!(lease = self.name, identity = self.identity, "acquired the lease");
                    return;
                }
                Ok(Ok(false)) => looked(),
                Ok(Err(error)) => warn!(lease = self.name, %error, "failed to ask for the lease"),
                Err(_) => warn!(lease = self.name, "asking for the lease took too long"),
            }
            // Four looks in one duration, as often as the holder renews and once more.
            sleep(self.duration / 4).await;
        }
    }

    /// Renews the lease until it is lost.
    pub async fn hold(&self) -> LeaseLost {
        loop {
            sleep(self.duration / 4).await;
            if !self.leadership.is_fresh() {
                break;
            }
            // A request that hangs must not outlive the trust in the lease.
            match timeout(self.duration / 4, self.renew()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) => break,
                Ok(Err(error)) => warn!(lease = self.name, %error, "failed to renew the lease"),
                Err(_) => warn!(lease = self.name, "renewing the lease took too long"),
            }
        }
        LeaseLost(self.name.clone())
    }

    /// Gives the lease up, so that another process need not wait.
    pub async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(&self.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            self.api
                .replace(&self.name, &PostParams::default(), &lease)
                .await?;
        }
        Ok(())
    }

    async fn try_acquire(&self, seen: &mut Option<(String, Instant)>) -> Result<bool, kube::Error> {
        let started_at = Instant::now();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.claim(0)),
            };
            return self.written(self.api.create(&PostParams::default(), &lease).await, started_at);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let unchanged_since = match seen {
            Some((seen_version, since)) if *seen_version == version => *since,
            _ => seen.insert((version, started_at)).1,
        };
        let spec = lease.spec.unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        let seconds = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        let is_expired = unchanged_since.elapsed() > seconds.map_or(self.duration, Duration::from_secs);
        if !holder.is_empty() && holder != self.identity && !is_expired {
            return Ok(false);
        }
        lease.spec = Some(self.claim(spec.lease_transitions.unwrap_or_default() + 1));
        let result = self.api.replace(&self.name, &PostParams::default(), &lease).await;
        self.written(result, started_at)
    }

    /// False where another process took the lease.
    async fn renew(&self) -> Result<bool, kube::Error> {
        let started_at = Instant::now();
        let mut lease = self.api.get(&self.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(false);
        }
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        self.api
            .replace(&self.name, &PostParams::default(), &lease)
            .await?;
        self.leadership.renew(started_at);
        Ok(true)
    }

    /// A conflict means that somebody else was faster.
    fn written(&self, result: Result<Lease, kube::Error>, started_at: Instant) -> Result<bool, kube::Error> {
        match result {
            Ok(_) => {
                self.leadership.renew(started_at);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn claim(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}
