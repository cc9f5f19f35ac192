//! The pods' cgroups: the one thing of the cluster that does not end with its processes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::layout::CGROUP;

const ROOT: &str = "/sys/fs/cgroup";
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Makes the root of the pods' cgroups in every hierarchy, which the kubelet wants to find.
pub fn create() -> Result<()> {
    for hierarchy in hierarchies()? {
        let path = hierarchy.join(CGROUP);
        fs::create_dir_all(&path).with_context(|| format!("failed to create {}", path.display()))?;
    }
    Ok(())
}

/// Removes the pods' cgroups, whose processes have ended.
pub fn remove(timeout: Duration) -> Result<()> {
    let start = Instant::now();
    for hierarchy in hierarchies()? {
        let path = hierarchy.join(CGROUP);
        // A process leaves its cgroups a moment after its end.
        while let Err(error) = remove_tree(&path) {
            if start.elapsed() > timeout {
                bail!("failed to remove the cgroup {}: {error}", path.display());
            }
            thread::sleep(POLL_INTERVAL);
        }
    }
    Ok(())
}

/// Removes a cgroup and those below it; one that does not exist is no error.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// One root with cgroup v2, one for each hierarchy with v1.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_path_buf()]);
    }
    let mut hierarchies = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("failed to read {ROOT}"))? {
        let entry = entry?;
        // Controllers that share a hierarchy are links to one directory.
        if entry.file_type()?.is_dir() && entry.path().join("cgroup.procs").exists() {
            hierarchies.push(entry.path());
        }
    }
    Ok(hierarchies)
}
