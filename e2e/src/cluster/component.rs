//! What a component is, and how components are started, in the order of what they need.

use std::{
    ffi::OsString,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{layout::Layout, marks, sandbox::Sandbox};
use crate::{build, kubernetes};

/// How long a component may take until it is ready; on an idle machine none takes 5 s.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a question about readiness may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A program of the cluster that runs as a process of the machine: everything that there is to know about it.
pub struct Component {
    /// Its name, and that of its log.
    pub name: &'static str,
    /// The program's file name: what its process is called.
    pub program: &'static str,
    /// The components that have to be ready before it is started.
    pub after: &'static [&'static str],
    /// Builds or finds the program.
    pub build: fn(program: &str) -> Result<PathBuf>,
    /// Writes its configuration and says what it is started with. Called before every start.
    pub prepare: fn(&Layout) -> Result<Invocation>,
    /// When it is ready.
    pub ready: Ready,
    /// How it is asked to stop; after a while it is killed.
    pub stop: Signal,
    /// What it needs in the API server, or is reached by.
    pub objects: fn() -> Vec<Value>,
}

/// How a program is started.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The user that it runs as, if not root.
    pub user: Option<u32>,
}

impl From<Vec<String>> for Invocation {
    fn from(arguments: Vec<String>) -> Self {
        Self {
            arguments,
            user: None,
        }
    }
}

/// How a component says that it is ready.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// It accepts connections.
    Tcp(SocketAddr),
    /// A GET of this path is answered with 200.
    Http(SocketAddr, &'static str),
    /// It accepts connections on this socket, a path in the sandbox.
    Socket(&'static str),
    /// A client of PostgreSQL is asked for its password, and not told to wait until recovery ends.
    Postgres(SocketAddr),
    /// An administrator gets something from this path of the API server.
    Api(&'static str),
}

/// What a component is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs and answers.
    Ready,
    /// It runs, and does not answer (yet).
    Running,
    /// There is no process.
    Stopped,
}

impl Component {
    /// What the component is doing. To be asked from a thread in the cluster's network.
    #[must_use]
    pub fn state(&self, layout: &Layout, sandbox: &Sandbox) -> State {
        match marks::main_process(&layout.directory, self.name, self.program) {
            None => State::Stopped,
            Some(_) if self.is_ready(layout, sandbox) => State::Ready,
            Some(_) => State::Running,
        }
    }

    fn is_ready(&self, layout: &Layout, sandbox: &Sandbox) -> bool {
        match self.ready {
            Ready::Tcp(address) => TcpStream::connect_timeout(&address, PROBE_TIMEOUT).is_ok(),
            Ready::Postgres(address) => asks_for_password(address).unwrap_or(false),
            Ready::Http(address, path) => get(address, path).unwrap_or(false),
            // The root of the first process is the root of the sandbox.
            Ready::Socket(path) => {
                UnixStream::connect(sandbox.root().join(path.trim_start_matches('/'))).is_ok()
            }
            Ready::Api(path) => ask_api_server(layout, path).is_ok(),
        }
    }

    /// Starts the component where it does not run, and kills what an earlier process of it left.
    pub fn start(&self, layout: &Layout, sandbox: &Sandbox) -> Result<()> {
        marks::signal_component(&layout.directory, self.name, self.program, Signal::KILL)?;
        marks::wait_until_gone(&layout.directory, self.name, self.program, PROBE_TIMEOUT)?;
        let program = (self.build)(self.program)?;
        let Invocation { arguments, user } = (self.prepare)(layout)?;
        let mut command: Vec<OsString> = Vec::new();
        if let Some(id) = user {
            let launcher = [
                "setpriv",
                &format!("--reuid={id}"),
                &format!("--regid={id}"),
                "--clear-groups",
                "--",
            ];
            command.extend(launcher.map(OsString::from));
        }
        command.push(program.into());
        command.extend(arguments.into_iter().map(OsString::from));
        sandbox.spawn(self.name, &layout.log(self.name), command)
    }

    /// Asks the component to stop, kills it when it does not, and waits for its end.
    pub fn stop(&self, layout: &Layout, grace: Duration) -> Result<()> {
        if let Some(pid) = marks::main_process(&layout.directory, self.name, self.program) {
            crate::process::signal(pid, self.stop)?;
            if marks::wait_until_gone(&layout.directory, self.name, self.program, grace).is_ok() {
                return Ok(());
            }
        }
        self.kill(layout)
    }

    /// Freezes all processes of the component: connections stay open, and nothing answers.
    pub fn pause(&self, layout: &Layout) -> Result<()> {
        self.for_each_process(layout, crate::process::freeze)
    }

    /// Lets a frozen component go on.
    pub fn resume(&self, layout: &Layout) -> Result<()> {
        self.for_each_process(layout, |id| crate::process::signal(id, Signal::CONT))
    }

    fn for_each_process(&self, layout: &Layout, call: impl Fn(u32) -> std::io::Result<()>) -> Result<()> {
        let processes = marks::of_component(&layout.directory, self.name, self.program);
        ensure!(!processes.is_empty(), "{} is not running", self.name);
        for process in processes {
            call(process.pid)?;
        }
        Ok(())
    }

    /// Kills the component with all of its processes.
    pub fn kill(&self, layout: &Layout) -> Result<()> {
        marks::signal_component(&layout.directory, self.name, self.program, Signal::KILL)?;
        marks::wait_until_gone(&layout.directory, self.name, self.program, START_TIMEOUT)
    }
}

/// What the API server answers to an administrator's GET, within the time that a question may take.
///
/// Not by kubectl, whose start alone takes longer. To be called from a thread in the cluster's network.
pub fn ask_api_server(layout: &Layout, path: &str) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut config = kubernetes::client_configuration(&layout.kubeconfig()).await?;
        config.default_retry = false;
        let request = http::Request::get(path).body(Vec::new())?;
        let client = kube::Client::try_from(config)?;
        Ok(tokio::time::timeout(PROBE_TIMEOUT, client.request_text(request)).await??)
    })
}

/// Whether a GET is answered with 200.
fn get(address: SocketAddr, path: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}

/// Whether PostgreSQL answers the start of a session with the request (R) for a password, and not with an error (E).
fn asks_for_password(address: SocketAddr) -> std::io::Result<bool> {
    /// Version 3.0 of the protocol.
    const PROTOCOL: u32 = 3 << 16;
    let mut message = PROTOCOL.to_be_bytes().to_vec();
    message.extend(b"user\0postgres\0database\0postgres\0\0");
    let length = u32::try_from(message.len() + 4).unwrap_or(0);
    let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
    stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
    stream.write_all(&[&length.to_be_bytes(), message.as_slice()].concat())?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok(kind == *b"R")
}

/// Starts the components that do not run, each as soon as what it needs is ready, and waits until all are.
///
/// One that runs and does not become ready is started anew, once: what it depended on may have been lost.
/// Returns the names of those that were started. To be called from a thread in the cluster's network.
pub fn start_all(components: &[&Component], layout: &Layout, sandbox: &Sandbox) -> Result<Vec<&'static str>> {
    let mut started = Vec::new();
    let mut ready: Vec<&str> = Vec::new();
    let mut deadline = Instant::now() + START_TIMEOUT;
    while ready.len() < components.len() {
        let before = ready.len();
        for component in components {
            if ready.contains(&component.name) || !component.after.iter().all(|needed| ready.contains(needed))
            {
                continue;
            }
            match component.state(layout, sandbox) {
                State::Ready => ready.push(component.name),
                State::Stopped if started.contains(&component.name) => {
                    return Err(failure(component, layout));
                }
                State::Stopped => {
                    component.start(layout, sandbox)?;
                    started.push(component.name);
                }
                State::Running => (),
            }
        }
        if ready.len() > before {
            deadline = Instant::now() + START_TIMEOUT;
        } else if Instant::now() > deadline {
            restart_stuck(components, &ready, &mut started, layout)?;
            deadline = Instant::now() + START_TIMEOUT;
        }
        thread::sleep(POLL_INTERVAL);
    }
    Ok(started)
}

/// Kills what runs, was not started just now, and is not ready; where there is no such thing, it is a failure.
fn restart_stuck(
    components: &[&Component],
    ready: &[&str],
    started: &mut Vec<&'static str>,
    layout: &Layout,
) -> Result<()> {
    let mut stuck = components.iter().filter(|component| {
        !ready.contains(&component.name) && component.after.iter().all(|needed| ready.contains(needed))
    });
    let Some(component) = stuck.next() else {
        bail!("no component can be started: each of those left needs another of them");
    };
    if started.contains(&component.name) {
        return Err(failure(component, layout));
    }
    component.kill(layout)
}

fn failure(component: &Component, layout: &Layout) -> anyhow::Error {
    let log = layout.log(component.name);
    anyhow::anyhow!(
        "{} does not start; the end of {}:\n{}\nrun `cluster up` again, or `cluster down` first to start from nothing",
        component.name,
        log.display(),
        build::end_of(&log)
    )
}
