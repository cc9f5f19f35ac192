//! The suite on a real nats-server, and what only NATS has.

use std::path::PathBuf;

use async_trait::async_trait;
use e2e::{
    Nats,
    nats::{Authorization, Options},
};
use ingest_runtime::queue::{
    Queue, QueueError,
    nats::{NatsOptions, NatsQueue},
};

use crate::suite::{self, Broker, settings};

struct Bed {
    server: Nats,
}

fn options(server: &Nats, stream: &str, credentials: Option<PathBuf>) -> NatsOptions {
    NatsOptions {
        servers: server.url(),
        stream: stream.to_owned(),
        pipeline: "a-uid".to_owned(),
        client_name: "nomnom shop/orders".to_owned(),
        credentials,
    }
}

#[async_trait]
impl Broker for Bed {
    fn queue(&self, name: &str) -> Box<dyn Queue> {
        Box::new(NatsQueue::new(options(&self.server, name, None)))
    }

    async fn crash(&mut self) {
        self.server.kill().unwrap();
        self.server.start_again().await.unwrap();
    }

    fn pause(&self) {
        self.server.pause().unwrap();
    }

    fn resume(&self) {
        self.server.resume().unwrap();
    }

    async fn remove(&self, name: &str) {
        let client = async_nats::connect(self.server.url()).await.unwrap();
        async_nats::jetstream::new(client)
            .delete_stream(name)
            .await
            .unwrap();
    }
}

macro_rules! suite {
    ($($test:ident),* $(,)?) => {$(
        #[tokio::test]
        async fn $test() {
            let mut bed = Bed { server: Nats::start().await.unwrap() };
            suite::$test(&mut bed).await;
        }
    )*};
}

suite!(
    each_message_is_delivered_until_it_is_acknowledged,
    what_is_kept_stays_and_what_is_dropped_comes_again,
    a_second_attempt_is_a_duplicate,
    a_full_stream_refuses_for_certain,
    a_message_that_is_too_large_is_refused_for_certain,
    silence_is_unknown_and_nothing_is_sent_later,
    an_acknowledgement_does_not_outlive_its_connection,
    nothing_acknowledged_is_lost_by_a_crash,
    a_stream_is_ensured_and_never_made_smaller_than_what_it_holds,
    a_stream_that_is_gone_is_told,
    consumers_share_the_messages,
);

#[tokio::test]
async fn credentials_come_from_a_secret_and_are_read_anew() {
    let directory = tempfile::tempdir().unwrap();
    let write = |key: &str, value: &str| std::fs::write(directory.path().join(key), value).unwrap();
    for authorization in [
        Authorization::User("app".to_owned(), "pw".to_owned()),
        Authorization::Token("a-token".to_owned()),
    ] {
        let server = Nats::start_with(Options {
            authorization: Some(authorization.clone()),
            ..Options::default()
        })
        .await
        .unwrap();
        let queue = NatsQueue::new(options(&server, "secured", Some(directory.path().to_owned())));
        let refusal = queue.ensure(&settings(), None).await.unwrap_err();
        assert!(matches!(refusal, QueueError::Unauthorized(_)), "{refusal:?}");
        match authorization {
            Authorization::User(user, password) => {
                write("username", &user);
                write("password", &format!("{password}\n"));
            }
            Authorization::Token(token) => {
                std::fs::remove_file(directory.path().join("username")).unwrap();
                std::fs::remove_file(directory.path().join("password")).unwrap();
                write("token", &token);
            }
        }
        queue.ensure(&settings(), None).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_is_known_by_the_authority_of_the_secret() {
    let server = Nats::start_with(Options {
        tls: true,
        ..Options::default()
    })
    .await
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let queue = NatsQueue::new(options(&server, "encrypted", Some(directory.path().to_owned())));
    let refusal = queue.ensure(&settings(), None).await.unwrap_err();
    assert!(matches!(refusal, QueueError::Unreachable(_)), "{refusal:?}");
    std::fs::copy(server.authority(), directory.path().join("ca.crt")).unwrap();
    queue.ensure(&settings(), None).await.unwrap();
}

#[tokio::test]
async fn a_stream_of_somebody_else_is_left_alone() {
    let server = Nats::start().await.unwrap();
    let client = async_nats::connect(server.url()).await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    jetstream
        .create_stream(async_nats::jetstream::stream::Config {
            name: "theirs".to_owned(),
            ..Default::default()
        })
        .await
        .unwrap();
    let queue = NatsQueue::new(options(&server, "theirs", None));
    let refusal = queue.ensure(&settings(), None).await.unwrap_err();
    assert!(
        refusal.to_string().contains("is not this pipeline's"),
        "{refusal}"
    );
}
