//! What large bodies cost: measured on the real program, with a real PostgreSQL behind it.
#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use bytes::Bytes;
use harness::{PATIENCE, Runtime, answer, example, kind, postgres};
use nomnom_crds::{
    ColumnType, Duration,
    resolved::needed_memory_bytes,
    runtime::{INGEST_PATH, RuntimeConfig},
};

const MIB: usize = 1024 * 1024;
/// A part of what a pod needs for its 4,096 connections, of which there are few here.
const CONNECTIONS_MIB: u64 = 32;

/// One column of text, and bodies of up to `max_body_bytes`.
fn config(max_body_bytes: usize) -> RuntimeConfig {
    let mut config = example();
    config.limits.max_body_bytes = u32::try_from(max_body_bytes).unwrap();
    // Without optimization, and beside other tests, they take their time.
    config.limits.timeout = Duration::from_millis(60_000);
    config.records.truncate(1);
    let record = &mut config.records[0];
    record.matches = None;
    record.table = "bodies".into();
    record.columns.truncate(1);
    record.columns[0].column_type = ColumnType::Text;
    config
}

/// The most memory that the program ever took.
fn high_water_mib(runtime: &Runtime) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", runtime.id())).unwrap();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    kib.unwrap().parse::<u64>().unwrap() / 1024
}

/// Posts a body on a connection of its own until it is stored; others may take the memory first.
async fn store(runtime: &Runtime, body: Bytes) {
    let client = reqwest::Client::new();
    let stored = async {
        loop {
            let request = client
                .post(runtime.url(INGEST_PATH))
                .header("content-type", "text/plain");
            // A large body is not read to its end where it is refused, and its client may see that first.
            let Ok(response) = request.body(body.clone()).send().await else {
                continue;
            };
            match answer(response).await {
                (200, _) => return,
                (status, problem) => assert_eq!((status, kind(&problem)), (503, "overloaded")),
            }
        }
    };
    tokio::time::timeout(PATIENCE * 2, stored).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_of_the_largest_bodies_take_no_more_memory_than_the_spec_asks_for() {
    let postgres = postgres().await;
    for (size_mib, at_once, rounds) in [(8, 16, 2), (32, 1, 5), (32, 4, 2)] {
        let size = size_mib * MIB;
        let runtime = Runtime::start_on(&postgres, &config(size)).await;
        let body = Bytes::from(vec![b'x'; size]);
        for _ in 0..rounds {
            let stores = (0..at_once).map(|_| store(&runtime, body.clone()));
            futures::future::join_all(stores).await;
        }
        let needed = needed_memory_bytes(u32::try_from(size).unwrap()) / MIB as u64;
        let taken = high_water_mib(&runtime);
        println!("{size_mib} MiB, {at_once} at once, {rounds} times: {taken} MiB of {needed}");
        assert!(
            taken < needed - CONNECTIONS_MIB,
            "{size_mib} MiB, {at_once} at once: {taken} MiB of {needed}"
        );
    }
}
