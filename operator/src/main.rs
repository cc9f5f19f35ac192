//! Reconciles `IngestionPipeline` resources.
use clap::Parser;

/// Reconciles `IngestionPipeline` resources into running HTTP ingestion endpoints.
#[derive(Parser)]
#[command(version)]
struct Arguments {}

fn main() {
    Arguments::parse();
}
