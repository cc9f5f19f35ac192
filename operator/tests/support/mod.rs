//! A control plane with nomnom installed, the operator in this process with exactly the rights of `config/rbac`, and pods
//! that are an object and a small server.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // each test uses its part

pub mod pods;

use std::{
    collections::BTreeMap,
    fmt::Debug,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use e2e::{ControlPlane, control_plane::Options};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ControllerRevision, Deployment},
        core::v1::{ConfigMap, Namespace, Secret, Service, ServiceAccount},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use nomnom_crds::IngestionPipeline;
use operator::Config;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The namespace of the tests' pipelines.
pub const NAMESPACE: &str = "shop";
/// Long enough for a machine that builds something else meanwhile.
const DEADLINE: Duration = Duration::from_mins(1);

/// A kind that a test looks at.
pub trait Child:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug
{
}
impl<K> Child for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug
{
}

/// A control plane with nomnom installed.
pub struct Bed {
    pub plane: ControlPlane,
    pub client: Client,
    admin_address: SocketAddr,
    operator: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Bed {
    /// Without a running operator.
    pub async fn install(options: Options) -> Self {
        if std::env::var_os("RUST_LOG").is_some() {
            let _ = operator::telemetry::start();
        }
        let plane = ControlPlane::start_with(options).await.unwrap();
        let client = plane.client();
        for folder in ["config/crd", "config/default"] {
            plane
                .kubectl(&["apply", "-k", repository().join(folder).to_str().unwrap()])
                .unwrap();
        }
        plane.apply_crds().await.unwrap();
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(NAMESPACE.into()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self {
            plane,
            client,
            admin_address: free.local_addr().unwrap(),
            operator: None,
        }
    }

    /// With a running operator.
    pub async fn start() -> Self {
        let mut bed = Self::install(Options::default()).await;
        bed.start_operator().await;
        bed
    }

    /// Starts the operator with the rights of its service account.
    pub async fn start_operator(&mut self) {
        let client = self
            .plane
            .service_account_client("nomnom-system", "nomnom-operator")
            .await
            .unwrap();
        let config = Config {
            namespace: None,
            runtime_image: "docker.io/nomnom/ingest-runtime:0.1.0".into(),
            admin_address: self.admin_address,
            lease_namespace: None,
            lease_name: "nomnom-operator".into(),
            lease_duration_seconds: 15,
            pod_name: None,
            resync_seconds: 1,
        };
        self.operator = Some(tokio::spawn(operator::run(
            config,
            client,
            std::future::pending(),
        )));
    }

    /// Ends the operator wherever it is, as a kill does.
    pub async fn kill_operator(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.abort();
            let end = operator.await;
            assert!(
                end.is_err_and(|error| error.is_cancelled()),
                "the operator ended by itself"
            );
        }
    }

    /// The objects of a kind in the tests' namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Applies a pipeline as a user does.
    pub async fn apply(&self, pipeline: &Value) -> IngestionPipeline {
        let name = pipeline["metadata"]["name"].as_str().unwrap();
        let parameters = PatchParams::apply("user").force();
        self.api()
            .patch(name, &parameters, &Patch::Apply(pipeline))
            .await
            .unwrap()
    }

    /// Waits until the operator says of the newest spec what `is_met` wants.
    pub async fn wait_for_pipeline(
        &self,
        name: &str,
        what: &str,
        is_met: impl Fn(&IngestionPipeline) -> bool,
    ) -> IngestionPipeline {
        let api: Api<IngestionPipeline> = self.api();
        eventually(&format!("{name}: {what}"), || async {
            let pipeline = api.get(name).await.unwrap();
            let observed = pipeline
                .status
                .as_ref()
                .and_then(|status| status.observed_generation);
            let is_current = observed == pipeline.metadata.generation;
            if is_current && is_met(&pipeline) {
                Ok(pipeline)
            } else {
                Err(format!("{:#?}", pipeline.status))
            }
        })
        .await
    }

    /// Waits until a condition has a status and a reason.
    pub async fn wait_for(&self, name: &str, type_: &str, expected: (&str, &str)) -> Condition {
        let pipeline = self
            .wait_for_pipeline(name, &format!("{type_} is {expected:?}"), |pipeline| {
                condition(pipeline, type_)
                    .is_some_and(|it| (it.status.as_str(), it.reason.as_str()) == expected)
            })
            .await;
        condition(&pipeline, type_).unwrap().clone()
    }

    /// Waits for an object.
    pub async fn wait_for_object<K: Child>(&self, name: &str, is_met: impl Fn(&K) -> bool) -> K {
        let api: Api<K> = self.api();
        eventually(&format!("{} {name}", K::kind(&())), || async {
            match api.get_opt(name).await.unwrap() {
                Some(object) if is_met(&object) => Ok(object),
                other => Err(format!("{other:#?}")),
            }
        })
        .await
    }

    /// Deletes an object, and gives what it was.
    pub async fn delete<K: Child>(&self, name: &str) -> K {
        let former = self.api::<K>().get(name).await.unwrap();
        self.api::<K>()
            .delete(name, &DeleteParams::background())
            .await
            .unwrap();
        former
    }

    /// Deletes an object and waits for another one in its place.
    pub async fn delete_and_wait<K: Child>(&self, name: &str) {
        let former = self.delete::<K>(name).await;
        self.wait_for_object::<K>(name, |it| it.uid() != former.uid())
            .await;
    }

    /// Waits until an object is gone.
    pub async fn wait_until_gone<K: Child>(&self, name: &str) {
        let api: Api<K> = self.api();
        eventually(&format!("no {} {name}", K::kind(&())), || async {
            api.get_opt(name)
                .await
                .unwrap()
                .map_or(Ok(()), |object| Err(format!("{object:#?}")))
        })
        .await;
    }

    /// The resource version of every object that the operator may write, events included.
    pub async fn versions(&self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        self.add_versions::<IngestionPipeline>(&mut versions).await;
        self.add_versions::<ConfigMap>(&mut versions).await;
        self.add_versions::<Secret>(&mut versions).await;
        self.add_versions::<Service>(&mut versions).await;
        self.add_versions::<ServiceAccount>(&mut versions).await;
        self.add_versions::<Deployment>(&mut versions).await;
        self.add_versions::<ControllerRevision>(&mut versions).await;
        self.add_versions::<Event>(&mut versions).await;
        versions
    }

    async fn add_versions<K>(&self, versions: &mut BTreeMap<String, String>)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        for object in self
            .api::<K>()
            .list(&kube::api::ListParams::default())
            .await
            .unwrap()
        {
            let name = format!("{} {}", K::kind(&()), object.name_any());
            versions.insert(name, object.resource_version().unwrap());
        }
    }

    /// The sum of a counter of the operator over all its labels.
    pub async fn count(&self, counter: &str) -> f64 {
        let url = format!("http://{}/metrics", self.admin_address);
        let text = match reqwest::get(url).await {
            Ok(answer) => answer.text().await.unwrap(),
            Err(_) => String::new(),
        };
        let lines = text.lines().filter(|line| line.starts_with(counter));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until the operator has looked at its pipelines `passes` times more.
    pub async fn wait_for_passes(&self, passes: u32) {
        let counter = "nomnom_operator_reconciles_total";
        let start = self.count(counter).await;
        eventually(&format!("{passes} passes"), || async {
            let now = self.count(counter).await;
            if now >= start + f64::from(passes) {
                Ok(())
            } else {
                Err(format!("{now} after {start}"))
            }
        })
        .await;
    }

    /// Waits until several passes in a row change nothing.
    pub async fn wait_for_quiet(&self) {
        eventually("quiet", || async {
            let before = self.versions().await;
            self.wait_for_passes(4).await;
            let after = self.versions().await;
            if before == after {
                Ok(())
            } else {
                Err(format!("{before:#?} became {after:#?}"))
            }
        })
        .await;
    }
}

/// Waits for `look` to succeed, and says what it saw last where it does not.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(what: &str, look: impl Fn() -> F) -> T {
    let start = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if start.elapsed() > DEADLINE => panic!("waited in vain for {what}; last seen: {seen}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A condition of a pipeline.
pub fn condition<'a>(pipeline: &'a IngestionPipeline, type_: &str) -> Option<&'a Condition> {
    let conditions = &pipeline.status.as_ref()?.conditions;
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// The example of the repository, under another name and in the tests' namespace.
pub fn example(name: &str) -> Value {
    let text = std::fs::read_to_string(repository().join("examples/orders.yaml")).unwrap();
    let mut pipeline: Value = serde_yaml::from_str(&text).unwrap();
    pipeline["metadata"] = json!({"name": name, "namespace": NAMESPACE});
    pipeline
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}
