//! How many connections there may be, on a server of this process that allows few.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Response, request::Parts};
use http_body_util::Full;
use ingest_runtime::{
    http::{Handler, Inbound, Server, ServerOptions},
    shutdown::Shutdown,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);
const MAX_CONNECTIONS: usize = 2;

struct Answers;

impl Handler for Answers {
    async fn answer(&self, _: &Parts, _: &mut Inbound, _: Instant) -> Response<Full<Bytes>> {
        Response::new(Full::new(Bytes::from_static(b"here")))
    }
}

async fn start() -> SocketAddr {
    let options = ServerOptions {
        shutdown: Shutdown::default(),
        connections: Gauge::default(),
        max_connections: MAX_CONNECTIONS,
        request_timeout: PATIENCE,
    };
    let server = Server::bind(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let address = server.address().unwrap();
    tokio::spawn(server.serve(Answers));
    address
}

/// A connection that was answered, or what it got instead.
async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"here") && stream.read_buf(&mut answer).await.unwrap() > 0 {}
    let answer = String::from_utf8(answer).unwrap();
    if answer.starts_with("HTTP/1.1 200 ") {
        Ok(stream)
    } else {
        Err(answer)
    }
}

fn assert_refusal(text: &str) {
    let (head, body) = text.split_once("\r\n\r\n").expect(text);
    assert!(head.starts_with("HTTP/1.1 503 "), "{text}");
    assert!(head.contains("\r\nconnection: close"), "{text}");
    assert!(
        head.contains("\r\ncontent-type: application/problem+json"),
        "{text}"
    );
    assert!(head.contains("\r\nretry-after: "), "{text}");
    assert!(
        head.contains(&format!("\r\ncontent-length: {}", body.len())),
        "{text}"
    );
    let problem: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(problem["type"], "https://nomnom.dev/problems/overloaded");
}

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_the_next_one_is_served() {
    let address = start().await;
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        open.push(connect(address).await.unwrap());
    }
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, silent.read_to_string(&mut text))
        .await
        .unwrap()
        .unwrap();
    assert_refusal(&text);
    assert_refusal(&connect(address).await.unwrap_err());

    let mut sending = TcpStream::connect(address).await.unwrap();
    let request = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n\r\n";
    sending
        .write_all(&[&request[..], &vec![b'x'; 4_000_000]].concat())
        .await
        .unwrap();
    text.clear();
    sending.read_to_string(&mut text).await.unwrap();
    assert_refusal(&text);

    open.pop();
    let begun = Instant::now();
    let next = loop {
        match connect(address).await {
            Ok(next) => break next,
            Err(refusal) => assert_refusal(&refusal),
        }
        assert!(begun.elapsed() < PATIENCE);
    };
    assert_refusal(&connect(address).await.unwrap_err());
    drop((open, next));
}
