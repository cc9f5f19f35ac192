//! The nats-server of the tests is a real one: it keeps its messages, checks credentials, and leaves nothing behind.
#![allow(clippy::unwrap_used)]

use std::{net::TcpStream, time::Duration};

use async_nats::{
    Client, ConnectOptions,
    jetstream::{
        self, Context, ErrorCode,
        context::AccountErrorKind,
        stream::{Config, StorageType},
    },
};
use e2e::{
    Nats,
    nats::{Authorization, Options, SyncInterval},
};
use serde_json::Value;

/// How long a frozen server is waited for.
const PATIENCE: Duration = Duration::from_millis(200);

async fn start(options: Options) -> Nats {
    Nats::start_with(options).await.unwrap()
}

async fn connect(server: &Nats) -> Client {
    async_nats::connect(server.url()).await.unwrap()
}

/// A stream `orders` with one message.
async fn publish(server: &Nats) {
    let jetstream = jetstream::new(connect(server).await);
    let config = Config {
        name: "orders".to_owned(),
        storage: StorageType::File,
        ..Config::default()
    };
    jetstream.create_stream(config).await.unwrap();
    let receipt = jetstream.publish("orders", "one".into()).await.unwrap();
    assert_eq!(receipt.await.unwrap().sequence, 1);
}

async fn read(jetstream: &Context) -> Option<Vec<u8>> {
    let stream = jetstream.get_stream("orders").await.ok()?;
    Some(stream.get_raw_message(1).await.ok()?.payload.to_vec())
}

async fn read_anew(server: &Nats) -> Option<Vec<u8>> {
    read(&jetstream::new(connect(server).await)).await
}

/// What the server itself says about its settings.
async fn settings(server: &Nats) -> Value {
    let url = format!("{}/varz", server.monitoring_url());
    reqwest::get(url).await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn keeps_its_messages_through_a_stop_and_a_kill_but_not_a_wipe() {
    let mut server = Nats::start().await.unwrap();
    publish(&server).await;
    let url = server.url();

    server.kill().unwrap();
    assert!(async_nats::connect(&url).await.is_err());
    server.start_again().await.unwrap();
    assert_eq!(server.url(), url);
    assert_eq!(read_anew(&server).await.unwrap(), b"one");
    assert!(server.wipe().is_err(), "it is running");

    server.stop().unwrap();
    server.start_again().await.unwrap();
    assert_eq!(read_anew(&server).await.unwrap(), b"one");

    server.stop().unwrap();
    server.wipe().unwrap();
    server.start_again().await.unwrap();
    assert_eq!(read_anew(&server).await, None);
}

#[tokio::test]
async fn freezes_and_goes_on() {
    let mut server = Nats::start().await.unwrap();
    publish(&server).await;
    let jetstream = jetstream::new(connect(&server).await);

    server.pause().unwrap();
    let answer = tokio::time::timeout(PATIENCE, read(&jetstream)).await;
    assert!(answer.is_err(), "a frozen server answered {answer:?}");
    server.resume().unwrap();
    assert_eq!(read(&jetstream).await.unwrap(), b"one");

    server.pause().unwrap();
    server.stop().unwrap();
    server.start_again().await.unwrap();
    assert_eq!(read_anew(&server).await.unwrap(), b"one");
}

#[tokio::test]
async fn checks_a_name_and_a_password() {
    let server = start(Options {
        authorization: Some(Authorization::User("app".to_owned(), "right".to_owned())),
        ..Options::default()
    })
    .await;
    assert!(async_nats::connect(server.url()).await.is_err());
    let as_app = |password: &str| {
        ConnectOptions::with_user_and_password("app".to_owned(), password.to_owned()).connect(server.url())
    };
    assert!(as_app("wrong").await.is_err());
    let client = as_app("right").await.unwrap();
    jetstream::new(client).query_account().await.unwrap();
}

#[tokio::test]
async fn checks_a_token() {
    let server = start(Options {
        authorization: Some(Authorization::Token("right".to_owned())),
        ..Options::default()
    })
    .await;
    let with_token = |token: &str| ConnectOptions::with_token(token.to_owned()).connect(server.url());
    assert!(with_token("wrong").await.is_err());
    let client = with_token("right").await.unwrap();
    jetstream::new(client).query_account().await.unwrap();
}

#[tokio::test]
async fn speaks_tls_with_those_who_know_its_authority() {
    let server = start(Options {
        tls: true,
        ..Options::default()
    })
    .await;
    assert!(async_nats::connect(server.url()).await.is_err());
    let client = ConnectOptions::new()
        .add_root_certificates(server.authority())
        .connect(server.url())
        .await
        .unwrap();
    jetstream::new(client).query_account().await.unwrap();
}

#[tokio::test]
async fn takes_its_settings() {
    let store = tempfile::tempdir().unwrap();
    let server = start(Options {
        sync_interval: SyncInterval::Always,
        max_payload: Some(4096),
        max_file_store: Some(1 << 20),
        store: Some(store.path().to_owned()),
        ..Options::default()
    })
    .await;
    assert_eq!(connect(&server).await.server_info().max_payload, 4096);
    let jetstream = settings(&server).await["jetstream"]["config"].clone();
    assert_eq!(jetstream["sync_always"], true, "{jetstream}");
    assert_eq!(jetstream["max_storage"], 1 << 20, "{jetstream}");
    publish(&server).await;
    assert!(store.path().join("jetstream/$G/streams/orders").is_dir());

    let server = start(Options {
        sync_interval: SyncInterval::Every(Duration::from_millis(100)),
        ..Options::default()
    })
    .await;
    let jetstream = settings(&server).await["jetstream"]["config"].clone();
    assert_eq!(jetstream["sync_interval"], 100_000_000, "{jetstream}");
    assert_eq!(jetstream["sync_always"], Value::Null, "{jetstream}");
}

#[tokio::test]
async fn an_account_may_have_no_jetstream() {
    let server = start(Options {
        without_jetstream: true,
        ..Options::default()
    })
    .await;
    let jetstream = jetstream::new(connect(&server).await);
    let error = jetstream.query_account().await.unwrap_err();
    assert!(
        matches!(error.kind(), AccountErrorKind::JetStream(error)
            if error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT),
        "{error}"
    );
}

#[tokio::test]
async fn leaves_nothing_behind() {
    let server = Nats::start().await.unwrap();
    let address = server.url().replace("nats://", "");
    let store = server.store();
    assert!(store.exists());
    TcpStream::connect(&address).unwrap();
    server.pause().unwrap();
    drop(server);
    assert!(TcpStream::connect(&address).is_err());
    assert!(!store.exists());
}
