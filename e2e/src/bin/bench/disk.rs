//! The disk's own speed: 8 kB written and synced, in a loop. A round in which it moved much is no comparison.

use std::{
    fs::File,
    io::{Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// A round is thrown away when the disk's speed before and after differs by more than this factor.
pub(crate) const MAX_DRIFT: f64 = 1.5;

/// How long the loop runs: long enough to see tens of syncs on a slow disk.
const PROBE: Duration = Duration::from_millis(300);

/// Writes of 8 kB, each followed by fdatasync, a second, in `directory`.
pub(crate) fn syncs_per_second(directory: &Path) -> Result<f64> {
    let mut file = tempfile_in(directory)?;
    let block = [0x55_u8; 8192];
    let (start, mut syncs) = (Instant::now(), 0_u32);
    while start.elapsed() < PROBE {
        file.rewind()?;
        file.write_all(&block)?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok(f64::from(syncs) / start.elapsed().as_secs_f64())
}

fn tempfile_in(directory: &Path) -> Result<File> {
    tempfile::tempfile_in(directory)
        .with_context(|| format!("failed to create a temporary file in {}", directory.display()))
}

/// Whether the disk stayed the same.
pub(crate) fn is_steady(before: f64, after: f64) -> bool {
    (before / after).max(after / before) <= MAX_DRIFT
}
