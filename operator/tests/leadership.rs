//! Of two processes one leads, whatever the time says that is written in the lease.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::time::Duration;

use e2e::ControlPlane;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use operator::kube_api::leadership::Candidate;
use serde_json::json;
use tokio::time::timeout;

/// Short, so that the test is.
const DURATION: Duration = Duration::from_secs(2);
/// For what must come.
const DEADLINE: Duration = Duration::from_secs(30);

fn candidate(plane: &ControlPlane, identity: &str) -> Candidate {
    Candidate::new(plane.client(), ("default", "operator"), identity.into(), DURATION)
}

async fn holder(plane: &ControlPlane) -> Option<String> {
    let lease = Api::<Lease>::namespaced(plane.client(), "default")
        .get("operator")
        .await
        .unwrap();
    lease.spec.unwrap().holder_identity
}

#[tokio::test]
async fn one_leads_and_the_other_follows() {
    let plane = ControlPlane::start().await.unwrap();
    let (first, second) = (candidate(&plane, "first"), candidate(&plane, "second"));
    assert!(!first.leadership().is_fresh());
    timeout(DEADLINE, first.acquire(|| ())).await.unwrap();
    assert!(first.leadership().is_fresh());

    // While the first renews, the second waits, although the time in the lease is long ago.
    let long_ago = json!({"spec": {"renewTime": "2001-01-01T00:00:00.000000Z"}});
    let leases: Api<Lease> = Api::namespaced(plane.client(), "default");
    leases
        .patch("operator", &PatchParams::default(), &Patch::Merge(long_ago))
        .await
        .unwrap();
    tokio::select! {
        lost = first.hold() => panic!("{lost}"),
        () = second.acquire(|| ()) => panic!("two leaders"),
        () = tokio::time::sleep(DURATION * 3) => {}
    }

    // Once it does not, the second takes over, and the first knows.
    timeout(DEADLINE, second.acquire(|| ())).await.unwrap();
    assert_eq!(holder(&plane).await.as_deref(), Some("second"));
    assert!(!first.leadership().is_fresh());
    timeout(DEADLINE, first.hold()).await.unwrap();

    // A lease that is given up is free at once.
    second.release().await.unwrap();
    assert_eq!(holder(&plane).await, None);
    timeout(DEADLINE, first.acquire(|| ())).await.unwrap();
    assert!(first.leadership().is_fresh());

    // Without an API server the leader ends before anybody else could be one.
    let mut plane = plane;
    plane.stop();
    timeout(DURATION * 2, first.hold()).await.unwrap();
}
