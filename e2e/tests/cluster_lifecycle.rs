//! The life of a cluster, from nothing to nothing: it works, it heals, and it leaves nothing behind.
//!
//! One program and not many tests: there is one cluster on a machine, and each step goes on where the last one ended.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "cluster_lifecycle/machine.rs"]
mod machine;
#[path = "cluster_lifecycle/workload.rs"]
mod workload;

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use e2e::Cluster;
use machine::Machine;

/// Runs `cluster` and returns what it printed.
fn cluster(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_cluster"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    if output.status.success() {
        Ok(stdout)
    } else {
        Err(format!("{stdout}{stderr}"))
    }
}

fn main() {
    let start = Instant::now();
    cluster(&["down"]).unwrap();
    let before = Machine::look();
    let steps: [(&str, fn()); 9] = [
        ("two at once bring up one cluster", brings_up_one_cluster),
        ("another checkout is told who holds it", tells_another_checkout),
        (
            "a pod runs, resolves names and keeps a volume",
            workload::runs_a_pod,
        ),
        ("the database takes faults", workload::faults_the_database),
        (
            "the namespace enforces restricted pods",
            workload::refuses_a_privileged_pod,
        ),
        ("each killed program is healed", heals_each_program),
        (
            "all killed at once, it recovers with its data",
            recovers_from_the_death_of_all,
        ),
        (
            "down, and killed half-way up, it comes up",
            recovers_from_half_an_up,
        ),
        ("down, it is down", goes_down),
    ];
    for (name, step) in steps {
        let step_start = Instant::now();
        println!("{name} ...");
        step();
        println!("{name}: ok, {:.1} s", step_start.elapsed().as_secs_f64());
    }
    before.assert_unchanged();
    println!("ok, {:.1} s", start.elapsed().as_secs_f64());
}

fn brings_up_one_cluster() {
    let up = || std::thread::spawn(|| cluster(&["up"]).unwrap());
    let (one, two) = (up(), up());
    let both = one.join().unwrap() + &two.join().unwrap();
    assert!(both.contains("the cluster is up after"), "{both}");
    assert!(both.contains("the cluster is up already"), "{both}");
    let status = cluster(&["status"]).unwrap();
    assert!(
        status.contains(env!("CARGO_MANIFEST_DIR").trim_end_matches("/e2e")),
        "{status}"
    );
}

/// As another checkout sees it: the record that `up` leaves names somebody else.
fn tells_another_checkout() {
    const RECORD: &str = "/run/nomnom-e2e/holder.json";
    let record = std::fs::read_to_string(RECORD).unwrap();
    let foreign = record.replace(env!("CARGO_MANIFEST_DIR").trim_end_matches("/e2e"), "/elsewhere");
    std::fs::write(RECORD, foreign).unwrap();
    for command in ["up", "down"] {
        let error = cluster(&[command]).unwrap_err();
        assert!(error.contains("held by /elsewhere"), "{command}: {error}");
    }
    assert!(
        Cluster::attach()
            .unwrap_err()
            .to_string()
            .contains("held by /elsewhere")
    );
    assert!(cluster(&["status"]).unwrap().contains("/elsewhere"));
    std::fs::write(RECORD, record).unwrap();
}

/// The programs that `cluster status` lists, and their process ids.
fn programs() -> Vec<(String, u32)> {
    let status = cluster(&["status"]).unwrap_or_else(|text| text);
    let columns = status
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    columns
        .filter_map(|line| Some((line[0].to_owned(), line.get(1)?.parse().ok()?)))
        .collect()
}

fn heals_each_program() {
    let programs = programs();
    assert_eq!(programs.len(), 10, "{programs:?}");
    for (name, pid) in programs {
        machine::kill(pid);
        let status = cluster(&["status"]).unwrap_err();
        assert!(status.contains("stopped"), "{name}: {status}");
        let healed = cluster(&["up"]).unwrap();
        // Others stay: what they depended on is back before they give up.
        assert!(
            healed.starts_with(&format!("healed {name} in")),
            "{name}: {healed}"
        );
        print!("  {healed}");
        cluster(&["status"]).unwrap();
    }
    workload::assert_never_restarted();
}

fn recovers_from_the_death_of_all() {
    workload::write_a_row();
    machine::kill_everything_of_the_cluster();
    assert!(Cluster::attach().is_err());
    let text = cluster(&["up"]).unwrap();
    assert!(text.contains("the cluster is up after"), "{text}");
    workload::assert_row_and_volume_kept();
}

fn recovers_from_half_an_up() {
    for milliseconds in [100, 600, 2_000, 5_000] {
        cluster(&["down"]).unwrap();
        let mut up = Command::new(env!("CARGO_BIN_EXE_cluster"))
            .arg("up")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // No condition is waited for: where it is by then is what differs.
        std::thread::sleep(Duration::from_millis(milliseconds));
        up.kill().unwrap();
        up.wait().unwrap();
        cluster(&["up"]).unwrap();
        cluster(&["status"]).unwrap();
    }
    workload::runs_a_pod();
}

fn goes_down() {
    let down = cluster(&["down"]).unwrap();
    assert_eq!(down.trim(), "the cluster is down");
    let down = cluster(&["down"]).unwrap();
    assert_eq!(down.trim(), "the cluster was down already");
    assert_eq!(cluster(&["status"]).unwrap_err().trim(), "the cluster is down");
}
