//! A contestant: a server process of its own, on a port of its own.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};

/// How long a server may take until it accepts a connection.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running server; it is killed when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    process: Child,
}

impl Server {
    /// Starts `program` with `arguments`, and waits until it listens on `address`.
    pub(crate) async fn start(program: &Path, arguments: &[String], address: SocketAddr) -> Result<Self> {
        let process = Command::new(program)
            .args(arguments)
            .env(crate::yardstick::LISTEN_VARIABLE, address.to_string())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("failed to start {}", program.display()))?;
        let mut server = Self { address, process };
        server.wait_until_it_listens().await?;
        Ok(server)
    }

    async fn wait_until_it_listens(&mut self) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(self.address).await.is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("a contestant ended before it listened: {status}");
            }
            if start.elapsed() > START_TIMEOUT {
                bail!(
                    "a contestant does not listen on {} after {START_TIMEOUT:?}",
                    self.address
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// An address of this machine that nobody listens on.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("failed to find a free port")?;
    listener.local_addr().context("failed to find a free port")
}
