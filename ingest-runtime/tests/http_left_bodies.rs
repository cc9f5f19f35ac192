//! Clients that send all of a body before they read: they get their answer, whether the body was wanted or not, and
//! not a connection that is reset under their hands. No database is needed for that.
#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use std::time::{Duration, Instant};

use harness::{PATIENCE, Runtime, example};
use nomnom_crds::runtime::INGEST_PATH;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// More than the sockets of a connection hold.
const LARGE: usize = 4_000_000;

/// A request that is the last of its connection, up to its body.
fn head(start: &str, headers: &str, length: usize) -> String {
    format!("{start} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n")
}

/// The same with a body of [`LARGE`].
fn request(start: &str, headers: &str) -> String {
    head(start, headers, LARGE) + &"x".repeat(LARGE)
}

fn assert_problem(text: &str, status: u16, kind: &str) {
    let shown = &text[..text.len().min(1000)];
    assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}");
    assert!(text.contains("application/problem+json"), "{shown}");
    assert!(text.contains(&format!("/problems/{kind}\"")), "{shown}");
    assert!(text.ends_with('}'), "{shown}");
}

#[tokio::test]
async fn a_body_that_is_not_wanted_does_not_cost_the_answer() {
    let runtime = Runtime::start(&example(), None);
    let post = format!("POST {INGEST_PATH}");
    let (plain, long) = ("content-type: text/plain\r\n", "x".repeat(17_000));
    for (start, headers, status, kind) in [
        ("POST /elsewhere", plain, 404, "not-found"),
        ("POST /api/ingest/status/x", plain, 405, "method-not-allowed"),
        (&format!("PUT {INGEST_PATH}"), plain, 405, "method-not-allowed"),
        ("GET /api/ingest/status/x", plain, 404, "unknown-message"),
        (&post, "content-type: text/csv\r\n", 415, "unsupported-media-type"),
        (
            &post,
            &format!("{plain}idempotency-key: a b\r\n"),
            400,
            "invalid-idempotency-key",
        ),
        (&post, plain, 413, "content-too-large"),
        (&post, &format!("long: {long}\r\n"), 431, "headers-too-large"),
        // These two hyper refuses, which reads no body then.
        (
            &post,
            &format!("long: {long}{long}{long}\r\n"),
            431,
            "headers-too-large",
        ),
        (&post, "bad header\r\n", 400, "malformed-request"),
    ] {
        let text = runtime.raw(request(start, headers)).await;
        assert_problem(&text, status, kind);
    }
    let mut stream = TcpStream::connect(runtime.admin).await.unwrap();
    stream
        .write_all(request("POST /state", "").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_problem(&text, 405, "method-not-allowed");
}

#[tokio::test]
async fn a_body_whose_end_is_lost_does_not_cost_the_answer() {
    let runtime = Runtime::start(&example(), None);
    let head = format!(
        "POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let text = runtime.raw(head + "no length\r\n" + &"x".repeat(LARGE)).await;
    assert_problem(&text, 400, "malformed-request");
}

#[tokio::test]
async fn a_body_that_finds_no_memory_is_read_before_it_is_refused() {
    let mut config = example();
    config.limits.max_body_bytes = 32 * 1024 * 1024;
    config.limits.timeout = nomnom_crds::Duration::from_millis(60_000);
    let runtime = Runtime::start(&config, None);
    let start = format!("POST {INGEST_PATH}");
    let plain = "content-type: text/plain\r\n";
    // This one takes all the memory that there is for bodies, and never comes.
    let mut holder = TcpStream::connect(runtime.address).await.unwrap();
    let largest = head(&start, plain, 32 * 1024 * 1024);
    holder.write_all(largest.as_bytes()).await.unwrap();
    let begun = Instant::now();
    let text = loop {
        let text = runtime.raw(request(&start, plain)).await;
        if text.starts_with("HTTP/1.1 503 ") || begun.elapsed() > PATIENCE {
            break text;
        }
    };
    assert_problem(&text, 503, "overloaded");
    assert!(text.contains("\r\nretry-after: "), "{text}");
}

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_was_thrown_away() {
    let runtime = Runtime::start(&example(), None);
    let first = request("POST /elsewhere", "").replacen("connection: close\r\n", "", 1);
    let text = runtime.raw(first + &head("GET /", "", 0)).await;
    assert_eq!(text.matches("HTTP/1.1 404 ").count(), 2, "{text}");
}

#[tokio::test]
async fn a_client_that_was_not_told_to_continue_is_not_waited_for() {
    let runtime = Runtime::start(&example(), None);
    for (start, status, kind) in [
        ("POST /elsewhere", 404, "not-found"),
        (&format!("PUT {INGEST_PATH}"), 405, "method-not-allowed"),
    ] {
        let mut stream = TcpStream::connect(runtime.address).await.unwrap();
        let head = head(start, "expect: 100-continue\r\n", LARGE);
        stream.write_all(head.as_bytes()).await.unwrap();
        let begun = Instant::now();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_problem(&text, status, kind);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        // Some clients send it all the same; it does not disturb the answer.
        stream.write_all(&[b'x'; 1000]).await.unwrap();
    }
}

#[tokio::test]
async fn a_body_that_stops_coming_is_waited_for_as_long_as_a_request_may_take() {
    let mut config = example();
    config.limits.timeout = nomnom_crds::Duration::from_millis(300);
    let runtime = Runtime::start(&config, None);
    let begun = Instant::now();
    let text = runtime.raw(head("POST /elsewhere", "", LARGE)).await;
    assert_problem(&text, 404, "not-found");
    assert!(text.contains("connection: close"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
