//! The operator as a process: it finds the API server by itself, takes the lease, stays small, and gives the lease up when
//! it is told to end.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    process::{Child, Command, Stdio},
};

use e2e::control_plane::Options;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use support::{Bed, eventually, example};

/// What the operator may take (issue 3), in the unit of `/proc`.
const MAX_RESIDENT_KIB: u64 = 40 * 1024;
/// As many pipelines as a cluster with many teams has.
const PIPELINES: usize = 50;

/// Killed when the test ends before it does.
struct Operator(Child);

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Operator {
    fn start(bed: &Bed) -> Self {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let mut command = Command::new(env!("CARGO_BIN_EXE_operator"));
        command
            .args(["--lease-namespace", "nomnom-system", "--admin-address", &address])
            .env("KUBECONFIG", bed.plane.kubeconfig())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    fn end(&mut self) -> Option<i32> {
        let id = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        self.0.wait().unwrap().code()
    }
}

#[tokio::test]
async fn leads_stays_small_and_ends_when_told() {
    let bed = Bed::install(Options::default()).await;
    let mut operator = Operator::start(&bed);
    for index in 0..PIPELINES {
        bed.apply(&example(&format!("orders-{index}"))).await;
    }
    for index in 0..PIPELINES {
        bed.wait_for(&format!("orders-{index}"), "Accepted", ("True", "Valid"))
            .await;
    }
    let resident = operator.resident_kib();
    println!("{resident} KiB resident with {PIPELINES} pipelines");
    assert!(resident < MAX_RESIDENT_KIB, "{resident} KiB resident");

    let leases: Api<Lease> = Api::namespaced(bed.client.clone(), "nomnom-system");
    let holder = |lease: Lease| lease.spec.unwrap().holder_identity;
    assert!(holder(leases.get("nomnom-operator").await.unwrap()).is_some());
    assert_eq!(operator.end(), Some(0));
    eventually("a free lease", || async {
        holder(leases.get("nomnom-operator").await.unwrap()).map_or(Ok(()), Err)
    })
    .await;
}
