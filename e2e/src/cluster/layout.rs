//! Where the cluster's files are, and which addresses it has.
//!
//! All addresses are inside of the cluster's own network namespace: they meet no other network.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{cache, kubernetes::Settings};

/// The only node.
pub const NODE: &str = "node0";
/// The node's address, on a bridge without ports that is called like the node.
pub const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
/// Addresses of pods.
pub const POD_NETWORK: &str = "10.202.0.0/24";
/// Addresses of Services.
pub const SERVICE_NETWORK: &str = "10.203.0.0/16";
/// The Service of the API server.
const API_SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 1);
/// The Service kube-system/kube-dns.
pub const DNS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 10);
/// The domain of the cluster's names.
pub const DOMAIN: &str = "cluster.local";
/// PostgreSQL, on the node's address.
pub const POSTGRES_PORT: u16 = 5432;
/// nats-server, on the node's address.
pub const NATS_PORT: u16 = 4222;
/// Its monitoring endpoint.
pub const NATS_MONITORING_PORT: u16 = 8222;
/// The root of the pods' cgroups, in each hierarchy.
pub const CGROUP: &str = "nomnom-e2e";

/// The file that is there when the objects of the cluster's programs are.
const COMPLETE: &str = "complete";

/// The files of one cluster; all of them are below one directory.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The directory.
    pub directory: PathBuf,
}

impl Layout {
    /// The files of the cluster that this user's cache holds.
    pub fn new() -> Result<Self> {
        let directory = fs::canonicalize(cache::directory()?)
            .context("failed to find the cache directory")?
            .join("cluster");
        Ok(Self { directory })
    }

    /// A path below the directory.
    #[must_use]
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }

    /// The same as text, for command lines and configuration files.
    #[must_use]
    pub fn text(&self, name: impl AsRef<Path>) -> String {
        self.path(name).display().to_string()
    }

    /// The log of a component.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.path("logs").join(format!("{component}.log"))
    }

    /// The kubeconfig file of an administrator; its address is reached from the cluster's network namespace.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.settings().kubeconfig("admin")
    }

    /// What the control plane's programs are started with.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            credentials: self.path("credentials"),
            data: self.path("etcd"),
            api_server: node_socket(6443),
            etcd: SocketAddr::from((Ipv4Addr::LOCALHOST, 2379)),
            etcd_peer: SocketAddr::from((Ipv4Addr::LOCALHOST, 2380)),
            controller_manager_port: 10257,
            services: SERVICE_NETWORK,
            service_of_api_server: IpAddr::V4(API_SERVICE_ADDRESS),
            node: NODE,
        }
    }

    /// Makes the directories, and the certificates where there are none.
    pub fn create(&self) -> Result<()> {
        for directory in ["logs", "configuration", "images", "kubectl"] {
            fs::create_dir_all(self.path(directory))
                .with_context(|| format!("failed to create {}", self.text(directory)))?;
        }
        let settings = self.settings();
        if settings.credentials.is_dir() {
            return Ok(());
        }
        // Whoever is killed half-way leaves nothing that looks finished.
        let unfinished = self.path("credentials.unfinished");
        let in_the_making = Settings {
            credentials: unfinished.clone(),
            ..settings.clone()
        };
        in_the_making.write_credentials()?;
        fs::rename(&unfinished, &settings.credentials)?;
        Ok(())
    }

    /// Writes a configuration file and returns its path.
    pub fn configure(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path("configuration").join(name);
        fs::create_dir_all(path.parent().unwrap_or(&self.directory))?;
        fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(path.display().to_string())
    }

    /// Whether the objects of all of its programs were made.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.path(COMPLETE).exists()
    }

    /// Remembers that they were.
    pub fn mark_complete(&self) -> Result<()> {
        fs::write(self.path(COMPLETE), "").context("failed to write the cluster's state")
    }

    /// Lets the next `up` make them once more.
    pub fn mark_incomplete(&self) -> Result<()> {
        match fs::remove_file(self.path(COMPLETE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("failed to remove the cluster's state")
            }
            _ => Ok(()),
        }
    }

    /// Removes all files.
    pub fn remove(&self) -> Result<()> {
        ensure!(
            self.directory.ends_with("cluster"),
            "{} is not ours",
            self.directory.display()
        );
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("failed to remove {}", self.directory.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A port of the node.
#[must_use]
pub fn node_socket(port: u16) -> SocketAddr {
    SocketAddr::from((NODE_ADDRESS, port))
}
