//! The load: keep-alive connections, each with one request in flight. The client is kept small, since it
//! shares the cores with what it measures.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// What came back.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadResult {
    /// Answers of 200.
    pub(crate) ok: u64,
    /// Other answers.
    pub(crate) other: u64,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
    /// Of each answer, in ascending order.
    latencies: Vec<Duration>,
}

impl LoadResult {
    /// Answers of 200 a second.
    pub(crate) fn rate(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
        let ok = self.ok as f64;
        ok / self.elapsed.as_secs_f64()
    }

    /// The latency that a share of `per_mille` of the answers stayed within.
    pub(crate) fn latency(&self, per_mille: usize) -> Duration {
        let index = self.latencies.len() * per_mille / 1000;
        self.latencies
            .get(index.min(self.latencies.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    }
}

/// Posts order lines to `address` for `duration`, each with an order key of its own, counted in `keys`.
pub(crate) async fn run(
    address: SocketAddr,
    connections: usize,
    duration: Duration,
    keys: &Arc<AtomicU64>,
) -> Result<LoadResult> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(run_connection(address, start + duration, Arc::clone(keys)));
    }
    let mut total = LoadResult::default();
    while let Some(result) = tasks.join_next().await {
        let part = result.context("a connection of the load failed")??;
        total.ok += part.ok;
        total.other += part.other;
        total.latencies.extend(part.latencies);
    }
    total.elapsed = start.elapsed();
    total.latencies.sort_unstable();
    Ok(total)
}

async fn run_connection(address: SocketAddr, until: Instant, keys: Arc<AtomicU64>) -> Result<LoadResult> {
    let mut stream = TcpStream::connect(address).await.context("failed to connect")?;
    stream.set_nodelay(true)?;
    let (mut result, mut buffer) = (LoadResult::default(), Vec::with_capacity(4096));
    while Instant::now() < until {
        let key = keys.fetch_add(1, Ordering::Relaxed);
        let start = Instant::now();
        stream
            .write_all(request(key).as_bytes())
            .await
            .context("failed to send a request")?;
        match read_answer(&mut stream, &mut buffer).await? {
            200 => result.ok += 1,
            _ => result.other += 1,
        }
        result.latencies.push(start.elapsed());
    }
    Ok(result)
}

fn request(key: u64) -> String {
    let record = format!("O|{key}|456|F|123.45|2024-01-01|urgent|clerk1|1|comment");
    format!(
        "POST {} HTTP/1.1\r\nhost: bench\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{record}",
        nomnom_crds::runtime::INGEST_PATH,
        record.len()
    )
}

/// Reads one answer with a content-length, and gives its status.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<u16> {
    buffer.clear();
    loop {
        if stream
            .read_buf(buffer)
            .await
            .context("failed to read an answer")?
            == 0
        {
            bail!("the server closed a connection in the middle");
        }
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(head) = response.parse(buffer).context("not an HTTP answer")? {
            let status = response.code.context("an answer without a status")?;
            let length = response
                .headers
                .iter()
                .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                .and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok())
                .context("an answer without a content-length")?;
            let missing = (head + length).saturating_sub(buffer.len());
            if missing > 0 {
                let filled = buffer.len();
                buffer.resize(filled + missing, 0);
                stream
                    .read_exact(&mut buffer[filled..])
                    .await
                    .context("failed to read an answer")?;
            }
            return Ok(status);
        }
    }
}
