//! Runs the cluster of the end-to-end tests.
use clap::Parser;

/// Runs a real Kubernetes cluster on this machine.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

fn main() {
    Arguments::parse();
}
