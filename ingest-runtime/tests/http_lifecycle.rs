//! From start to end: what a pod needs to start, what its admin port says, and that its end cuts nobody off.
#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use harness::{DATABASE, ORDER, PATIENCE, Runtime, command, example, postgres};
use nomnom_crds::runtime::{INGEST_PATH, content_hash};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What one client of the drain test saw.
#[derive(Default)]
struct Seen {
    ok: AtomicU64,
    refused_connections: AtomicU64,
}

/// Posts on one connection until the server asks to reconnect, then on the next, until none is accepted.
async fn post_until_refused(runtime: Arc<Runtime>, terminated: Arc<AtomicBool>, seen: Arc<Seen>) {
    loop {
        let Ok(mut stream) = TcpStream::connect(runtime.address).await else {
            assert!(terminated.load(Ordering::Relaxed), "refused before the end");
            seen.refused_connections.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut closed = false;
        while !closed {
            let request = format!(
                "POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{ORDER}",
                ORDER.len()
            );
            stream
                .write_all(request.as_bytes())
                .await
                .expect("a connection is cut");
            let head = read_head(&mut stream).await;
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            seen.ok.fetch_add(1, Ordering::Relaxed);
            closed = head.contains("connection: close");
        }
    }
}

/// Reads one answer, whose body is in the packet of its head.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut buffer = Vec::new();
    while !buffer.ends_with(b"}") {
        let read = stream.read_buf(&mut buffer).await.expect("a request is cut");
        assert!(read > 0, "a request is cut: {}", String::from_utf8_lossy(&buffer));
    }
    String::from_utf8(buffer)
        .unwrap()
        .to_lowercase()
        .replacen("http/1.1", "HTTP/1.1", 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_cuts_no_request() {
    let postgres = postgres().await;
    let runtime = Arc::new(Runtime::start_on(&postgres, &example()).await);
    let (seen, terminated) = (Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..16)
        .map(|_| {
            tokio::spawn(post_until_refused(
                runtime.clone(),
                terminated.clone(),
                seen.clone(),
            ))
        })
        .collect();
    wait_for(|| seen.ok.load(Ordering::Relaxed) > 200).await;

    terminated.store(true, Ordering::Relaxed);
    runtime.terminate();
    let at_termination = seen.ok.load(Ordering::Relaxed);
    let readiness = async {
        while runtime.get_admin("/readyz").await.status() != 503 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, readiness).await.unwrap();
    for client in clients {
        client.await.unwrap();
    }
    let ok = seen.ok.load(Ordering::Relaxed);
    assert!(ok > at_termination, "it serves on for the drain delay");

    let mut runtime = Arc::into_inner(runtime).unwrap();
    let status = runtime.ended().await;
    assert_eq!(status.code(), Some(0), "{}", runtime.log());
    let mut connection = postgres.connect(DATABASE).await.unwrap();
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(u64::try_from(rows), Ok(ok));
}

#[tokio::test]
async fn a_connection_that_was_accepted_last_still_gets_its_answer() {
    let mut runtime = Runtime::start(&example(), None);
    let mut stream = TcpStream::connect(runtime.address).await.unwrap();
    runtime.terminate();
    // The port closes at the end of the drain delay; the connection was there before.
    let start = Instant::now();
    while TcpStream::connect(runtime.address).await.is_ok() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert_eq!(runtime.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_admin_port_says_what_the_pod_is() {
    let runtime = Runtime::start(&example(), None);
    for path in ["/livez", "/readyz"] {
        assert_eq!(runtime.get_admin(path).await.status(), 200, "{path}");
    }
    let state = runtime.state().await;
    let configuration = std::fs::read(runtime.directory.path().join("pipeline.json")).unwrap();
    assert_eq!(state.config_hash, content_hash(&configuration));
    assert_eq!(state.receipt_key_fingerprint, content_hash(&[7; 32]));
    assert_eq!(state.pipeline_uid, example().pipeline.uid);
    let unknown = runtime.get_admin("/").await;
    assert_eq!(unknown.status(), 404);
}

#[tokio::test]
async fn metrics_parse_and_count_every_message() {
    let postgres = postgres().await;
    let runtime = Runtime::start_on(&postgres, &example()).await;
    assert_eq!(runtime.ingest(ORDER).await.0, 200);
    assert_eq!(runtime.ingest("X|1").await.0, 400);
    let response = runtime.get_admin("/metrics").await;
    assert_eq!(
        response.headers()["content-type"],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = response.text().await.unwrap();
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok() || value == "+Inf", "{line}");
        assert!(name.starts_with("ingestion_"), "{line}");
    }
    for line in [
        "ingestion_messages_total 2",
        "ingestion_messages_persisted 1",
        "ingestion_messages_failed{reason=\"invalid-record\"} 1",
        "ingestion_messages_failed{reason=\"database-unavailable\"} 0",
        "ingestion_latency_seconds_count 2",
        "ingestion_db_latency_seconds_count 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    for name in [
        "ingestion_db_connections_active",
        "ingestion_db_connections_idle",
        "ingestion_http_connections",
    ] {
        assert!(text.contains(&format!("\n{name} ")), "{name} in\n{text}");
    }
}

#[tokio::test]
async fn the_documentation_lists_every_metric() {
    let documentation = include_str!("../../docs/http-api.md");
    let documented: BTreeSet<_> = documentation
        .lines()
        .filter_map(|line| line.strip_prefix("| `ingestion_")?.split(['`', '{']).next())
        .collect();
    let runtime = Runtime::start(&example(), None);
    let text = runtime.get_admin("/metrics").await.text().await.unwrap();
    let served: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ingestion_")?.split(' ').next())
        .collect();
    assert_eq!(documented, served);
}

#[tokio::test]
async fn starts_in_a_second_and_is_small_when_idle() {
    let start = Instant::now();
    let runtime = Runtime::start(&example(), None);
    assert_eq!(runtime.get_admin("/readyz").await.status(), 200);
    // A second is the goal on an idle machine; tests run beside each other.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let status = std::fs::read_to_string(format!("/proc/{}/status", runtime.id())).unwrap();
    let resident: u64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .unwrap();
    // Without optimization the program is half as large again.
    assert!(resident < 30_000, "{resident} kB resident");
}

#[test]
fn unusable_files_end_the_program_with_what_is_wrong() {
    type Spoil = fn(&std::path::Path);
    let cases: [(Spoil, &str); 6] = [
        (
            |directory| std::fs::remove_file(directory.join("pipeline.json")).unwrap(),
            "failed to read the configuration",
        ),
        (
            |directory| std::fs::write(directory.join("pipeline.json"), "{}").unwrap(),
            "not a configuration of the runtime",
        ),
        (
            |directory| std::fs::write(directory.join("pipeline.json"), r#"{"version":99}"#).unwrap(),
            "configuration version 99",
        ),
        (
            |directory| std::fs::write(directory.join("key"), "short").unwrap(),
            "has 5 bytes, but must have 32",
        ),
        (
            |directory| std::fs::write(directory.join("key"), [8; 32]).unwrap(),
            "bring the former Secret back",
        ),
        (
            |directory| std::fs::remove_file(directory.join("key")).unwrap(),
            "failed to read the receipt key",
        ),
    ];
    for (spoil, message) in cases {
        let directory = tempfile::tempdir().unwrap();
        let mut command = command(directory.path(), &example(), None);
        spoil(directory.path());
        let output = command.output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(message), "{message} in {log}");
    }
    let directory = tempfile::tempdir().unwrap();
    let mut command = command(directory.path(), &example(), None);
    assert_eq!(command.arg("--nonsense").output().unwrap().status.code(), Some(2));
}

async fn wait_for(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
