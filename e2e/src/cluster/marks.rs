//! The processes of the cluster, found by marks in their environment.
//!
//! There are no pid files, which could be stale, or missing when whoever should have written them was killed: every
//! process is started with the cluster's directory and its component's name in its environment, where the
//! kernel shows them for as long as it runs.

use std::{
    collections::HashSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use rustix::process::Signal;

use crate::process;

/// Names the cluster's directory.
pub const CLUSTER: &str = "NOMNOM_E2E_CLUSTER";
/// Names the component.
pub const COMPONENT: &str = "NOMNOM_E2E_COMPONENT";
/// What a component's process is called until it has become the component's program.
const LAUNCHERS: [&str; 3] = ["setsid", "nsenter", "setpriv"];
/// The kernel cuts a process's name there.
const NAME_LENGTH: usize = 15;
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A process that carries the marks of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Its id, as this program sees it.
    pub pid: u32,
    /// Its component.
    pub component: String,
    name: String,
    parent: u32,
    leads_namespace: bool,
}

/// All processes of the cluster in `directory`. Zombies are not among them: they run nothing.
#[must_use]
pub fn processes(directory: &Path) -> Vec<Marked> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| read(pid, directory))
        .collect()
}

/// The main process of a component that runs `program`.
///
/// Children of its own inherit the marks, and so do children of its own that outlived it (containerd's shims).
#[must_use]
pub fn main_process(directory: &Path, component: &str, program: &str) -> Option<u32> {
    let candidates = of_component(directory, component, program);
    let pids: HashSet<u32> = candidates.iter().map(|process| process.pid).collect();
    candidates
        .iter()
        .find(|process| !pids.contains(&process.parent))
        .map(|process| process.pid)
}

/// The first process of the cluster's process namespace.
#[must_use]
pub fn sandbox(directory: &Path) -> Option<u32> {
    processes(directory)
        .into_iter()
        .find(|process| process.leads_namespace)
        .map(|process| process.pid)
}

/// Signals all processes of a component that run `program`.
pub fn signal_component(directory: &Path, component: &str, program: &str, signal: Signal) -> Result<()> {
    for process in of_component(directory, component, program) {
        process::signal(process.pid, signal)?;
    }
    Ok(())
}

/// Waits until no process of the component runs `program`.
pub fn wait_until_gone(directory: &Path, component: &str, program: &str, timeout: Duration) -> Result<()> {
    let start = Instant::now();
    while !of_component(directory, component, program).is_empty() {
        if start.elapsed() > timeout {
            bail!("{component} does not end within {timeout:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// Kills every process of the cluster and waits until there is none.
pub fn kill_all(directory: &Path, timeout: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        let mut left = processes(directory);
        // The end of the namespace's first process is the end of all in it.
        left.sort_by_key(|process| !process.leads_namespace);
        if left.is_empty() {
            return Ok(());
        }
        if start.elapsed() > timeout {
            bail!("processes of the cluster do not end within {timeout:?}: {left:?}");
        }
        for process in left {
            process::signal(process.pid, Signal::KILL)?;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// All processes of a component that run `program`.
#[must_use]
pub fn of_component(directory: &Path, component: &str, program: &str) -> Vec<Marked> {
    let name = &program[..program.len().min(NAME_LENGTH)];
    let mut processes = processes(directory);
    processes.retain(|process| {
        process.component == component && (process.name == name || LAUNCHERS.contains(&process.name.as_str()))
    });
    processes
}

fn read(pid: u32, directory: &Path) -> Option<Marked> {
    let process = Path::new("/proc").join(pid.to_string());
    let environment = fs::read(process.join("environ")).ok()?;
    let value = |name: &str| {
        environment
            .split(|byte| *byte == 0)
            .find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
    };
    if value(CLUSTER)? != directory.as_os_str().as_encoded_bytes() {
        return None;
    }
    let status = fs::read_to_string(process.join("status")).ok()?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    if field("State").is_none_or(|state| state.starts_with('Z') || state.starts_with('X')) {
        return None;
    }
    let ids: Vec<_> = field("NSpid")?.split_whitespace().collect();
    Some(Marked {
        pid,
        component: String::from_utf8_lossy(value(COMPONENT).unwrap_or_default()).into_owned(),
        name: field("Name")?.to_owned(),
        parent: field("PPid")?.parse().ok()?,
        leads_namespace: ids.len() > 1 && ids.last() == Some(&"1"),
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn finds_and_kills_what_is_marked_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let start = |component: &str| {
            Command::new("sleep")
                .arg("60")
                .env(CLUSTER, directory.path())
                .env(COMPONENT, component)
                .spawn()
                .unwrap()
        };
        let mut children = [start("one"), start("two")];
        let mut foreign = Command::new("sleep").arg("60").spawn().unwrap();

        // A child is called like its parent until it has become its program.
        while main_process(directory.path(), "one", "sleep").is_none() {}
        assert_eq!(
            main_process(directory.path(), "one", "sleep"),
            Some(children[0].id())
        );
        assert_eq!(main_process(directory.path(), "one", "other"), None);
        assert_eq!(sandbox(directory.path()), None);

        kill_all(directory.path(), Duration::from_secs(10)).unwrap();
        assert!(processes(directory.path()).is_empty());
        for child in &mut children {
            assert!(!child.wait().unwrap().success());
        }
        assert!(foreign.try_wait().unwrap().is_none());
        foreign.kill().unwrap();
        foreign.wait().unwrap();
    }
}
