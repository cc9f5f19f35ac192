//! What clients can get wrong: each is told in RFC 9457's form what it was. No database is needed for that.
#![allow(clippy::unwrap_used, clippy::panic)]

mod harness;

use std::time::{Duration, Instant};

use harness::{ORDER, PATIENCE, Runtime, answer, example, kind};
use nomnom_crds::runtime::INGEST_PATH;
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn runtime() -> Runtime {
    Runtime::start(&example(), None)
}

/// A record, the code that it is refused with, and the field that is to blame.
type BadRecord = (Vec<u8>, &'static str, Option<(u64, Option<&'static str>)>);

/// The example's record with another value at `position`.
fn order(position: usize, value: &str) -> Vec<u8> {
    let mut fields: Vec<_> = ORDER.split('|').collect();
    fields[position - 1] = value;
    fields.join("|").into_bytes()
}

#[rustfmt::skip]
fn bad_records() -> Vec<BadRecord> {
    vec![
        (Vec::new(), "empty_record", None),
        (b"\n".to_vec(), "empty_record", None),
        (format!("{ORDER}\n{ORDER}\n").into_bytes(), "more_than_one_record", None),
        (order(1, "X"), "unknown_record_type", Some((1, None))),
        (b"O|123|456".to_vec(), "too_few_fields", None),
        (format!("{ORDER}|more").into_bytes(), "too_many_fields", None),
        (order(2, "many"), "not_a_number", Some((2, Some("order_key")))),
        (order(2, ""), "missing_value", Some((2, Some("order_key")))),
        (order(2, "9223372036854775808"), "out_of_range", Some((2, Some("order_key")))),
        (order(9, "2147483648"), "out_of_range", Some((9, Some("ship_priority")))),
        (order(5, "12345678901234"), "out_of_range", Some((5, Some("total_price")))),
        (order(5, "1.234"), "too_precise", Some((5, Some("total_price")))),
        (order(6, "2024-02-30"), "no_such_date", Some((6, Some("order_date")))),
        (order(6, "yesterday"), "not_a_date", Some((6, Some("order_date")))),
        (order(4, "FF"), "too_long", Some((4, Some("order_status")))),
        ([&order(10, "x")[..], &[0xff]].concat(), "invalid_utf8", Some((10, Some("comment")))),
        (order(10, "a\0b"), "nul_character", Some((10, Some("comment")))),
    ]
}

#[tokio::test]
async fn bad_records_name_record_field_and_code() {
    let runtime = runtime();
    for (record, code, field) in bad_records() {
        let shown = String::from_utf8_lossy(&record).into_owned();
        let (status, problem) = runtime.ingest(record).await;
        assert_eq!(
            (status, kind(&problem)),
            (400, "invalid-record"),
            "{shown}: {problem}"
        );
        let error = &problem["errors"][0];
        assert_eq!(
            (&error["code"], &error["record"]),
            (&code.into(), &1.into()),
            "{shown}: {problem}"
        );
        let (position, name) = field.unzip();
        assert_eq!(error["position"].as_u64(), position, "{shown}: {problem}");
        assert_eq!(error["field"].as_str(), name.flatten(), "{shown}: {problem}");
    }
}

#[tokio::test]
async fn the_database_is_asked_only_for_good_records() {
    let runtime = runtime();
    let response = runtime.post(ORDER).send().await.unwrap();
    let retry_after: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&retry_after));
    let (status, problem) = answer(response).await;
    assert_eq!((status, kind(&problem)), (503, "database-unavailable"));
    assert!(
        runtime.get_admin("/readyz").await.status().is_success(),
        "ready all the same"
    );
    assert!(!runtime.state().await.database.ready);
}

#[tokio::test]
async fn content_that_is_not_read_is_refused() {
    let runtime = runtime();
    for content_type in ["application/json", "text/csv", "text/plain; charset=latin1"] {
        let request = runtime.client.post(runtime.url(INGEST_PATH)).body(ORDER);
        let response = request.header("content-type", content_type).send().await.unwrap();
        assert_eq!(response.headers()["accept-post"], "text/plain");
        let (status, problem) = answer(response).await;
        assert_eq!(
            (status, kind(&problem)),
            (415, "unsupported-media-type"),
            "{content_type}"
        );
    }
    let request = runtime.client.post(runtime.url(INGEST_PATH)).body(ORDER);
    assert_eq!(answer(request.send().await.unwrap()).await.0, 415);
    let compressed = runtime.post(ORDER).header("content-encoding", "gzip");
    assert_eq!(answer(compressed.send().await.unwrap()).await.0, 415);
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_with_and_without_a_length() {
    let mut config = example();
    config.limits.max_body_bytes = 1024;
    let runtime = Runtime::start(&config, None);
    for size in [1025, 200_000, 4_000_000] {
        let (status, problem) = runtime.ingest("x".repeat(size)).await;
        assert_eq!((status, kind(&problem)), (413, "content-too-large"), "{size}");
        let chunk = format!("{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
        let chunked = format!(
            "POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"
        );
        let text = runtime.raw(chunked).await;
        assert!(text.starts_with("HTTP/1.1 413 "), "{size}: {text}");
        assert!(text.contains("content-too-large"), "{size}: {text}");
    }
    let (status, problem) = runtime.ingest("x".repeat(1024)).await;
    assert_eq!((status, kind(&problem)), (400, "invalid-record"));
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_is_refused_before_it_sends() {
    let runtime = runtime();
    let head = format!(
        "POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\nexpect: 100-continue\r\ncontent-length: 99999999\r\n\r\n"
    );
    let start = Instant::now();
    let text = runtime.raw(head).await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told() {
    let runtime = runtime();
    for path in [
        "/",
        "/api/ingest",
        "/api/ingest/message/",
        "/api/ingest/messages",
        "/%ff%00",
        "/metrics",
    ] {
        let (status, problem) = answer(runtime.client.get(runtime.url(path)).send().await.unwrap()).await;
        assert_eq!((status, kind(&problem)), (404, "not-found"), "{path}");
    }
    for (method, path, allowed) in [
        (Method::GET, INGEST_PATH, "POST"),
        (Method::PUT, INGEST_PATH, "POST"),
        (Method::POST, "/api/ingest/status/x", "GET, HEAD"),
    ] {
        let request = runtime.client.request(method, runtime.url(path));
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["allow"], allowed);
        let (status, problem) = answer(response).await;
        assert_eq!((status, kind(&problem)), (405, "method-not-allowed"), "{path}");
    }
    let (status, problem) = answer(
        runtime
            .client
            .post(format!("http://{}/state", runtime.admin))
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!((status, kind(&problem)), (405, "method-not-allowed"));
}

#[tokio::test]
async fn forged_ids_were_never_issued() {
    let runtime = runtime();
    for id in [
        "x",
        "",
        "00000000-0000-0000-0000-000000000000",
        "018f4e3a-7b1c-8d2e-9f00-112233445566",
        "%31",
        "018f4e3a7b1c8d2e9f00112233445566",
        "018f4e3a-7b1c-8d2e-9f00-112233445566/",
    ] {
        let (status, problem) = runtime.status(id).await;
        assert_eq!((status, kind(&problem)), (404, "unknown-message"), "{id}");
    }
}

#[tokio::test]
async fn malformed_idempotency_keys_are_told() {
    let runtime = runtime();
    for key in ["", "\"a", "a b", &"k".repeat(256)] {
        let request = runtime.post(ORDER).header("idempotency-key", key);
        let (status, problem) = answer(request.send().await.unwrap()).await;
        assert_eq!(
            (status, kind(&problem)),
            (400, "invalid-idempotency-key"),
            "{key}"
        );
    }
}

#[tokio::test]
async fn what_is_no_http_is_told_so_too() {
    let runtime = runtime();
    let long = "x".repeat(20_000);
    let huge = "x".repeat(100_000);
    for (request, status, kind) in [
        ("NONSENSE\r\n\r\n".to_owned(), 400, "malformed-request"),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nbad header\r\n\r\n".to_owned(),
            400,
            "malformed-request",
        ),
        (
            format!("POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n"),
            400,
            "malformed-request",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nlong: {long}\r\n\r\n"),
            431,
            "headers-too-large",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\nlong: {huge}\r\n\r\n"),
            431,
            "headers-too-large",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "a: b\r\n".repeat(101)),
            431,
            "headers-too-large",
        ),
        // Not complete, but too large already: more of it is not kept.
        (
            format!("GET / HTTP/1.1\r\nhost: a\r\nlong: {}", &huge[..30_000]),
            431,
            "headers-too-large",
        ),
    ] {
        let shown = &request[..request.len().min(60)];
        let text = runtime.raw(&request).await;
        assert!(
            text.starts_with(&format!("HTTP/1.1 {status} ")),
            "{shown}: {text}"
        );
        assert!(text.contains("application/problem+json"), "{shown}: {text}");
        assert!(text.contains(kind), "{shown}: {text}");
    }
}

#[tokio::test]
async fn a_request_with_two_lengths_is_the_last_of_its_connection() {
    let runtime = runtime();
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    for headers in [
        "content-length: 3\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 3",
    ] {
        let request = format!(
            "POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\n{headers}\r\n\r\n3\r\nO|1\r\n0\r\n\r\n{smuggled}"
        );
        let text = runtime.raw(request).await;
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{text}");
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");
        // By its length, the body would be the three bytes after the head.
        assert!(text.contains("\"too_few_fields\""), "{text}");
        assert!(text.contains("connection: close"), "{text}");
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let runtime = runtime();
    let record = "O|1";
    let post = format!(
        "POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\n{record}"
    );
    let last = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let text = runtime.raw(format!("{post}{post}{last}")).await;
    assert_eq!(text.matches("HTTP/1.1 400 ").count(), 2, "{text}");
    assert_eq!(text.matches("HTTP/1.1 404 ").count(), 1, "{text}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408() {
    let mut config = example();
    config.limits.timeout = nomnom_crds::Duration::from_millis(500);
    let runtime = Runtime::start(&config, None);
    let head = format!(
        "POST {INGEST_PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: 50\r\n\r\nO|1"
    );
    let text = runtime.raw(head).await;
    assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(text.contains("request-timeout"), "{text}");
}

#[tokio::test]
async fn a_head_that_does_not_come_loses_its_connection() {
    let runtime = runtime();
    let mut stream = TcpStream::connect(runtime.address).await.unwrap();
    stream.write_all(b"POST /api").await.unwrap();
    let mut buffer = [0; 16];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}
