//! What the scenarios stand on: the cluster with the operator in it, and a pipeline in a namespace of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use e2e::{
    Cluster,
    image::{self, Image},
    ledger::{Ledger, Tally},
};
use serde_json::Value;

/// A good order line; its order key is outside of what a ledger writes.
pub const RECORD: &str = "O|-1|456|F|123.45|2024-01-01|urgent|clerk1|1|comment";

/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_mins(2);

/// The cluster with the operator in it.
pub struct Bed {
    pub cluster: Cluster,
}

impl Bed {
    /// The bed, for one scenario at a time. The first call brings up the cluster and installs the operator.
    pub fn lock() -> MutexGuard<'static, Self> {
        static BED: OnceLock<Mutex<Bed>> = OnceLock::new();
        BED.get_or_init(|| Mutex::new(Self::install()))
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a future inside the cluster's network.
    pub fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        self.cluster.run(async { Ok(future.await) }).unwrap()
    }

    fn install() -> Self {
        // The program, not the function: it becomes the cluster's first process, which a test cannot.
        let up = Command::new(env!("CARGO_BIN_EXE_cluster"))
            .arg("up")
            .status()
            .unwrap();
        assert!(up.success(), "`cluster up` failed");
        let cluster = Cluster::attach().unwrap();
        for (name, variable) in [
            ("operator", "OPERATOR_IMAGE"),
            ("ingest-runtime", "RUNTIME_IMAGE"),
        ] {
            let default = format!("docker.io/nomnom/{name}:{}", env!("CARGO_PKG_VERSION"));
            let image = Image {
                name: std::env::var(variable).unwrap_or(default),
                binary: program(name),
                certificates: Some(image::CERTIFICATES.into()),
            };
            let archive = tempfile::NamedTempFile::new().unwrap();
            image.write(archive.path()).unwrap();
            cluster.load_image(archive.path()).unwrap();
        }
        let bed = Self { cluster };
        for directory in ["config/crd", "config/default"] {
            bed.kubectl(&[
                "apply",
                "--server-side",
                "-k",
                &repository(directory).to_string_lossy(),
            ]);
        }
        bed.kubectl(&[
            "-n",
            "nomnom-system",
            "rollout",
            "restart",
            "deployment/nomnom-operator",
        ]);
        bed.kubectl(&[
            "-n",
            "nomnom-system",
            "rollout",
            "status",
            "deployment/nomnom-operator",
            "--timeout=120s",
        ]);
        bed
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap()
    }

    fn try_kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(arguments)
    }
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A program of an image, as `make images` builds it.
fn program(name: &str) -> PathBuf {
    let path = repository("target/x86_64-unknown-linux-gnu/release").join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `make images` first",
        path.display()
    );
    path
}

/// Looks until `condition` holds.
pub fn eventually(patience: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The example pipeline in a namespace and a database of its own; deleted with the scenario.
pub struct Pipeline<'a> {
    bed: &'a Bed,
    namespace: String,
}

impl<'a> Pipeline<'a> {
    /// Applies the example, with its Secret.
    pub fn apply(bed: &'a Bed, scenario: &str) -> Self {
        let pipeline = Self::prepare(bed, scenario);
        pipeline.create_secret();
        pipeline.apply_example();
        pipeline
    }

    /// Applies the example alone.
    pub fn apply_without_secret(bed: &'a Bed, scenario: &str) -> Self {
        let pipeline = Self::prepare(bed, scenario);
        pipeline.apply_example();
        pipeline
    }

    /// An empty namespace and an empty database, whatever an earlier run left.
    fn prepare(bed: &'a Bed, scenario: &str) -> Self {
        let namespace = format!("e2e-{scenario}");
        bed.kubectl(&["delete", "namespace", &namespace, "--ignore-not-found", "--wait"]);
        bed.kubectl(&["create", "namespace", &namespace]);
        bed.kubectl(&[
            "label",
            "namespace",
            &namespace,
            "pod-security.kubernetes.io/enforce=restricted",
        ]);
        let pipeline = Self { bed, namespace };
        let (postgres, database) = (bed.cluster.postgres(), pipeline.database());
        bed.run(async move { postgres.create_database(&database).await.unwrap() });
        pipeline
    }

    /// Creates the Secret that the example names.
    pub fn create_secret(&self) {
        let url = self.bed.cluster.postgres().superuser_url(&self.database());
        self.kubectl(&[
            "create",
            "secret",
            "generic",
            "orders-db",
            &format!("--from-literal=url={url}"),
        ]);
    }

    fn apply_example(&self) {
        let example = fs::read_to_string(repository("examples/orders.yaml")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(
            &file,
            example.replace("namespace: shop", &format!("namespace: {}", self.namespace)),
        )
        .unwrap();
        self.kubectl(&["apply", "-f", &file.path().to_string_lossy()]);
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.bed.kubectl(&[&["-n", &self.namespace], arguments].concat())
    }

    pub fn patch(&self, patch: &str) {
        self.kubectl(&["patch", "ipl", "orders", "--type=merge", "-p", patch]);
    }

    /// Waits as a user would.
    /// The node's proxy learns of a pod a moment after it is ready.
    pub fn wait_until_ready(&self) {
        self.wait_for("Ready");
        let address = self.address("orders");
        eventually(PATIENCE, "the endpoint can be reached", || {
            let address = address.clone();
            self.bed.run(async move { reqwest::get(address).await.is_ok() })
        });
    }

    /// Waits for a condition in the form of `kubectl wait`: `Ready`, `DatabaseReady=False`.
    pub fn wait_for(&self, condition: &str) {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&[
            "wait",
            &format!("--for=condition={condition}"),
            "ipl/orders",
            &timeout,
        ]);
    }

    pub fn condition(&self, condition_type: &str) -> Option<Value> {
        let pipeline: Value =
            serde_json::from_str(&self.kubectl(&["get", "ipl", "orders", "-o", "json"])).unwrap();
        let conditions = pipeline["status"]["conditions"].as_array()?.clone();
        conditions
            .into_iter()
            .find(|condition| condition["type"] == condition_type)
    }

    /// The names of the pods that are not on their way out, sorted.
    pub fn pods(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .live_pods()
            .iter()
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// How often containers of the pods were started again.
    pub fn restarts(&self) -> u64 {
        let pods = self.live_pods();
        pods.iter()
            .map(|pod| {
                pod["status"]["containerStatuses"][0]["restartCount"]
                    .as_u64()
                    .unwrap()
            })
            .sum()
    }

    fn live_pods(&self) -> Vec<Value> {
        let pods: Value = serde_json::from_str(&self.kubectl(&["get", "pods", "-o", "json"])).unwrap();
        let live = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        pods["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(live)
            .cloned()
            .collect()
    }

    /// All objects that bear the pipeline's labels, and their pods.
    pub fn children(&self) -> Vec<String> {
        let kinds =
            "configmaps,secrets,serviceaccounts,services,deployments,replicasets,controllerrevisions,pods";
        let names = self.kubectl(&[
            "get",
            kinds,
            "-l",
            "app.kubernetes.io/managed-by=nomnom",
            "-o",
            "name",
        ]);
        names.lines().map(str::to_owned).collect()
    }

    /// Where clients post: by the Service's address, since this process does not ask the cluster's DNS.
    pub fn url(&self) -> String {
        self.address("orders") + "/api/ingest/message"
    }

    fn address(&self, service: &str) -> String {
        let address = self.kubectl(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"]);
        format!("http://{address}:8080")
    }

    /// Posts one record, and gives status and body of the answer.
    pub fn post(&self, record: &str) -> (u16, Value) {
        self.try_post(record).expect("no answer")
    }

    /// The same; nothing where the Service is absent or no pod answers.
    pub fn try_post(&self, record: &str) -> Option<(u16, Value)> {
        let arguments = [
            "-n",
            &self.namespace,
            "get",
            "service",
            "orders",
            "-o",
            "jsonpath={.spec.clusterIP}",
        ];
        let address = self.bed.try_kubectl(&arguments).ok()?;
        let url = format!("http://{address}:8080/api/ingest/message");
        let record = record.to_owned();
        self.bed.run(async move {
            let request = reqwest::Client::new()
                .post(url)
                .header("content-type", "text/plain");
            let response = request
                .body(record)
                .timeout(Duration::from_secs(15))
                .send()
                .await
                .ok()?;
            Some((response.status().as_u16(), response.json().await.ok()?))
        })
    }

    /// Asks for the status of a message.
    pub fn status(&self, message_id: &str) -> (u16, Value) {
        let url = format!("{}/api/ingest/status/{message_id}", self.address("orders"));
        self.bed.run(async move {
            let response = reqwest::get(url).await.unwrap();
            (response.status().as_u16(), response.json().await.unwrap())
        })
    }

    /// Compares the books of a load with the table, without the records that a scenario posted itself.
    pub fn check(&self, ledger: &std::sync::Arc<Ledger>) -> Tally {
        let ledger = std::sync::Arc::clone(ledger);
        let (postgres, database) = (self.bed.cluster.postgres(), self.database());
        self.bed.run(async move {
            let mut connection = postgres.connect(&database).await.unwrap();
            sqlx::raw_sql("DELETE FROM orders WHERE order_key = -1")
                .execute(&mut connection)
                .await
                .unwrap();
            ledger.check(&mut connection).await.unwrap()
        })
    }

    fn database(&self) -> String {
        self.namespace.replace('-', "_")
    }
}

impl Drop for Pipeline<'_> {
    /// The next scenario needs the memory; a failed one stays, to be looked at.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.kubectl(&["delete", "namespace", &self.namespace, "--wait=false"]);
        }
    }
}
