//! `cluster status`: who holds the cluster, and what each of its programs is doing.

use anyhow::Result;

use super::{
    Cluster, component::State, holder::Holder, layout::Layout, marks, optional::components_of,
    sandbox::Sandbox,
};

/// Prints the status, and returns whether the cluster is up and whole.
pub fn status() -> Result<bool> {
    let Some(holder) = Holder::read()? else {
        println!("the cluster is down");
        return Ok(false);
    };
    println!("checkout   {}", holder.checkout.display());
    println!("files      {}", holder.directory.display());
    let layout = Layout {
        directory: holder.directory,
    };
    let Some(sandbox) = Sandbox::find(&layout) else {
        println!(
            "the cluster has no running process: `cluster up` heals it, `cluster down` removes what is left"
        );
        return Ok(false);
    };
    let cluster = Cluster { layout, sandbox };
    let Cluster { layout, sandbox } = cluster.clone();
    cluster.run_blocking(move || {
        let mut whole = true;
        for component in components_of(&layout) {
            let state = match component.state(&layout, &sandbox) {
                State::Ready => "ready",
                State::Running => "running, not ready",
                State::Stopped => "stopped",
            };
            let pid = marks::main_process(&layout.directory, component.name, component.program);
            whole &= state == "ready";
            let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            println!("{:24} {pid:>8}  {state}", component.name);
        }
        Ok(whole)
    })
}
