//! Runs the cluster of this machine: `cluster up`, `cluster down`, and what one needs in between.

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, builder::PossibleValuesParser};
use e2e::{
    cluster::{self, Cluster, DownOptions},
    debian::{self, Package},
    image,
};

/// Runs a real Kubernetes cluster on this machine, in a network of its own.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the cluster up, or heal it.
    Up(Up),
    /// Take the cluster down, with all that is in it.
    Down(Down),
    /// Show who holds the cluster, and what its programs are doing.
    Status,
    /// Run kubectl as administrator.
    Kubectl(Line),
    /// Run a program in the cluster's network, where the names of Services resolve.
    Exec(Line),
    /// Import an image archive into the node.
    LoadImage {
        /// The archive, as `cluster image` or `docker save` write it.
        archive: PathBuf,
    },
    /// Show the log of one of the cluster's programs.
    Logs(Logs),
    /// Pack a static binary into an image archive.
    Image(Image),
    /// Print settings for a shell, to be used by `eval`.
    Env,
    #[command(name = cluster::FIRST_PROCESS_COMMAND, hide = true)]
    FirstProcess { directory: PathBuf },
    #[command(name = cluster::PROVISION_VOLUMES_COMMAND, hide = true)]
    ProvisionVolumes { kubeconfig: PathBuf },
}

#[derive(Args)]
struct Up {
    /// What the cluster is to have beyond what each has, until it is taken down; a cluster that is up gains it.
    #[arg(
        long,
        value_name = "COMPONENT",
        value_delimiter = ',',
        value_parser = PossibleValuesParser::new(cluster::optional_components())
    )]
    with: Vec<String>,
}

#[derive(Args)]
struct Down {
    /// Seconds that processes may take to end.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Take down a cluster that another checkout started.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct Line {
    /// The program's arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    line: Vec<OsString>,
}

#[derive(Args)]
struct Logs {
    /// One of the names that `cluster status` shows.
    component: String,
    /// Go on as the log grows.
    #[arg(long, short)]
    follow: bool,
}

#[derive(Args)]
struct Image {
    /// The static binary.
    #[arg(long)]
    binary: PathBuf,
    /// The image's whole name, registry and tag included.
    #[arg(long)]
    name: String,
    /// The archive.
    #[arg(long)]
    output: PathBuf,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(up) => cluster::up(&up.with)?,
        Command::Down(down) => cluster::down(DownOptions {
            timeout: Duration::from_secs(down.timeout),
            force: down.force,
        })?,
        Command::Status => return Ok(ExitCode::from(u8::from(!cluster::status()?))),
        Command::Kubectl(line) => become_command(Cluster::attach()?.kubectl_command()?.args(line.line))?,
        Command::Exec(line) => become_command(&mut Cluster::attach()?.exec_command(&line.line))?,
        Command::LoadImage { archive } => load_image(&archive)?,
        Command::Logs(logs) => show_log(&logs)?,
        Command::Image(image) => write_image(image)?,
        Command::Env => print_environment()?,
        Command::FirstProcess { directory } => cluster::become_first_process(directory)?,
        Command::ProvisionVolumes { kubeconfig } => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(cluster::provision_volumes(&kubeconfig))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns only where the program cannot be run.
fn become_command(command: &mut std::process::Command) -> Result<()> {
    Err(command.exec()).context("failed to run the program")
}

fn load_image(archive: &std::path::Path) -> Result<()> {
    let name = image::name_in(archive)?;
    if Cluster::attach()?.load_image(archive)? {
        println!("loaded {name}");
    } else {
        println!("the node has {name} already");
    }
    Ok(())
}

fn show_log(logs: &Logs) -> Result<()> {
    let path = Cluster::attach()?.log(&logs.component)?;
    let mut command = std::process::Command::new("tail");
    command.arg("--lines=+1").arg(path);
    if logs.follow {
        command.arg("--follow");
    }
    become_command(&mut command)
}

fn write_image(arguments: Image) -> Result<()> {
    debian::ensure(&[Package {
        program: image::CERTIFICATES,
        package: "ca-certificates",
    }])?;
    let image = image::Image {
        name: arguments.name,
        binary: arguments.binary,
        certificates: Some(image::CERTIFICATES.into()),
    };
    image.write(&arguments.output)
}

fn print_environment() -> Result<()> {
    let cluster = Cluster::attach()?;
    println!("export KUBECONFIG='{}'", cluster.kubeconfig().display());
    println!(
        "# The addresses in it are those of the cluster's network: enter it with `cluster exec -- bash`."
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Vec<String>> {
        match Arguments::try_parse_from(line.split(' ')).ok()?.command {
            Command::Up(up) => Some(up.with),
            _ => None,
        }
    }

    #[test]
    fn brings_up_more_only_where_it_is_asked_for() {
        assert_eq!(parse("cluster up"), Some(Vec::new()));
        assert_eq!(parse("cluster up --with nats"), Some(vec!["nats".to_owned()]));
        assert_eq!(parse("cluster up --with mysql"), None);
    }
}
