//! `cluster down`: leaves no process, mount, namespace, cgroup, interface or file, however the cluster was left.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    cgroups,
    holder::{Holder, Lock},
    layout::Layout,
    marks,
    sandbox::PRIVATE_DIRECTORIES,
};

/// Settings of the kernel that the kubelet changes.
const KERNEL_SETTINGS: [&str; 5] = [
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/vm/panic_on_oom",
    "/proc/sys/kernel/panic",
    "/proc/sys/kernel/panic_on_oops",
    "/proc/sys/kernel/keys/root_maxkeys",
];

/// How the cluster is taken down.
#[derive(Clone, Copy, Debug)]
pub struct DownOptions {
    /// How long processes may take to end.
    pub timeout: Duration,
    /// Take down what another checkout started.
    pub force: bool,
}

/// Takes the cluster down.
pub fn down(options: DownOptions) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the cluster was started by root, and only root can stop it");
    }
    let lock = Lock::acquire()?;
    let holder = Holder::read()?;
    let checkout = Holder::this_checkout();
    if let Some(holder) = holder
        .as_ref()
        .filter(|holder| holder.checkout != checkout && !options.force)
    {
        // The lock's file stays: it is the holder's.
        bail!(
            "the cluster of this machine is held by {}: take it down there, or here with `cluster down --force`",
            holder.checkout.display()
        );
    }
    let was_up = holder.is_some();
    let layout = holder.map_or_else(Layout::new, |holder| {
        Ok(Layout {
            directory: holder.directory,
        })
    })?;
    sweep(&layout, options.timeout)?;
    restore_kernel_settings(&layout)?;
    layout.remove()?;
    for (path, _) in PRIVATE_DIRECTORIES {
        // One that is not empty is somebody else's; one that is not there need not go.
        let _ = fs::remove_dir(path);
    }
    lock.release()?;
    println!(
        "{}",
        if was_up {
            "the cluster is down"
        } else {
            "the cluster was down already"
        }
    );
    Ok(())
}

/// Ends all processes of the cluster, and with them mounts and network, and removes what they leave in the kernel.
pub(super) fn sweep(layout: &Layout, timeout: Duration) -> Result<()> {
    marks::kill_all(&layout.directory, timeout)?;
    cgroups::remove(timeout)?;
    match fs::remove_file(layout.path("sandbox-ready")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("failed to remove the cluster's state");
        }
        _ => (),
    }
    layout.mark_incomplete()
}

/// Writes down the kernel's settings, unless that was done before the kubelet could change them.
pub(super) fn remember_kernel_settings(layout: &Layout) -> Result<()> {
    let path = layout.path("kernel-settings.json");
    if path.exists() {
        return Ok(());
    }
    let settings: BTreeMap<_, _> = KERNEL_SETTINGS
        .iter()
        .filter_map(|setting| Some((*setting, fs::read_to_string(setting).ok()?)))
        .collect();
    let unfinished = layout.path("kernel-settings.unfinished");
    fs::write(&unfinished, serde_json::to_vec(&settings)?)?;
    fs::rename(unfinished, path)?;
    Ok(())
}

fn restore_kernel_settings(layout: &Layout) -> Result<()> {
    let Ok(bytes) = fs::read(layout.path("kernel-settings.json")) else {
        return Ok(());
    };
    let settings: BTreeMap<String, String> = serde_json::from_slice(&bytes)?;
    for (setting, value) in settings {
        if fs::read_to_string(&setting).is_ok_and(|now| now != value) {
            fs::write(&setting, value).with_context(|| format!("failed to restore {setting}"))?;
        }
    }
    Ok(())
}
