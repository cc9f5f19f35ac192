//! What an API server needs, alone or in a cluster: certificates, kubeconfig files and command lines.
//!
//! Both tiers ([`crate::ControlPlane`] and [`crate::Cluster`]) start their programs from here, so that a test
//! that passes on one does not fail on the other for a flag's sake.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use crate::certificates::{self, Authority, Identity, Subject};

/// The group that RBAC never refuses anything.
const ADMINISTRATORS: &str = "system:masters";

/// Where the programs of one control plane listen, and where their files are.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Certificates, keys and kubeconfig files.
    pub credentials: PathBuf,
    /// etcd's data.
    pub data: PathBuf,
    /// The API server.
    pub api_server: SocketAddr,
    /// etcd, for the API server.
    pub etcd: SocketAddr,
    /// etcd, for its peers, of which there are none.
    pub etcd_peer: SocketAddr,
    /// The controller manager's health endpoint.
    pub controller_manager_port: u16,
    /// Addresses of Services.
    pub services: &'static str,
    /// The first of them, which is the API server's own.
    pub service_of_api_server: IpAddr,
    /// The node's name.
    pub node: &'static str,
}

/// A client certificate, and so a kubeconfig file: name, user, group.
const USERS: [(&str, &str, Option<&str>); 5] = [
    ("admin", "admin", Some(ADMINISTRATORS)),
    ("kube-controller-manager", "system:kube-controller-manager", None),
    ("kube-scheduler", "system:kube-scheduler", None),
    ("kube-proxy", "system:kube-proxy", None),
    // What is ours or stands for an add-on, and would else need a role of its own.
    ("add-ons", "add-ons", Some(ADMINISTRATORS)),
];

impl Settings {
    /// The kubeconfig file of one of the programs, or of `admin`.
    #[must_use]
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.credentials.join(format!("{user}.kubeconfig"))
    }

    /// Makes certificates, keys and kubeconfig files.
    pub fn write_credentials(&self) -> Result<()> {
        let directory = &self.credentials;
        fs::create_dir_all(directory)?;
        let authority = Authority::new("e2e")?;
        authority.write(directory, "ca")?;
        certificates::write_signing_key(directory, "service-account")?;

        let front_proxy = Authority::new("e2e-front-proxy")?;
        front_proxy.write(directory, "front-proxy-ca")?;
        let aggregator = Subject {
            user: "front-proxy-client",
            ..Subject::default()
        };
        front_proxy
            .issue(&aggregator)?
            .write(directory, "front-proxy-client")?;

        let server = Subject {
            user: "kube-apiserver",
            group: Some(ADMINISTRATORS),
            names: &[
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
            ],
            addresses: &[self.api_server.ip(), self.service_of_api_server],
        };
        authority.issue(&server)?.write(directory, "kube-apiserver")?;
        for (name, user, group) in USERS {
            let subject = Subject {
                user,
                group,
                ..Subject::default()
            };
            self.write_kubeconfig(name, &authority, &authority.issue(&subject)?)?;
        }
        self.write_node_credentials(&authority)
    }

    fn write_node_credentials(&self, authority: &Authority) -> Result<()> {
        let subject = Subject {
            user: &format!("system:node:{}", self.node),
            group: Some("system:nodes"),
            names: &[self.node],
            addresses: &[self.api_server.ip()],
        };
        let node = authority.issue(&subject)?;
        node.write(&self.credentials, "kubelet")?;
        self.write_kubeconfig("kubelet", authority, &node)
    }

    fn write_kubeconfig(&self, name: &str, authority: &Authority, identity: &Identity) -> Result<()> {
        let pem = |text: &str| ByteString(text.as_bytes().to_vec());
        let file = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "e2e", "cluster": {
                "server": format!("https://{}", self.api_server),
                "certificate-authority-data": pem(&authority.certificate()),
            }}],
            "users": [{"name": name, "user": {
                "client-certificate-data": pem(&identity.certificate),
                "client-key-data": pem(&identity.key),
            }}],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": name}}],
            "current-context": "e2e",
        });
        certificates::write_private(&self.kubeconfig(name), &serde_yaml::to_string(&file)?)
    }

    /// etcd's arguments.
    #[must_use]
    pub fn etcd_arguments(&self) -> Vec<String> {
        vec![
            flag("data-dir", self.data.display()),
            flag("client-url", format_args!("http://{}", self.etcd)),
            flag("peer-url", format_args!("http://{}", self.etcd_peer)),
            // A crash of the machine ends the cluster anyway; a crash of etcd loses nothing.
            "--unsafe-no-fsync".to_owned(),
        ]
    }

    /// The API server's arguments.
    #[must_use]
    pub fn api_server_arguments(&self) -> Vec<String> {
        let file = |name: &str| self.credentials.join(name).display().to_string();
        vec![
            flag("etcd-servers", format_args!("http://{}", self.etcd)),
            flag("bind-address", self.api_server.ip()),
            flag("advertise-address", self.api_server.ip()),
            flag("secure-port", self.api_server.port()),
            flag("service-cluster-ip-range", self.services),
            flag("authorization-mode", "Node,RBAC"),
            flag("enable-admission-plugins", "NodeRestriction"),
            flag("allow-privileged", true),
            flag("anonymous-auth", true),
            flag("client-ca-file", file("ca.crt")),
            flag("tls-cert-file", file("kube-apiserver.crt")),
            flag("tls-private-key-file", file("kube-apiserver.key")),
            flag("kubelet-client-certificate", file("kube-apiserver.crt")),
            flag("kubelet-client-key", file("kube-apiserver.key")),
            flag("kubelet-certificate-authority", file("ca.crt")),
            flag("kubelet-preferred-address-types", "InternalIP"),
            flag("service-account-issuer", "https://kubernetes.default.svc"),
            flag("service-account-key-file", file("service-account.pub")),
            flag("service-account-signing-key-file", file("service-account.key")),
            flag("requestheader-client-ca-file", file("front-proxy-ca.crt")),
            flag("requestheader-allowed-names", "front-proxy-client"),
            flag("requestheader-username-headers", "X-Remote-User"),
            flag("requestheader-group-headers", "X-Remote-Group"),
            flag("requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            flag("proxy-client-cert-file", file("front-proxy-client.crt")),
            flag("proxy-client-key-file", file("front-proxy-client.key")),
            flag("enable-aggregator-routing", true),
        ]
    }

    /// The controller manager's arguments.
    #[must_use]
    pub fn controller_manager_arguments(&self) -> Vec<String> {
        let file = |name: &str| self.credentials.join(name).display().to_string();
        let kubeconfig = self.kubeconfig("kube-controller-manager");
        vec![
            flag("kubeconfig", kubeconfig.display()),
            flag("authentication-kubeconfig", kubeconfig.display()),
            flag("authorization-kubeconfig", kubeconfig.display()),
            flag("bind-address", self.api_server.ip()),
            flag("secure-port", self.controller_manager_port),
            // With one private key for each controller's tokens, RBAC holds for each of them.
            flag("use-service-account-credentials", true),
            flag("cluster-signing-cert-file", file("ca.crt")),
            flag("cluster-signing-key-file", file("ca.key")),
            flag("root-ca-file", file("ca.crt")),
            flag("service-account-private-key-file", file("service-account.key")),
            flag("leader-elect", false),
            flag("horizontal-pod-autoscaler-sync-period", "5s"),
        ]
    }
}

/// `--name=value`.
pub fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

/// The client configuration in a kubeconfig file.
pub async fn client_configuration(kubeconfig: &Path) -> Result<Config> {
    let file = Kubeconfig::read_from(kubeconfig)
        .with_context(|| format!("failed to read {}", kubeconfig.display()))?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    // Everything that is addressed is on this machine; a proxy of the environment is not for it.
    config.proxy_url = None;
    Ok(config)
}

/// A client for a kubeconfig file.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    Ok(Client::try_from(client_configuration(kubeconfig).await?)?)
}
