//! What a cluster could leave on the machine, before and after.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where Kubernetes and its friends leave files.
const PLACES: [&str; 10] = [
    "/run",
    "/run/netns",
    "/run/containerd",
    "/opt",
    "/tmp/hostpath_pv",
    "/var/lib",
    "/var/lib/kubelet",
    "/var/log",
    "/etc/cni",
    "/usr/libexec/kubernetes",
];
const KERNEL_SETTINGS: [&str; 4] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
];
/// Programs that only a cluster runs.
const PROGRAMS: [&str; 6] = [
    "containerd",
    "containerd-shim",
    "kubelet",
    "kube-proxy",
    "coredns",
    "pause",
];

/// Everything, in lines that can be compared.
pub struct Machine(BTreeSet<String>);

impl Machine {
    /// The machine as it is now.
    pub fn look() -> Self {
        let mut lines = BTreeSet::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        lines.extend(
            mounts
                .lines()
                .map(|line| format!("mount {}", line.split(' ').nth(4).unwrap())),
        );
        for place in PLACES {
            lines.extend(names_in(place).map(|name| format!("file {place}/{name}")));
        }
        lines.extend(names_in("/sys/class/net").map(|name| format!("interface {name}")));
        lines.extend(cgroups().iter().map(|path| format!("cgroup {}", path.display())));
        for setting in KERNEL_SETTINGS {
            let value = fs::read_to_string(Path::new("/proc/sys").join(setting)).unwrap();
            lines.insert(format!("setting {setting} {}", value.trim()));
        }
        for process in processes() {
            for namespace in ["net", "mnt", "pid"] {
                let link = fs::read_link(process.join("ns").join(namespace));
                lines.extend(link.map(|link| format!("namespace {}", link.display())));
            }
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            if PROGRAMS.contains(&name.trim()) || is_of_the_cluster(&process) {
                lines.insert(format!("process {} {}", process.display(), name.trim()));
            }
        }
        Self(lines)
    }

    /// Fails where something is there that was not, or is gone that was there.
    pub fn assert_unchanged(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::look();
            let more: Vec<_> = now.0.difference(&self.0).collect();
            // Namespaces of others come and go.
            let less: Vec<_> = self
                .0
                .difference(&now.0)
                .filter(|line| !line.starts_with("namespace"))
                .collect();
            if more.is_empty() && less.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "left behind: {more:#?}\ngone: {less:#?}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Kills a process, as the kernel does when memory is short.
pub fn kill(pid: u32) {
    e2e::process::signal(pid, rustix::process::Signal::KILL).unwrap();
    wait_until_dead(pid);
}

/// The signal is only the beginning: a namespace's first process, say, waits for all others in it.
fn wait_until_dead(pid: u32) {
    let process = Path::new("/proc").join(pid.to_string());
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read_to_string(process.join("status")).is_ok_and(|status| !status.contains("State:\tZ")) {
        assert!(Instant::now() < deadline, "{pid} does not die");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills every process that was started by `cluster up`, and every process of every pod, in no order.
pub fn kill_everything_of_the_cluster() {
    let in_pods: Vec<_> = cgroups().iter().flat_map(|path| processes_below(path)).collect();
    let marked = processes()
        .into_iter()
        .filter(|process| is_of_the_cluster(process));
    let marked = marked.filter_map(|process| process.file_name()?.to_str()?.parse().ok());
    let all: Vec<u32> = marked.chain(in_pods).collect();
    for pid in &all {
        e2e::process::signal(*pid, rustix::process::Signal::KILL).unwrap();
    }
    all.into_iter().for_each(wait_until_dead);
}

fn processes_below(cgroup: &Path) -> Vec<u32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes_below(&entry.path()));
        }
    }
    pids
}

fn processes() -> Vec<PathBuf> {
    let is_process = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit)
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(is_process)
        .collect()
}

fn is_of_the_cluster(process: &Path) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry.starts_with(b"NOMNOM_E2E_CLUSTER="))
}

fn cgroups() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let hierarchies = names_in("/sys/fs/cgroup")
        .map(|name| root.join(name))
        .chain([root.clone()]);
    hierarchies
        .map(|hierarchy| hierarchy.join("nomnom-e2e"))
        .filter(|path| path.exists())
        .collect()
}

fn names_in(directory: &str) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}
