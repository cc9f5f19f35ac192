//! Runs in the pods of a pipeline.
use clap::Parser;

/// Accepts records over HTTP and writes them to PostgreSQL.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

fn main() {
    Arguments::parse();
}
