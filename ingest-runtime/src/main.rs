//! Runs in the pods of a pipeline.

use std::process::ExitCode;

use clap::Parser;
use ingest_runtime::{
    config::{Arguments, Command},
    run, telemetry,
};

/// Many threads allocate and free each other's memory here, which is what it is good at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let Arguments { log_format, command } = Arguments::parse();
    telemetry::start(log_format);
    let Command::Serve(options) = command;
    match run::serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "ends with an error");
            ExitCode::FAILURE
        }
    }
}
