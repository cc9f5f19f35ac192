//! The runtime as it runs in a pod: the real program, with a configuration as the operator renders it.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use e2e::Postgres;
use nomnom_crds::{
    IngestionPipeline, ResolvedSpec,
    runtime::{
        INGEST_PATH, RECEIPT_KEY_FINGERPRINT_VARIABLE, RuntimeConfig, RuntimeState, config::PipelineIdentity,
        content_hash,
    },
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const EXAMPLE: &str = include_str!("../../../examples/orders.yaml");
/// How long the program may take for anything, on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// A record of the example.
pub const ORDER: &str = "O|123|456|F|123.45|2024-01-01|urgent|clerk1|1|comment";
/// The name of the database in the tests' servers.
pub const DATABASE: &str = "shop";

/// A running `ingest-runtime serve`; dropped, it is killed.
pub struct Runtime {
    /// Where records are taken.
    pub address: SocketAddr,
    /// The admin port.
    pub admin: SocketAddr,
    pub client: reqwest::Client,
    pub directory: tempfile::TempDir,
    process: Child,
    log: Arc<Mutex<String>>,
}

/// The configuration of the example.
pub fn example() -> RuntimeConfig {
    let pipeline: IngestionPipeline = serde_yaml::from_str(EXAMPLE).unwrap();
    let spec = ResolvedSpec::resolve(&pipeline.spec).unwrap();
    let identity = PipelineIdentity {
        namespace: "shop".into(),
        name: "orders".into(),
        uid: "b7a1c9c2-5f0e-4b52-9a53-1f1f5a3f6d11".into(),
    };
    RuntimeConfig::new(identity, &spec)
}

/// A server with an empty database.
pub async fn postgres() -> Postgres {
    let postgres = Postgres::start().await.unwrap();
    postgres.create_database(DATABASE).await.unwrap();
    postgres
}

/// The program with its files in `directory`, not started yet.
pub fn command(directory: &Path, config: &RuntimeConfig, database_url: Option<&str>) -> Command {
    let path = |name: &str| directory.join(name);
    fs::write(path("pipeline.json"), serde_json::to_vec(config).unwrap()).unwrap();
    fs::write(path("key"), [7_u8; 32]).unwrap();
    if let Some(url) = database_url {
        fs::write(path("url"), url).unwrap();
    }
    let argument = |name: &str, value: &str| format!("--{name}={}", path(value).display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_ingest-runtime"));
    command
        .arg("serve")
        .arg(argument("config", "pipeline.json"))
        .arg(argument("database-url-file", "url"))
        .arg(argument("receipt-key-file", "key"))
        .args([
            "--listen=127.0.0.1:0",
            "--admin-listen=127.0.0.1:0",
            "--drain-delay=1s",
        ])
        .env(RECEIPT_KEY_FINGERPRINT_VARIABLE, content_hash(&[7; 32]))
        .stderr(Stdio::piped());
    command
}

impl Runtime {
    /// Starts the program, without a database where there is no URL, and waits until it serves.
    pub fn start(config: &RuntimeConfig, database_url: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut process = command(directory.path(), config, database_url).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (address, admin) = follow(&mut process, &log);
        Self {
            address,
            admin,
            client: reqwest::Client::new(),
            directory,
            process,
            log,
        }
    }

    /// Starts the program on `postgres`, and waits until it stores records.
    pub async fn start_on(postgres: &Postgres, config: &RuntimeConfig) -> Self {
        let runtime = Self::start(config, Some(&postgres.superuser_url(DATABASE)));
        runtime.wait_until_ready().await;
        runtime
    }

    /// Waits until the runtime says that it stores records.
    pub async fn wait_until_ready(&self) {
        let start = Instant::now();
        loop {
            let state = self.state().await;
            if state.database.ready {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "not ready: {state:#?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What `GET /state` answers.
    pub async fn state(&self) -> RuntimeState {
        self.get_admin("/state").await.json().await.unwrap()
    }

    pub async fn get_admin(&self, path: &str) -> reqwest::Response {
        let url = format!("http://{}{path}", self.admin);
        self.client.get(url).send().await.unwrap()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A POST of `record`, to be completed and sent.
    pub fn post(&self, record: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.client
            .post(self.url(INGEST_PATH))
            .header("content-type", "text/plain")
            .body(record)
    }

    /// Posts `record` and takes the answer apart.
    pub async fn ingest(&self, record: impl Into<reqwest::Body>) -> (u16, Value) {
        answer(self.post(record).send().await.unwrap()).await
    }

    pub async fn status(&self, id: &str) -> (u16, Value) {
        let url = self.url(&format!("/api/ingest/status/{id}"));
        answer(self.client.get(url).send().await.unwrap()).await
    }

    /// Sends `bytes` on a connection of their own and reads until the server closes it.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("the server closes the connection")
            .unwrap();
        String::from_utf8(answer).unwrap()
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Asks the program to end, as kubelet does.
    pub fn terminate(&self) {
        e2e::process::signal(self.id(), rustix::process::Signal::TERM).unwrap();
    }

    /// Waits for the program's end.
    pub async fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                assert_eq!(status.signal(), None, "{}", self.log());
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "does not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Where it has ended already, there is nothing to kill.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Status and JSON body of an answer.
pub async fn answer(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let expected = if status == 200 {
        "application/json"
    } else {
        "application/problem+json"
    };
    assert_eq!(content_type, expected);
    let body: Value = response.json().await.unwrap();
    if status != 200 {
        assert_eq!(body["status"], status, "{body}");
        for member in ["type", "title", "detail"] {
            assert!(
                body[member].as_str().is_some_and(|text| !text.is_empty()),
                "{body}"
            );
        }
    }
    (status, body)
}

/// The end of a problem's type.
pub fn kind(problem: &Value) -> &str {
    problem["type"].as_str().unwrap().rsplit('/').next().unwrap()
}

/// Keeps the program's log, and tells its two addresses when it has said them.
fn follow(process: &mut Child, log: &Arc<Mutex<String>>) -> (SocketAddr, SocketAddr) {
    let lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let (sender, receiver) = mpsc::channel();
    let kept = log.clone();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["message"] == "serves" {
                let address = |name: &str| event[name].as_str().unwrap().parse().unwrap();
                sender.send((address("listen"), address("admin_listen"))).unwrap();
            }
            let mut log = kept.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    receiver
        .recv_timeout(PATIENCE)
        .unwrap_or_else(|_| panic!("does not serve\n{}", log.lock().unwrap()))
}
