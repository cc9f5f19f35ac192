//! A real PostgreSQL server, for one test or for the cluster: private data, private port, passwords checked.
//!
//! `initdb` runs once and its result is kept in the cache; a server starts from a copy of it.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

use crate::{
    cache,
    debian::{self, Package},
    process,
};

/// The superuser of every server.
pub const SUPERUSER: &str = "postgres";
/// Its password. The servers listen on addresses of this machine only.
pub const PASSWORD: &str = "secret";

/// PostgreSQL refuses to run as root: it runs as nobody then.
const UNPRIVILEGED: u32 = 65534;
/// How long a server may take to answer, recovery after a crash included.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const SETPRIV: Package = Package {
    program: "setpriv",
    package: "util-linux",
};
/// Where Debian 12 has the server; looked at only where no version of it is found.
const SERVER: Package = Package {
    program: "/usr/lib/postgresql/15/bin/postgres",
    package: "postgresql",
};

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it listens.
    pub address: IpAddr,
    /// The port; a free one where it is left out.
    pub port: Option<u16>,
    /// Settings for `postgres -c`.
    pub settings: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: None,
            settings: Vec::new(),
        }
    }
}

/// A running server; dropped, it is killed and its data removed.
pub struct Postgres {
    directory: TempDir,
    address: SocketAddr,
    settings: Vec<String>,
    process: Option<Child>,
}

impl Postgres {
    /// Starts a server on a free port of the loopback interface.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    /// Starts a server.
    pub async fn start_with(options: Options) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("nomnom-postgres-").tempdir()?;
        // The directory itself belongs to root; its data does not.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        prepare_data(&directory.path().join("data"))?;
        let [address] = match options.port {
            Some(port) => [SocketAddr::new(options.address, port)],
            None => process::free_addresses(options.address)?,
        };
        let mut server = Self {
            directory,
            address,
            settings: options.settings,
            process: None,
        };
        server.start_again().await?;
        Ok(server)
    }

    /// Starts the server again after [`Self::stop`] or [`Self::kill`], on its port and its data.
    pub async fn start_again(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "PostgreSQL is running already");
        let (program, arguments) = server_command(&self.data(), self.address, &self.settings)?;
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = process::bound_command(program, unprivileged());
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(process::spawn(command).context("failed to start PostgreSQL")?);
        self.wait_until_ready().await
    }

    /// Where the server listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of `database` for `user`.
    #[must_use]
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@{}/{database}", self.address)
    }

    /// The URL of `database` for the superuser.
    #[must_use]
    pub fn superuser_url(&self, database: &str) -> String {
        self.url(SUPERUSER, PASSWORD, database)
    }

    /// A connection of the superuser to `database`.
    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        PgConnection::connect(&self.superuser_url(database))
            .await
            .with_context(|| format!("failed to connect to database {database}"))
    }

    /// Runs statements as the superuser.
    pub async fn execute(&self, database: &str, statements: &str) -> Result<()> {
        let mut connection = self.connect(database).await?;
        sqlx::raw_sql(AssertSqlSafe(statements))
            .execute(&mut connection)
            .await
            .with_context(|| format!("failed to run {statements}"))?;
        Ok(())
    }

    /// Creates a database.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.execute("postgres", &format!("CREATE DATABASE \"{name}\""))
            .await
    }

    /// Makes every new transaction read-only, as on the standby that a fail-over leaves behind, or undoes it.
    pub async fn set_read_only(&self, read_only: bool) -> Result<()> {
        set_read_only(&mut self.connect("postgres").await?, read_only).await
    }

    /// Ends the server as an administrator would: open transactions are rolled back, clients disconnected.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::INT)
    }

    /// Kills the server and all of its processes, as a crash of the machine's memory would.
    pub fn kill(&mut self) -> Result<()> {
        let Some(id) = self.process.as_ref().map(Child::id) else {
            return Ok(());
        };
        let children = process::children(id).unwrap_or_default();
        process::signal(id, Signal::KILL)?;
        for child in children {
            process::signal(child, Signal::KILL)?;
        }
        self.end(Signal::KILL)
    }

    /// Freezes the server: connections stay open, and nothing answers.
    pub fn pause(&self) -> Result<()> {
        self.for_each_process(process::freeze)
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) -> Result<()> {
        self.for_each_process(|id| process::signal(id, Signal::CONT))
    }

    fn for_each_process(&self, call: impl Fn(u32) -> io::Result<()>) -> Result<()> {
        let id = self.process.as_ref().context("PostgreSQL is not running")?.id();
        call(id)?;
        for child in process::children(id)? {
            call(child)?;
        }
        Ok(())
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let Some(mut child) = self.process.take() else {
            return Ok(());
        };
        process::signal(child.id(), signal)?;
        child.wait().context("failed to wait for PostgreSQL")?;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("postgres.log")
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while let Err(error) = PgConnection::connect(&self.superuser_url("postgres")).await {
            let ended = self.process.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || start.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let end = log
                    .lines()
                    .rev()
                    .take(10)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<Vec<_>>();
                bail!(
                    "PostgreSQL does not start: {error}; the end of its log:\n{}",
                    end.join("\n")
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing is left to tell an error to; the parent-death signal ends what this does not.
        let _ = self.kill();
    }
}

/// Makes every new transaction of a server read-only, or undoes it, by a connection of its superuser.
pub(crate) async fn set_read_only(connection: &mut PgConnection, read_only: bool) -> Result<()> {
    let value = if read_only { "on" } else { "off" };
    for statement in [
        // ALTER SYSTEM is refused in a read-only transaction.
        "SET default_transaction_read_only = off".to_owned(),
        format!("ALTER SYSTEM SET default_transaction_read_only = {value}"),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// The server's program, installed where it is missing.
pub fn server_program() -> Result<PathBuf> {
    if program("postgres").is_err() {
        debian::ensure(&[SERVER])?;
    }
    program("postgres")
}

/// Program and arguments of a server on prepared data, for [`process::bound_command`] or a supervisor.
pub fn server_command(
    data: &Path,
    address: SocketAddr,
    settings: &[String],
) -> Result<(PathBuf, Vec<String>)> {
    let mut arguments = vec!["-D".to_owned(), data.to_string_lossy().into_owned()];
    let ours = [
        format!("listen_addresses={}", address.ip()),
        format!("port={}", address.port()),
        // TCP alone: a socket's path would have to be short, and nobody needs it.
        "unix_socket_directories=".to_owned(),
        "max_connections=300".to_owned(),
    ];
    for setting in ours.iter().chain(settings) {
        arguments.extend(["-c".to_owned(), setting.clone()]);
    }
    Ok((program("postgres")?, arguments))
}

/// Makes `data` the directory of a new server that accepts passwords from everywhere.
pub fn prepare_data(data: &Path) -> Result<()> {
    debian::ensure(&[SETPRIV])?;
    server_program()?;
    let initdb = program("initdb")?;
    let key = cache::key([initdb.to_string_lossy().as_bytes(), b"v1"]);
    let template = cache::entry("postgres-data", &key, |directory| initialize(&initdb, directory))?;
    copy_tree(&template.join("data"), data)
}

/// The user that servers run as: none where this is not root.
#[must_use]
pub fn unprivileged() -> Option<u32> {
    rustix::process::geteuid().is_root().then_some(UNPRIVILEGED)
}

fn initialize(initdb: &Path, destination: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let password = work.path().join("password");
    fs::write(&password, PASSWORD)?;
    if let Some(user) = unprivileged() {
        chown(work.path(), Some(user), Some(user))?;
        chown(&password, Some(user), Some(user))?;
    }
    let data = work.path().join("data");
    let output = process::bound_command(initdb, unprivileged())
        .args([
            "--username",
            SUPERUSER,
            "--auth",
            "scram-sha-256",
            "--encoding",
            "UTF8",
            "--locale",
            "C.UTF-8",
        ])
        .arg("--pwfile")
        .arg(&password)
        .arg("--pgdata")
        .arg(&data)
        .current_dir(work.path())
        .output()
        .context("failed to run initdb")?;
    ensure!(
        output.status.success(),
        "initdb failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let access = data.join("pg_hba.conf");
    fs::write(&access, "host all all all scram-sha-256\n")?;
    copy_tree(&data, &destination.join("data"))
}

/// The server's programs: those of the newest version that Debian has installed.
fn program(name: &str) -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin").join(name),
            ))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    versions.sort();
    versions
        .pop()
        .map(|(_, path)| path)
        .or_else(|| debian::find(name))
        .with_context(|| format!("{name} is missing: install PostgreSQL (Debian package postgresql)"))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    // Bound to us: whoever runs after we were killed finds nobody that still copies.
    let mut command = process::bound_command("cp", None);
    command.arg("-a").arg(from).arg(to);
    let status = process::spawn(command)
        .and_then(|mut child| child.wait())
        .context("failed to run cp")?;
    ensure!(
        status.success(),
        "failed to copy {} to {}",
        from.display(),
        to.display()
    );
    Ok(())
}
