//! An API server and its etcd alone, for tests of CRDs and controllers: up in seconds, private, gone with the test.
//!
//! Nothing schedules or runs pods. With [`Options::controller_manager`] there are the garbage collector and the
//! Deployment and namespace controllers, so that deletion behaves as in a cluster.

use std::{
    fs,
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{
    api::{
        authentication::v1::{TokenRequest, TokenRequestSpec},
        core::v1::ServiceAccount,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
    config::AuthInfo,
    runtime::{conditions::is_crd_established, wait::await_condition},
};
use tempfile::TempDir;

use crate::{
    build::{self, KUBERNETES},
    kubernetes::{self, Settings},
    process,
};

/// How long the API server may take; it takes 3 s on an idle machine.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// A free port may be taken by somebody else between its choice and its use.
const ATTEMPTS: usize = 3;

/// What runs beside the API server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The controller manager: garbage collection, Deployments, namespaces, default service accounts.
    pub controller_manager: bool,
}

/// A running API server; dropped, it is killed and its data removed.
pub struct ControlPlane {
    // Before the directory: fields are dropped in order.
    controller_manager: Option<Program>,
    api_server: Option<Program>,
    etcd: Program,
    client: Client,
    settings: Settings,
    programs: PathBuf,
    directory: TempDir,
}

impl ControlPlane {
    /// Starts an API server.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts an API server, and what the options say.
    pub async fn start_with(options: Options) -> Result<Self> {
        let programs = tokio::task::spawn_blocking(|| KUBERNETES.build()).await??;
        let mut attempt = 1;
        loop {
            match Self::try_start(&programs, options).await {
                Err(error)
                    if attempt < ATTEMPTS && format!("{error:#}").contains("address already in use") =>
                {
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    async fn try_start(programs: &Path, options: Options) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("nomnom-control-plane-")
            .tempdir()?;
        let [api_server, etcd, etcd_peer, controller_manager] =
            process::free_addresses(Ipv4Addr::LOCALHOST.into())?;
        let settings = Settings {
            credentials: directory.path().join("credentials"),
            data: directory.path().join("etcd"),
            api_server,
            etcd,
            etcd_peer,
            controller_manager_port: controller_manager.port(),
            services: "10.96.0.0/16",
            service_of_api_server: Ipv4Addr::new(10, 96, 0, 1).into(),
            node: "none",
        };
        settings.write_credentials()?;
        let etcd = Program::start(programs, "etcd", &settings.etcd_arguments(), directory.path())?;
        let client = kubernetes::client(&settings.kubeconfig("admin")).await?;
        let mut plane = Self {
            controller_manager: None,
            api_server: None,
            etcd,
            client,
            settings,
            programs: programs.to_path_buf(),
            directory,
        };
        plane.start_again().await?;
        if options.controller_manager {
            plane.start_controller_manager().await?;
        }
        Ok(plane)
    }

    /// Kills the API server, as when its machine fails; etcd and with it all objects stay.
    pub fn stop(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server again after [`Self::stop`], at the same address.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.api_server.is_none(), "the API server is running already");
        let arguments = self.settings.api_server_arguments();
        self.api_server = Some(Program::start(
            &self.programs,
            "kube-apiserver",
            &arguments,
            self.directory.path(),
        )?);
        let client = self.client.clone();
        self.wait("the API server is ready", || is_ready(client.clone()))
            .await
    }

    async fn start_controller_manager(&mut self) -> Result<()> {
        let arguments = self.settings.controller_manager_arguments();
        let name = "kube-controller-manager";
        self.controller_manager = Some(Program::start(
            &self.programs,
            name,
            &arguments,
            self.directory.path(),
        )?);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), "default");
        self.wait("the controller manager made the default service account", || {
            let accounts = accounts.clone();
            async move {
                accounts
                    .get_opt("default")
                    .await
                    .is_ok_and(|account| account.is_some())
            }
        })
        .await
    }

    /// A client with every right.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The kubeconfig file of that client.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.settings.kubeconfig("admin")
    }

    /// A client that acts as `user` with exactly these groups, and so with the rights that RBAC gives to them.
    pub async fn client_as(&self, user: &str, groups: &[&str]) -> Result<Client> {
        let mut config = kubernetes::client_configuration(&self.kubeconfig()).await?;
        config.auth_info.impersonate = Some(user.to_owned());
        config.auth_info.impersonate_groups = Some(groups.iter().map(ToString::to_string).collect());
        Ok(Client::try_from(config)?)
    }

    /// A client with a token of a service account that exists.
    pub async fn service_account_client(&self, namespace: &str, name: &str) -> Result<Client> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(3600),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("failed to get a token for ServiceAccount {namespace}/{name}"))?;
        let mut config = kubernetes::client_configuration(&self.kubeconfig()).await?;
        config.auth_info = AuthInfo {
            token: answer.status.map(|status| status.token.into()),
            ..AuthInfo::default()
        };
        Ok(Client::try_from(config)?)
    }

    /// Runs kubectl as administrator and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.programs.join("kubectl"))
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.directory.path().join("kubectl"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("failed to run kubectl")?;
        ensure!(
            output.status.success(),
            "kubectl {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies nomnom's CRDs and waits until the API server serves them.
    pub async fn apply_crds(&self) -> Result<()> {
        self.apply_crd(&nomnom_crds::custom_resource_definition()).await
    }

    /// Applies a CRD and waits until the API server serves it.
    pub async fn apply_crd(&self, definition: &CustomResourceDefinition) -> Result<()> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client());
        let name = definition.name_any();
        let parameters = PatchParams::apply("e2e").force();
        definitions
            .patch(&name, &parameters, &Patch::Apply(definition))
            .await
            .with_context(|| format!("failed to apply CustomResourceDefinition {name}"))?;
        let established = await_condition(definitions, &name, is_crd_established());
        tokio::time::timeout(START_TIMEOUT, established)
            .await
            .with_context(|| format!("CustomResourceDefinition {name} is not established"))??;
        Ok(())
    }

    /// Waits for `condition`, and fails early where a program has ended.
    async fn wait<F: Future<Output = bool>>(&mut self, what: &str, condition: impl Fn() -> F) -> Result<()> {
        let start = Instant::now();
        while !condition().await {
            let programs = [
                Some(&mut self.etcd),
                self.api_server.as_mut(),
                self.controller_manager.as_mut(),
            ];
            for program in programs.into_iter().flatten() {
                program.check()?;
            }
            if start.elapsed() > START_TIMEOUT {
                let log = self.directory.path().join("kube-apiserver.log");
                bail!(
                    "waited in vain until {what}; the API server's last words:\n{}",
                    build::end_of(&log)
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

async fn is_ready(client: Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else {
        return false;
    };
    client.request_text(request).await.is_ok()
}

/// A child process with a log; dropped, it is killed.
struct Program {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    fn start(programs: &Path, name: &'static str, arguments: &[String], directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = process::bound_command(programs.join(name), None);
        command
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = process::spawn(command).with_context(|| format!("failed to start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// Fails where the program has ended.
    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            // The whole log decides whether it was a port; its end is what a person reads.
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let cause = if log.contains("address already in use") {
                " (address already in use)"
            } else {
                ""
            };
            bail!(
                "{} ended ({status}){cause}; its last words:\n{}",
                self.name,
                build::end_of(&self.log)
            );
        }
        Ok(())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Nothing is left to tell an error to; the parent-death signal ends what this does not.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
