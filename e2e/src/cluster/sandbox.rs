//! The namespaces that the whole cluster lives in: network, mounts and processes.
//!
//! When the first process of the process namespace ends, the kernel ends all others in it; then the mounts and the
//! network end too. So there is one thing to kill, and nothing that a crash could leave behind, but cgroups.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    process::{WaitOptions, wait},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{
    layout::{Layout, NODE, NODE_ADDRESS, SERVICE_NETWORK},
    marks,
};
use crate::{build, debian};

/// The sandbox's name among the components.
pub const COMPONENT: &str = "sandbox";
/// The hidden command of the `cluster` program that runs `become_first_process`.
pub const COMMAND: &str = "first-process";
/// Directories of the machine that Kubernetes cannot be talked out of, and what lies over them in the sandbox.
pub const PRIVATE_DIRECTORIES: [(&str, &str); 4] = [
    ("/var/lib/kubelet", "kubelet"),
    ("/var/lib/cni", "cni"),
    ("/var/log/containers", "logs/containers"),
    ("/var/log/pods", "logs/pods"),
];
/// Directories of the cluster that programs find under a short path that everybody may enter.
const RUN_DIRECTORIES: [(&str, &str); 2] = [("/run/postgres", "postgres"), ("/run/volumes", "volumes")];
/// Two mounts and three calls of `ip` take a tenth of a second.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the first process looks for children where it has none.
const ORPHAN_INTERVAL: Duration = Duration::from_millis(200);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The namespaces of a running cluster.
#[derive(Clone, Debug)]
pub struct Sandbox {
    directory: PathBuf,
    first_process: u32,
}

impl Sandbox {
    /// The sandbox of the cluster in `layout`, where it runs.
    #[must_use]
    pub fn find(layout: &Layout) -> Option<Self> {
        let first_process = marks::sandbox(&layout.directory)?;
        let ready = layout.path("sandbox-ready").exists();
        ready.then(|| Self {
            directory: layout.directory.clone(),
            first_process,
        })
    }

    /// Makes the namespaces. There must be no sandbox already.
    pub fn create(layout: &Layout) -> Result<Self> {
        for (path, own) in PRIVATE_DIRECTORIES.iter().chain(&RUN_DIRECTORIES) {
            std::fs::create_dir_all(layout.path(own))?;
            if !path.starts_with("/run/") {
                std::fs::create_dir_all(path).with_context(|| format!("failed to create {path}"))?;
            }
        }
        let log = layout.log(COMPONENT);
        let output = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
        let this_program = std::env::current_exe().context("failed to find this program")?;
        let mut child = Command::new("setsid")
            .args(["unshare", "--mount", "--net", "--pid", "--fork"])
            .arg(this_program)
            .arg(COMMAND)
            .arg(&layout.directory)
            .env(marks::CLUSTER, &layout.directory)
            .env(marks::COMPONENT, COMPONENT)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("failed to run unshare")?;
        let start = Instant::now();
        loop {
            if let Some(sandbox) = Self::find(layout) {
                reap(child);
                return Ok(sandbox);
            }
            if child.try_wait()?.is_some() || start.elapsed() > START_TIMEOUT {
                bail!(
                    "failed to make the cluster's namespaces:\n{}",
                    build::end_of(&log)
                );
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Moves this thread into the cluster's network: what it starts afterwards, threads and processes, is there too.
    pub fn enter_network(&self) -> Result<()> {
        self.enter("net", LinkNameSpaceType::Network)
    }

    fn enter(&self, name: &str, kind: LinkNameSpaceType) -> Result<()> {
        let path = self.namespace(name);
        let link = File::open(&path).with_context(|| format!("failed to open {}", path.display()))?;
        move_into_link_name_space(link.as_fd(), Some(kind))
            .with_context(|| format!("failed to enter the cluster's {name} namespace"))
    }

    /// The root of the sandbox's files, as this program sees them.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.first_process))
    }

    /// The kernel's link to one of the namespaces.
    #[must_use]
    pub fn namespace(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{name}", self.first_process))
    }

    /// A command that runs in the cluster's network and mounts, in the foreground.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.namespace("net").display()))
            .arg(format!("--mount={}", self.namespace("mnt").display()))
            .arg("--")
            .arg(program)
            .env(marks::CLUSTER, &self.directory)
            .env(marks::COMPONENT, "command");
        command
    }

    /// Starts a program of the cluster, which stays when this process ends.
    pub fn spawn(&self, component: &str, log: &Path, program: Vec<std::ffi::OsString>) -> Result<()> {
        let output = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new("setsid");
        command
            .arg("nsenter")
            .arg(format!("--mount={}", self.namespace("mnt").display()))
            .arg("--")
            .args(program)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/run")
            .env(marks::CLUSTER, &self.directory)
            .env(marks::COMPONENT, component)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        reap(self.spawn_inside(command)?);
        Ok(())
    }

    /// A thread's namespaces are its own, so one is spent on the start of each program.
    fn spawn_inside(&self, mut command: Command) -> Result<Child> {
        let sandbox = self.clone();
        let starter = thread::spawn(move || {
            sandbox.enter("net", LinkNameSpaceType::Network)?;
            sandbox.enter("pid", LinkNameSpaceType::ProcessID)?;
            command
                .spawn()
                .context("failed to start a program of the cluster")
        });
        starter
            .join()
            .map_err(|_| anyhow!("the thread that starts programs failed"))?
    }
}

/// Takes the exit status of a program that ends before this one does; otherwise the sandbox's first process does.
fn reap(mut child: Child) {
    thread::spawn(move || child.wait());
}

/// What the first process of the sandbox does: it prepares the namespaces that it was started in, and
/// then takes the exit status of whatever lost its parent. Never returns unless it fails.
pub fn become_first_process(layout: &Layout) -> Result<()> {
    prepare_mounts(layout).context("failed to prepare the mounts")?;
    prepare_network()?;
    std::fs::write(layout.path("sandbox-ready"), "")?;
    loop {
        if let Err(rustix::io::Errno::CHILD) = wait(WaitOptions::empty()) {
            thread::sleep(ORPHAN_INTERVAL);
        }
    }
}

fn prepare_mounts(layout: &Layout) -> io::Result<()> {
    // Nothing reaches the machine's mounts; within the sandbox mounts are shared, as volumes need them to be.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount(
        "proc",
        "/proc",
        "proc",
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        None,
    )?;
    mount(
        "tmpfs",
        "/run",
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(c"mode=755"),
    )?;
    for directory in ["/run/lock", "/run/netns"] {
        std::fs::create_dir(directory)?;
    }
    for (path, own) in PRIVATE_DIRECTORIES.iter().chain(&RUN_DIRECTORIES) {
        std::fs::create_dir_all(path)?;
        mount_bind(layout.path(own), *path)?;
    }
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)?;
    Ok(())
}

fn prepare_network() -> Result<()> {
    let address = format!("{NODE_ADDRESS}/24");
    for arguments in [
        ["link", "set", "lo", "up"].as_slice(),
        // A bridge without ports: the kernel need not have dummy devices.
        &["link", "add", NODE, "type", "bridge"],
        &["address", "add", &address, "dev", NODE],
        &["link", "set", NODE, "up"],
        // The proxy's rules see only packets that have a route.
        &["route", "replace", SERVICE_NETWORK, "dev", NODE],
    ] {
        let ip = debian::find("ip").context("ip is missing: install iproute2")?;
        let status = Command::new(ip)
            .args(arguments)
            .status()
            .context("failed to run ip")?;
        anyhow::ensure!(status.success(), "ip {} failed ({status})", arguments.join(" "));
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("failed to switch on forwarding")?;
    Ok(())
}
