//! Child processes that never outlive the program that started them, however it ends.

use std::{
    ffi::OsStr,
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    process::{Child, Command},
    sync::{
        OnceLock,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

type Request = (Command, Sender<io::Result<Child>>);

/// A command that runs `program` and is killed when the thread that spawned it ends.
///
/// util-linux's `setpriv` sets the signal; [`spawn`] sees to it that the thread lives as long as the process.
/// With `user`, the program runs as that uid and gid, without groups.
#[must_use]
pub fn bound_command(program: impl AsRef<OsStr>, user: Option<u32>) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(id) = user {
        command.args([
            format!("--reuid={id}"),
            format!("--regid={id}"),
            "--clear-groups".to_owned(),
        ]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Spawns `command` from a thread that lives until the end of this process.
///
/// A parent-death signal is sent when the parent's *thread* ends; a test or a runtime's worker may end long
/// before the process does.
pub fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in receiver {
                // The asker waits for this; where it is gone, so is the reason to tell it.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, result) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    spawner
        .send((command, answer))
        .map_err(|_| io::Error::other("the thread that starts processes is gone"))?;
    result.recv().map_err(gone)?
}

/// Sends `signal` to the process `id`; a process that is gone already is no error.
pub fn signal(id: u32, signal: Signal) -> io::Result<()> {
    let Some(pid) = i32::try_from(id).ok().and_then(Pid::from_raw) else {
        return Err(io::Error::other(format!("{id} is no process id")));
    };
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Freezes the process `id`, and returns when none of its threads runs any more.
///
/// The signal alone is no more than the beginning: it takes effect when the kernel has scheduled a thread that
/// stops the others, and by then a server has answered requests.
pub fn freeze(id: u32) -> io::Result<()> {
    /// A thread in the middle of a system call stops when that ends.
    const TIMEOUT: Duration = Duration::from_secs(10);
    signal(id, Signal::STOP)?;
    let start = Instant::now();
    while any_thread_runs(id) {
        if start.elapsed() > TIMEOUT {
            return Err(io::Error::other(format!(
                "process {id} does not stop within {TIMEOUT:?}"
            )));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether a thread of the process is neither stopped nor at its end.
fn any_thread_runs(id: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{id}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    statuses
        .filter_map(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("State:"))?;
            line.trim().chars().next()
        })
        .any(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// The children of the process `id`, as the kernel lists them now.
pub fn children(id: u32) -> io::Result<Vec<u32>> {
    let mut children = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{id}/task"))? {
        let list = std::fs::read_to_string(task?.path().join("children"))?;
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(children)
}

/// Addresses of the host `address` that nobody listens on, each with another port.
pub fn free_addresses<const COUNT: usize>(address: IpAddr) -> anyhow::Result<[SocketAddr; COUNT]> {
    let mut addresses = [SocketAddr::new(address, 0); COUNT];
    // All are held until the last is found: one that is given back is soon given out again.
    let mut listeners = Vec::new();
    for address in &mut addresses {
        let listener = TcpListener::bind(*address).context("failed to find a free port")?;
        *address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(addresses)
}
