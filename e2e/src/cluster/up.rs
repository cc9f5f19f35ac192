//! `cluster up`: builds what is missing, starts what does not run, and waits until the node is ready.
//!
//! Every step looks at what is there first. So the same code makes a cluster, heals one, and goes on
//! where an earlier `up` was killed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::{
    Cluster, cgroups, component,
    components::{PACKAGES, PAUSE_IMAGE},
    down,
    holder::{Holder, Lock},
    layout::{DNS_ADDRESS, DOMAIN, Layout, NODE},
    load_image,
    optional::{self, components_of},
    run_kubectl,
    sandbox::Sandbox,
};
use crate::{
    build::{ALTERNATIVE, COREDNS, KUBERNETES, PAUSE, in_words},
    debian, image,
};

/// The kubelet reports within seconds.
const NODE_TIMEOUT: Duration = Duration::from_mins(1);
/// Longest path of a socket, less what components put below the cluster's directory.
const LONGEST_DIRECTORY: usize = 200;

/// Brings the cluster up, or heals it, with the optional components called `with` and those that it has already.
///
/// For the program `cluster` alone: it starts itself anew as the cluster's first process.
pub fn up(with: &[String]) -> Result<()> {
    check_machine()?;
    // Before minutes of building, and once more when nobody else can take it.
    check_holder()?;
    debian::ensure(&PACKAGES)?;
    for module in [KUBERNETES, COREDNS, PAUSE] {
        module.build()?;
    }
    let layout = Layout::new()?;
    for component in optional::wanted(&layout, with)? {
        (component.build)(component.program)?;
    }
    let lock = Lock::acquire()?;
    check_holder()?;
    let start = Instant::now();
    let holder = Holder {
        checkout: Holder::this_checkout(),
        directory: layout.directory.clone(),
    };
    holder.record(&lock)?;
    let (sandbox, is_new) = enter_or_create(&layout)?;
    let added = optional::remember(&layout, with)?;
    let cluster = Cluster {
        layout: layout.clone(),
        sandbox: sandbox.clone(),
    };
    let started = cluster.run_blocking(move || start_components(&layout, &sandbox))?;
    println!("{}", summary(is_new, &started, &added, start.elapsed()));
    Ok(())
}

/// What an `up` tells that started these programs, of which some were new to the cluster.
fn summary(is_new: bool, started: &[&str], added: &[&str], time: Duration) -> String {
    let time = in_words(time);
    let healed: Vec<_> = started
        .iter()
        .copied()
        .filter(|name| !added.contains(name))
        .collect();
    match (is_new, healed.as_slice(), added) {
        (true, _, _) => format!("the cluster is up after {time}"),
        (false, [], []) => "the cluster is up already".to_owned(),
        (false, healed, []) => format!("healed {} in {time}", healed.join(", ")),
        (false, [], added) => format!("added {} in {time}", added.join(", ")),
        (false, healed, added) => {
            format!(
                "healed {} and added {} in {time}",
                healed.join(", "),
                added.join(", ")
            )
        }
    }
}

/// Says who else holds the cluster of this machine.
fn check_holder() -> Result<()> {
    let checkout = Holder::this_checkout();
    if let Some(holder) = Holder::read()?.filter(|holder| holder.checkout != checkout) {
        bail!(
            "the cluster of this machine is held by {}: take it down there (`make cluster-down`), or here with `cluster down --force`",
            holder.checkout.display()
        );
    }
    Ok(())
}

/// Says what is missing before anything is begun.
fn check_machine() -> Result<()> {
    ensure!(
        cfg!(target_os = "linux"),
        "the cluster needs Linux: use a Linux machine, {ALTERNATIVE}"
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "the cluster needs root (network namespace, cgroups, containers): run this as root, {ALTERNATIVE}"
    );
    Ok(())
}

/// The sandbox that runs, or a new one; what is left of an earlier one is removed first, but its data.
fn enter_or_create(layout: &Layout) -> Result<(Sandbox, bool)> {
    let length = layout.directory.as_os_str().len();
    ensure!(
        length <= LONGEST_DIRECTORY,
        "the cache directory's path is too long ({length}): name a shorter one in {}",
        crate::cache::DIRECTORY_VARIABLE
    );
    layout.create()?;
    if let Some(sandbox) = Sandbox::find(layout) {
        return Ok((sandbox, false));
    }
    down::sweep(layout, NODE_TIMEOUT)?;
    down::remember_kernel_settings(layout)?;
    cgroups::create()?;
    Ok((Sandbox::create(layout)?, true))
}

/// Runs in the cluster's network.
fn start_components(layout: &Layout, sandbox: &Sandbox) -> Result<Vec<&'static str>> {
    let resolver = format!("nameserver {DNS_ADDRESS}\nsearch svc.{DOMAIN} {DOMAIN}\n");
    let path = layout.configure("resolv.conf", &resolver)?;
    // Read by programs that run as anybody.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    let started = component::start_all(&components_of(layout), layout, sandbox)?;
    if started.is_empty() && layout.is_complete() {
        return Ok(started);
    }
    if !layout.is_complete() {
        load_pause_image(layout, sandbox)?;
        apply_objects(layout, sandbox)?;
    }
    wait_for_node(layout)?;
    layout.mark_complete()?;
    Ok(started)
}

fn load_pause_image(layout: &Layout, sandbox: &Sandbox) -> Result<()> {
    let archive = layout.path("images/pause.tar");
    image::Image {
        name: PAUSE_IMAGE.to_owned(),
        binary: PAUSE.program("pause")?,
        certificates: None,
    }
    .write(&archive)?;
    load_image(layout, sandbox, &archive).context("failed to load the pause image")?;
    Ok(())
}

fn apply_objects(layout: &Layout, sandbox: &Sandbox) -> Result<()> {
    let items: Vec<_> = components_of(layout)
        .into_iter()
        .flat_map(|component| (component.objects)())
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let arguments = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=e2e",
        "-f",
        "-",
    ];
    run_kubectl(layout, sandbox, &arguments, &list.to_string())?;
    Ok(())
}

fn wait_for_node(layout: &Layout) -> Result<()> {
    let start = Instant::now();
    while !node_is_ready(layout).unwrap_or(false) {
        if start.elapsed() > NODE_TIMEOUT {
            bail!(
                "the node is not ready: `cluster logs kubelet` and `cluster kubectl describe node` say why"
            );
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn node_is_ready(layout: &Layout) -> Result<bool> {
    let node: Node = serde_json::from_str(&component::ask_api_server(
        layout,
        &format!("/api/v1/nodes/{NODE}"),
    )?)?;
    let conditions = node
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    Ok(conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_was_healed_from_what_was_added() {
        let say = |is_new, started: &[&str], added: &[&str]| {
            summary(is_new, started, added, Duration::from_millis(1500))
        };
        assert_eq!(
            say(true, &["etcd", "nats"], &["nats"]),
            "the cluster is up after 1.5 s"
        );
        assert_eq!(say(false, &[], &[]), "the cluster is up already");
        assert_eq!(say(false, &["nats"], &[]), "healed nats in 1.5 s");
        assert_eq!(say(false, &["nats"], &["nats"]), "added nats in 1.5 s");
        assert_eq!(
            say(false, &["etcd", "nats"], &["nats"]),
            "healed etcd and added nats in 1.5 s"
        );
    }
}
