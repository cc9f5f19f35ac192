//! A real Kubernetes cluster on this machine, for demo, tests and benchmarks.

pub mod build;
pub mod cache;
mod certificates;
pub mod cluster;
pub mod control_plane;
pub mod debian;
pub mod image;
mod kubernetes;
pub mod ledger;
pub mod nats;
pub mod postgres;
pub mod process;

pub use cluster::Cluster;
pub use control_plane::ControlPlane;
pub use nats::Nats;
pub use postgres::Postgres;

#[cfg(test)]
mod tests {
    /// The multi-call binary pins one Kubernetes release for all of its modules.
    #[test]
    fn kubernetes_modules_are_of_one_release() {
        let module = include_str!("../components/kubernetes/go.mod");
        let replaced: Vec<_> = module
            .lines()
            .filter(|line| line.trim_start().starts_with("k8s.io/") && line.contains("=>"))
            .collect();
        assert_eq!(replaced.len(), 33);
        assert!(
            replaced.iter().all(|line| line.ends_with("v0.36.3")),
            "{replaced:?}"
        );
    }
}
