//! The first cell: requests a second at the sync endpoint, every one of them committed.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::Postgres;
use nomnom_crds::{
    IngestionPipeline, ResolvedSpec,
    runtime::{RuntimeConfig, config::PipelineIdentity},
};
use sqlx::{Connection, PgConnection};

use crate::{
    Plan, disk,
    load::{self, LoadResult},
    report::Cell,
    server::{Server, free_address},
};

const EXAMPLE: &str = include_str!("../../../../examples/orders.yaml");
const CELL: &str = "sync, requests a second";
const HELLO: &str = "axum hello-world";
const ORDINARY: &str = "one INSERT a request, pool";
const NOMNOM: &str = "nomnom sync";

/// Before a contestant is measured, it serves this long uncounted.
const WARM_UP: Duration = Duration::from_millis(700);
/// Rounds on an unsteady disk are repeated, so many times.
const MAX_REPEATED: usize = 10;

struct Contestants {
    directory: tempfile::TempDir,
    postgres: Postgres,
    servers: Vec<(&'static str, Server)>,
}

/// Runs the cell.
pub(crate) async fn run(plan: Plan, runtime: &Path) -> Result<Vec<Cell>> {
    println!(
        "{CELL}: {} connections, {} rounds of {:?} each",
        plan.connections, plan.rounds, plan.duration
    );
    let mut contestants = start(runtime).await?;
    let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let (mut counted, mut repeated) = (0, 0);
    while counted < plan.rounds {
        let before = disk::syncs_per_second(contestants.directory.path())?;
        let round = run_round(plan, &mut contestants, counted).await?;
        let after = disk::syncs_per_second(contestants.directory.path())?;
        if !disk::is_steady(before, after) && repeated < MAX_REPEATED {
            repeated += 1;
            println!(
                "  the disk went from {before:.0} to {after:.0} syncs a second: this round does not count"
            );
            continue;
        }
        for (name, rate) in round {
            rates.entry(name).or_default().push(rate);
        }
        counted += 1;
    }
    let ratios = |against: &str| -> Vec<f64> {
        rates[NOMNOM]
            .iter()
            .zip(&rates[against])
            .map(|(ours, theirs)| ours / theirs)
            .collect()
    };
    Ok(vec![
        Cell::new(CELL, HELLO, 0.5, &ratios(HELLO)),
        Cell::new(CELL, ORDINARY, 4.0, &ratios(ORDINARY)),
    ])
}

/// One measurement of each contestant; who is first changes from round to round.
async fn run_round(
    plan: Plan,
    contestants: &mut Contestants,
    round: usize,
) -> Result<Vec<(&'static str, f64)>> {
    let mut rates = Vec::new();
    let count = contestants.servers.len();
    let keys = Arc::new(AtomicU64::new(1));
    for turn in 0..count {
        let (name, server) = &contestants.servers[(round + turn) % count];
        let before = count_rows(&contestants.postgres, name).await?;
        let warm_up = load::run(server.address, plan.connections, WARM_UP, &keys).await?;
        let result = load::run(server.address, plan.connections, plan.duration, &keys).await?;
        ensure!(
            result.other + warm_up.other == 0,
            "{name} answered {} times other than 200",
            result.other
        );
        check_rows(&contestants.postgres, name, before, warm_up.ok + result.ok).await?;
        show(round, name, &result);
        rates.push((*name, result.rate()));
    }
    Ok(rates)
}

fn show(round: usize, name: &str, result: &LoadResult) {
    let (p50, p99) = (
        result.latency(500).as_secs_f64() * 1e3,
        result.latency(990).as_secs_f64() * 1e3,
    );
    println!(
        "  round {}: {name:<28} {:>8.0}/s   p50 {p50:>6.1} ms   p99 {p99:>6.1} ms",
        round + 1,
        result.rate()
    );
}

/// What was answered 200 must be in the table: a fast server that loses records has not won.
async fn check_rows(postgres: &Postgres, name: &str, before: i64, ok: u64) -> Result<()> {
    if name == HELLO {
        return Ok(());
    }
    let rows = count_rows(postgres, name).await? - before;
    ensure!(
        u64::try_from(rows) == Ok(ok),
        "{name} answered 200 {ok} times, but its table has {rows} rows more"
    );
    Ok(())
}

async fn count_rows(postgres: &Postgres, name: &str) -> Result<i64> {
    let query = match name {
        NOMNOM => "SELECT count(*) FROM orders",
        ORDINARY => "SELECT count(*) FROM ordinary_orders",
        _ => return Ok(0),
    };
    let mut connection = PgConnection::connect(&postgres.superuser_url("bench")).await?;
    sqlx::query_scalar(query)
        .fetch_one(&mut connection)
        .await
        .context("failed to count rows")
}

async fn start(runtime: &Path) -> Result<Contestants> {
    let directory = tempfile::tempdir()?;
    let postgres = Postgres::start().await?;
    postgres.create_database("bench").await?;
    let url = postgres.superuser_url("bench");
    let servers = vec![
        (HELLO, start_yardstick(&["hello"]).await?),
        (
            ORDINARY,
            start_yardstick(&["ordinary", "--database-url", &url]).await?,
        ),
        (NOMNOM, start_runtime(runtime, directory.path(), &url).await?),
    ];
    Ok(Contestants {
        directory,
        postgres,
        servers,
    })
}

async fn start_yardstick(arguments: &[&str]) -> Result<Server> {
    let address = free_address()?;
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    Server::start(&env::current_exe()?, &arguments, address).await
}

/// The program as it runs in a pod, with the configuration that the operator would render for the example.
async fn start_runtime(program: &Path, directory: &Path, url: &str) -> Result<Server> {
    let pipeline: IngestionPipeline = serde_yaml::from_str(EXAMPLE).context("examples/orders.yaml")?;
    let spec = ResolvedSpec::resolve(&pipeline.spec).map_err(|invalid| anyhow::anyhow!("{invalid:?}"))?;
    let identity = PipelineIdentity {
        namespace: "bench".into(),
        name: "orders".into(),
        uid: "bench".into(),
    };
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    fs::write(
        path("pipeline.json"),
        serde_json::to_vec(&RuntimeConfig::new(identity, &spec))?,
    )?;
    fs::write(path("url"), url)?;
    fs::write(path("key"), [7_u8; 32])?;
    let (address, admin) = (free_address()?, free_address()?);
    let arguments = [
        "serve".into(),
        format!("--config={}", path("pipeline.json")),
        format!("--database-url-file={}", path("url")),
        format!("--receipt-key-file={}", path("key")),
        format!("--listen={address}"),
        format!("--admin-listen={admin}"),
    ];
    let server = Server::start(program, &arguments, address).await?;
    wait_for_database(admin).await?;
    Ok(server)
}

async fn wait_for_database(admin: std::net::SocketAddr) -> Result<()> {
    for _ in 0..200 {
        let state = reqwest::get(format!("http://{admin}/state")).await;
        if let Ok(answer) = state {
            let state: nomnom_crds::runtime::RuntimeState = answer.json().await.context("not a state")?;
            if state.database.ready {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("the runtime has no database after 10 s")
}
