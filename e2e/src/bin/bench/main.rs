//! `bench`: what nomnom does, as ratios to yardsticks that run in the same process tree, interleaved, on the
//! same machine. Absolute figures of one machine say little; these ratios can be compared.
//!
//! Each cell runs at least five rounds; a table goes to the screen and `target/bench.json` holds the same.

mod disk;
mod load;
mod report;
mod server;
mod sync_cell;
mod yardstick;

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

/// Measures nomnom against yardsticks in the same run.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// How often each contestant is measured, in turn; at least 5.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each contestant is measured in a round, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Keep-alive connections of the load.
    #[arg(long, default_value_t = 256)]
    connections: usize,
    /// The `ingest-runtime` program, built with --release.
    #[arg(long, default_value = "target/release/ingest-runtime")]
    runtime: PathBuf,
    /// Where the results are written.
    #[arg(long, default_value = "target/bench.json")]
    output: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Serves hello-world; a contestant, started by the bench itself.
    #[command(hide = true)]
    Hello,
    /// Serves an ordinary one-INSERT-a-request service; a contestant, started by the bench itself.
    #[command(hide = true)]
    Ordinary {
        #[arg(long)]
        database_url: String,
    },
}

/// How a cell is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) duration: Duration,
    pub(crate) connections: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Hello) => yardstick::serve_hello().await,
        Some(Command::Ordinary { database_url }) => yardstick::serve_ordinary(&database_url).await,
        None => measure(&arguments).await,
    }
}

async fn measure(arguments: &Arguments) -> Result<()> {
    ensure!(
        arguments.rounds >= 5,
        "--rounds must be at least 5: fewer say nothing about the spread"
    );
    ensure!(
        arguments.runtime.is_file(),
        "{} is missing: run `make bench`, which builds it, or name it with --runtime",
        arguments.runtime.display()
    );
    let duration = Duration::from_secs(arguments.seconds);
    let plan = Plan {
        rounds: arguments.rounds,
        duration,
        connections: arguments.connections,
    };
    let cells = sync_cell::run(plan, &arguments.runtime).await?;
    report::print(&cells);
    report::write(&cells, &arguments.output)
}
