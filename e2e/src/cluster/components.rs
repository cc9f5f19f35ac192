//! The table of the cluster's programs. To add one is to add a row, and a `go.mod` directory where it is built.

use std::{fs, net::Ipv4Addr, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{
    component::{Component, Invocation, Ready},
    layout::{
        CGROUP, DNS_ADDRESS, DOMAIN, Layout, NATS_MONITORING_PORT, NATS_PORT, NODE, NODE_ADDRESS,
        POD_NETWORK, POSTGRES_PORT, node_socket,
    },
    volumes,
};
use crate::{
    build::{self, COREDNS, KUBERNETES},
    debian::{self, Package},
    kubernetes::flag,
    nats::{self, SyncInterval},
    postgres,
};

/// What the cluster takes from Debian.
pub const PACKAGES: [Package; 9] = [
    package("containerd", "containerd"),
    package("ctr", "containerd"),
    package("runc", "runc"),
    package("/usr/lib/cni/ptp", "containernetworking-plugins"),
    package("ip", "iproute2"),
    package("iptables", "iptables"),
    package("nft", "nftables"),
    package("mount", "mount"),
    package("nsenter", "util-linux"),
];

/// The name of containerd's socket in the sandbox.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
/// The image of the containers that hold the pods' namespaces.
pub const PAUSE_IMAGE: &str = "docker.io/nomnom/pause:1";

/// Where the components of the node itself answer.
const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const fn node(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(NODE_ADDRESS), port)
}

const fn package(program: &'static str, package: &'static str) -> Package {
    Package { program, package }
}

/// The programs of every cluster, in the order in which `status` shows them.
pub const COMPONENTS: [&Component; 10] = [
    &Component {
        name: "etcd",
        program: "etcd",
        after: &[],
        build: kubernetes_program,
        prepare: |layout| Ok(layout.settings().etcd_arguments().into()),
        ready: Ready::Tcp(local(2379)),
        stop: Signal::TERM,
        objects: Vec::new,
    },
    &Component {
        name: "kube-apiserver",
        program: "kube-apiserver",
        after: &["etcd"],
        build: kubernetes_program,
        prepare: |layout| Ok(layout.settings().api_server_arguments().into()),
        ready: Ready::Api("/readyz"),
        stop: Signal::TERM,
        objects: Vec::new,
    },
    &Component {
        name: "kube-controller-manager",
        program: "kube-controller-manager",
        after: &["kube-apiserver"],
        build: kubernetes_program,
        prepare: |layout| Ok(layout.settings().controller_manager_arguments().into()),
        // Without it no pod is admitted to the namespace.
        ready: Ready::Api("/api/v1/namespaces/default/serviceaccounts/default"),
        stop: Signal::TERM,
        objects: Vec::new,
    },
    &Component {
        name: "kube-scheduler",
        program: "kube-scheduler",
        after: &["kube-apiserver"],
        build: kubernetes_program,
        prepare: |layout| Ok(scheduler_arguments(layout).into()),
        ready: Ready::Tcp(node(10259)),
        stop: Signal::TERM,
        objects: Vec::new,
    },
    &Component {
        name: "containerd",
        program: "containerd",
        after: &[],
        build: debian_program,
        prepare: prepare_containerd,
        ready: Ready::Socket(CONTAINERD_SOCKET),
        stop: Signal::TERM,
        objects: Vec::new,
    },
    &Component {
        name: "kubelet",
        program: "kubelet",
        after: &["kube-apiserver", "containerd"],
        build: kubernetes_program,
        prepare: prepare_kubelet,
        ready: Ready::Http(local(10248), "/healthz"),
        stop: Signal::TERM,
        objects: Vec::new,
    },
    &Component {
        name: "kube-proxy",
        program: "kube-proxy",
        after: &["kube-apiserver"],
        build: kubernetes_program,
        prepare: prepare_proxy,
        ready: Ready::Http(local(10256), "/livez"),
        stop: Signal::TERM,
        objects: Vec::new,
    },
    &Component {
        name: "coredns",
        program: "coredns",
        after: &["kube-apiserver"],
        build: |program| COREDNS.program(program),
        prepare: prepare_coredns,
        ready: Ready::Http(node(8181), "/ready"),
        stop: Signal::TERM,
        objects: || {
            let ports = json!([
                {"name": "dns", "port": 53, "protocol": "UDP"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            ]);
            expose("kube-system", "kube-dns", Some(DNS_ADDRESS), &ports)
        },
    },
    &Component {
        name: "volumes",
        program: "cluster",
        after: &["kube-apiserver"],
        build: |_| std::env::current_exe().context("failed to find this program"),
        prepare: |layout| {
            let kubeconfig = layout.settings().kubeconfig("add-ons").display().to_string();
            Ok(vec![volumes::COMMAND.to_owned(), kubeconfig].into())
        },
        ready: Ready::Tcp(local(volumes::PORT)),
        stop: Signal::TERM,
        objects: volumes::objects,
    },
    &POSTGRES,
];

/// An external database, as pods see it.
pub const POSTGRES: Component = Component {
    name: "postgres",
    program: "postgres",
    after: &[],
    build: |_| postgres::server_program(),
    prepare: prepare_postgres,
    ready: Ready::Postgres(node(POSTGRES_PORT)),
    // Open transactions are rolled back and clients disconnected, as when an administrator stops it.
    stop: Signal::INT,
    objects: || {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "databases"}});
        let ports = json!([{"name": "postgres", "port": POSTGRES_PORT, "protocol": "TCP"}]);
        [vec![namespace], expose("databases", "postgres", None, &ports)].concat()
    },
};

/// An external queue, as pods see it. It is among the programs only of a cluster that was asked for it.
pub const NATS: Component = Component {
    name: "nats",
    program: nats::PROGRAM,
    after: &[],
    build: |program| build::NATS.program(program),
    prepare: prepare_nats,
    ready: Ready::Http(node(NATS_MONITORING_PORT), nats::READY_PATH),
    stop: Signal::TERM,
    objects: || {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "queues"}});
        let ports = json!([
            {"name": "nats", "port": NATS_PORT, "protocol": "TCP"},
            // KEDA's scaler asks it.
            {"name": "monitoring", "port": NATS_MONITORING_PORT, "protocol": "TCP"},
        ]);
        [vec![namespace], expose("queues", "nats", None, &ports)].concat()
    },
};

fn kubernetes_program(name: &str) -> Result<PathBuf> {
    KUBERNETES.program(name)
}

fn debian_program(name: &str) -> Result<PathBuf> {
    debian::find(name).with_context(|| format!("{name} is missing"))
}

/// A Service without selector, and its endpoint on the node: how pods reach a process of the machine.
fn expose(namespace: &str, name: &str, address: Option<Ipv4Addr>, ports: &Value) -> Vec<Value> {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"ports": ports},
    });
    if let Some(address) = address {
        service["spec"]["clusterIP"] = json!(address);
    }
    let endpoints = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-node"),
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": true}}],
        "ports": ports,
    });
    vec![service, endpoints]
}

fn scheduler_arguments(layout: &Layout) -> Vec<String> {
    let kubeconfig = layout.settings().kubeconfig("kube-scheduler");
    let kubeconfig = kubeconfig.display();
    vec![
        flag("kubeconfig", &kubeconfig),
        flag("authentication-kubeconfig", &kubeconfig),
        flag("authorization-kubeconfig", &kubeconfig),
        flag("bind-address", NODE_ADDRESS),
        flag("leader-elect", false),
    ]
}

fn prepare_containerd(layout: &Layout) -> Result<Invocation> {
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            // Every packet between pods passes the node's rules, without br_netfilter.
            {"type": "ptp", "ipMasq": false, "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": POD_NETWORK}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    layout.configure("cni/10-pods.conflist", &network.to_string())?;
    let text = format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd"
[grpc]
address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
# Where the machine does not let us lower a process's score, every pod would fail.
restrict_oom_score_adj = true
# A profile would stay in the kernel when the cluster is down.
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
"#,
        root = layout.text("containerd"),
        opt = layout.text("containerd-opt"),
        cni = layout.text("configuration/cni"),
    );
    let path = layout.configure("containerd.toml", &text)?;
    Ok(vec!["--config".to_owned(), path].into())
}

fn prepare_kubelet(layout: &Layout) -> Result<Invocation> {
    let credential = |name: &str| layout.settings().credentials.join(name).display().to_string();
    let configuration = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": credential("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": credential("kubelet.crt"),
        "tlsPrivateKeyFile": credential("kubelet.key"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{CGROUP}"),
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": DOMAIN,
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        // Nothing from the machine's own: its servers are out of reach.
        "resolvConf": layout.configure("resolv.conf.kubelet", "")?,
        // The machine's disk may be nearly full of other things.
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        // An image cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        // Secrets that change are seen sooner than after the default minute.
        "syncFrequency": "10s",
        "volumePluginDir": layout.text("volume-plugins"),
    });
    let path = layout.configure("kubelet.yaml", &configuration.to_string())?;
    Ok(vec![
        flag("config", path),
        flag("kubeconfig", layout.settings().kubeconfig("kubelet").display()),
        flag("hostname-override", NODE),
        flag("node-ip", NODE_ADDRESS),
    ]
    .into())
}

fn prepare_proxy(layout: &Layout) -> Result<Invocation> {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": NODE,
        "clientConnection": {"kubeconfig": layout.settings().kubeconfig("kube-proxy")},
        "healthzBindAddress": local(10256).to_string(),
        "metricsBindAddress": local(10249).to_string(),
        // The limits of the machine's connection tracking are not the cluster's to change.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    let path = layout.configure("kube-proxy.yaml", &configuration.to_string())?;
    Ok(vec![flag("config", path)].into())
}

fn prepare_coredns(layout: &Layout) -> Result<Invocation> {
    let kubeconfig = layout.settings().kubeconfig("add-ons");
    // Names of the world are unknown at once, instead of after the timeout of a server that is out of reach.
    let text = format!(
        "{DOMAIN} in-addr.arpa ip6.arpa {{
    bind {NODE_ADDRESS}
    errors
    ready {ready}
    cache 5
    loadbalance
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
}}
. {{
    bind {NODE_ADDRESS}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
",
        ready = node(8181),
        kubeconfig = kubeconfig.display(),
    );
    let path = layout.configure("Corefile", &text)?;
    Ok(vec!["-conf".to_owned(), path].into())
}

fn prepare_postgres(layout: &Layout) -> Result<Invocation> {
    let data = layout.path("postgres/data");
    if !data.is_dir() {
        // A directory of its own for each try: an earlier one was perhaps killed half-way.
        let unfinished = tempfile::tempdir_in(layout.path("postgres"))?;
        postgres::prepare_data(&unfinished.path().join("data"))?;
        fs::rename(unfinished.path().join("data"), &data)?;
    }
    // No server runs, or this would not be called; after a crash the number in the file may be somebody else's.
    let stale = data.join("postmaster.pid");
    if stale.exists() {
        fs::remove_file(stale)?;
    }
    let (_, arguments) =
        postgres::server_command("/run/postgres/data".as_ref(), node_socket(POSTGRES_PORT), &[])?;
    Ok(Invocation {
        arguments,
        user: postgres::unprivileged(),
    })
}

fn prepare_nats(layout: &Layout) -> Result<Invocation> {
    let options = nats::Options {
        // As the guide tells users to run theirs: what it acknowledged is on the disk.
        sync_interval: SyncInterval::Always,
        ..nats::Options::default()
    };
    let configuration = nats::configuration(
        node_socket(NATS_PORT),
        node_socket(NATS_MONITORING_PORT),
        &layout.path(NATS.name),
        &options,
    )?;
    let path = layout.configure("nats.conf", &configuration.to_string())?;
    Ok(vec!["--config".to_owned(), path].into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_component_needs_only_earlier_ones() {
        let mut seen = HashSet::new();
        for component in COMPONENTS {
            for needed in component.after {
                assert!(seen.contains(needed), "{} needs {needed}", component.name);
            }
            assert!(seen.insert(component.name));
        }
    }

    #[test]
    fn nats_keeps_its_data_among_the_files_of_the_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout {
            directory: directory.path().to_owned(),
        };
        let arguments = prepare_nats(&layout).unwrap().arguments;
        let text = fs::read_to_string(&arguments[1]).unwrap();
        let expected = json!({
            "listen": "10.201.0.1:4222",
            "http": "10.201.0.1:8222",
            "jetstream": {"store_dir": directory.path().join("nats"), "sync_interval": "always"},
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }

    #[test]
    fn pods_reach_nats_by_name() {
        let objects = (NATS.objects)();
        let kinds: Vec<_> = objects.iter().map(|object| &object["kind"]).collect();
        assert_eq!(kinds, ["Namespace", "Service", "EndpointSlice"]);
        assert_eq!(
            objects[1]["metadata"],
            json!({"name": "nats", "namespace": "queues"})
        );
        assert_eq!(objects[1]["spec"]["ports"][0]["port"], 4222);
        assert_eq!(objects[2]["endpoints"][0]["addresses"], json!(["10.201.0.1"]));
    }
}
