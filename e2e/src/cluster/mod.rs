//! The cluster of this machine: started by the program `cluster`, used by tests through [`Cluster`].
//!
//! Clients never send an address of the cluster from the machine's own network, from where a packet could leave
//! by the default route: they enter the cluster's network first ([`Cluster::run`], `cluster exec`).

mod cgroups;
mod component;
mod components;
mod down;
mod holder;
mod layout;
mod marks;
mod nats;
mod optional;
mod postgres;
mod sandbox;
mod status;
mod up;
mod volumes;

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use kube::Client;

use self::{
    component::Component,
    components::{CONTAINERD_SOCKET, NATS},
    holder::Holder,
    layout::Layout,
    sandbox::Sandbox,
};
pub use self::{
    down::{DownOptions, down},
    layout::{DNS_ADDRESS, NODE, NODE_ADDRESS},
    nats::ClusterNats,
    optional::names as optional_components,
    postgres::ClusterPostgres,
    sandbox::COMMAND as FIRST_PROCESS_COMMAND,
    status::status,
    up::up,
    volumes::COMMAND as PROVISION_VOLUMES_COMMAND,
};
use crate::{build::KUBERNETES, debian, image, kubernetes};

/// A running cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    layout: Layout,
    sandbox: Sandbox,
}

impl Cluster {
    /// The cluster that `cluster up` started, or an error that says what to do.
    pub fn attach() -> Result<Self> {
        let Some(holder) = Holder::read()? else {
            bail!("the cluster is not up: run `make cluster-up`");
        };
        let checkout = Holder::this_checkout();
        ensure!(
            holder.checkout == checkout,
            "the cluster of this machine is held by {}: take it down there (`make cluster-down`), then bring it up here",
            holder.checkout.display()
        );
        let layout = Layout {
            directory: holder.directory,
        };
        let sandbox = Sandbox::find(&layout).context("the cluster is broken: `make cluster-up` heals it")?;
        Ok(Self { layout, sandbox })
    }

    /// Runs a future in the cluster's network, on a thread and a runtime of its own, and returns its output.
    ///
    /// Tasks that it spawns are in that network too, and end when the future does.
    pub fn run<F, T>(&self, future: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        self.run_blocking(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(future)
        })
    }

    /// Calls a function on a thread in the cluster's network.
    pub fn run_blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let sandbox = self.sandbox.clone();
        let thread = thread::spawn(move || {
            sandbox.enter_network()?;
            call()
        });
        match thread.join() {
            Ok(result) => result,
            // A failed assertion of a test is the test's.
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// A client with every right; to be used inside of [`Self::run`].
    pub async fn client(&self) -> Result<Client> {
        kubernetes::client(&self.kubeconfig()).await
    }

    /// The kubeconfig file of that client.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// Runs kubectl as administrator and returns what it printed.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&self.layout, &self.sandbox, arguments)
    }

    /// Runs kubectl as administrator with a text for its standard input (`apply -f -`).
    pub fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        run_kubectl(&self.layout, &self.sandbox, arguments, input)
    }

    /// A command for kubectl as administrator, whose files are those of the machine.
    pub fn kubectl_command(&self) -> Result<Command> {
        kubectl_command(&self.layout, &self.sandbox)
    }

    /// A command that runs in the cluster's network, where the cluster's names resolve; its files are the machine's.
    #[must_use]
    pub fn exec_command(&self, program: &[OsString]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.sandbox.namespace("net").display()))
            .args(["--", "unshare", "--mount", "--", "sh", "-c"])
            // Where the machine has no such file there is nothing to lay this over, and only addresses work.
            .arg(r#"mount --bind "$0" /etc/resolv.conf 2>/dev/null; exec "$@""#)
            .arg(self.layout.path("configuration/resolv.conf"))
            .args(program)
            .env(marks::CLUSTER, &self.layout.directory)
            .env(marks::COMPONENT, "command")
            .env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Imports an image archive into the node, and returns whether that was needed.
    pub fn load_image(&self, archive: &Path) -> Result<bool> {
        load_image(&self.layout, &self.sandbox, archive)
    }

    /// The database server that pods reach as `postgres.databases.svc`.
    #[must_use]
    pub fn postgres(&self) -> ClusterPostgres {
        ClusterPostgres::new(self.clone())
    }

    /// The nats-server that pods reach as `nats.queues.svc`, where the cluster was brought up with one.
    pub fn nats(&self) -> Result<ClusterNats> {
        ensure!(
            optional::is_asked_for(&self.layout, &NATS),
            "the cluster has no {name}: `cluster up --with {name}` gives it one",
            name = NATS.name
        );
        Ok(ClusterNats::new(self.clone()))
    }

    /// Starts one of the cluster's programs where it does not run, and waits until it is ready.
    fn start_component(&self, component: &'static Component) -> Result<()> {
        let Self { layout, sandbox } = self.clone();
        self.run_blocking(move || {
            component::start_all(&[component], &layout, &sandbox)?;
            Ok(())
        })
    }

    /// The log of one of the cluster's programs.
    pub fn log(&self, component: &str) -> Result<PathBuf> {
        let path = self.layout.log(component);
        let known: Vec<_> = optional::components_of(&self.layout)
            .iter()
            .map(|component| component.name)
            .collect();
        ensure!(
            path.is_file(),
            "{component} has no log; there is one for each of: {}",
            known.join(" ")
        );
        Ok(path)
    }
}

fn kubectl_command(layout: &Layout, sandbox: &Sandbox) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", sandbox.namespace("net").display()))
        .arg("--")
        .arg(KUBERNETES.program("kubectl")?)
        .arg("--cache-dir")
        .arg(layout.path("kubectl"))
        .env("KUBECONFIG", layout.kubeconfig())
        .env(marks::CLUSTER, &layout.directory)
        .env(marks::COMPONENT, "command");
    Ok(command)
}

fn kubectl(layout: &Layout, sandbox: &Sandbox, arguments: &[&str]) -> Result<String> {
    run_kubectl(layout, sandbox, arguments, "")
}

fn run_kubectl(layout: &Layout, sandbox: &Sandbox, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = kubectl_command(layout, sandbox)?
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("failed to run kubectl")?;
    let mut stdin = child.stdin.take().context("kubectl has no input")?;
    let input = input.to_owned();
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    // Where kubectl does not read its input to the end, it says why.
    let _ = writer
        .join()
        .map_err(|_| anyhow!("the thread that writes to kubectl failed"))?;
    ensure!(
        output.status.success(),
        "kubectl {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the node was given is remembered by name and content; what it has it says itself.
fn load_image(layout: &Layout, sandbox: &Sandbox, archive: &Path) -> Result<bool> {
    let name = image::name_in(archive)?;
    let digest = image::digest_of(archive)?;
    let record = layout.path("images").join(name.replace(['/', ':'], "_"));
    let present = ctr(sandbox, &["images", "list", "--quiet"])?
        .lines()
        .any(|line| line == name);
    if present && std::fs::read_to_string(&record).is_ok_and(|known| known == digest) {
        return Ok(false);
    }
    let path = std::fs::canonicalize(archive).context("failed to find the image archive")?;
    ctr(sandbox, &["images", "import", &path.display().to_string()])?;
    std::fs::write(record, digest)?;
    Ok(true)
}

fn ctr(sandbox: &Sandbox, arguments: &[&str]) -> Result<String> {
    let program = debian::find("ctr").context("ctr is missing: install containerd")?;
    let output = sandbox
        .command(&program)
        .args(["--address", CONTAINERD_SOCKET, "--namespace", "k8s.io"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("failed to run ctr")?;
    ensure!(
        output.status.success(),
        "ctr {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the first process of the cluster's namespaces does; see `cluster first-process`.
pub fn become_first_process(directory: PathBuf) -> Result<()> {
    sandbox::become_first_process(&Layout { directory })
}

/// What the component `volumes` does; see `cluster provision-volumes`.
pub async fn provision_volumes(kubeconfig: &Path) -> Result<()> {
    Box::pin(volumes::provision(kubeconfig)).await
}
