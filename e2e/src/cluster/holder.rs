//! Who holds the cluster of this machine: there is one, whichever checkout, user or cache it was started from.

use std::{
    fs,
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Outside of every cache, so that all see it; gone when the cluster is down.
const DIRECTORY: &str = "/run/nomnom-e2e";

/// What `up` says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The checkout that started the cluster.
    pub checkout: PathBuf,
    /// The cluster's files.
    pub directory: PathBuf,
}

/// The right to start and stop; given back when dropped.
pub struct Lock {
    file: File,
}

impl Holder {
    /// This checkout, as it was when this program was built.
    #[must_use]
    pub fn this_checkout() -> PathBuf {
        let package = Path::new(env!("CARGO_MANIFEST_DIR"));
        package.parent().unwrap_or(package).to_path_buf()
    }

    /// Says that the cluster is held; nobody else may be starting or stopping it.
    pub fn record(&self, _lock: &Lock) -> Result<()> {
        let path = Path::new(DIRECTORY).join("holder.json");
        fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("failed to write {}", path.display()))
    }

    /// Who holds the cluster, if anybody does.
    pub fn read() -> Result<Option<Self>> {
        let path = Path::new(DIRECTORY).join("holder.json");
        match fs::read(&path) {
            // A file that was being written when its writer was killed names nobody.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }
}

impl Lock {
    /// Waits until nobody else starts or stops the cluster.
    pub fn acquire() -> Result<Self> {
        let path = Path::new(DIRECTORY).join("lock");
        loop {
            fs::create_dir_all(DIRECTORY).with_context(|| format!("failed to create {DIRECTORY}"))?;
            // A directory that is being removed just now is made anew.
            let Ok(file) = File::create(&path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                println!("waiting for another `cluster up` or `cluster down` to finish");
                flock(&file, FlockOperation::LockExclusive).context("failed to lock the cluster")?;
            }
            // Whoever had it may have removed the file: then this is a lock of nothing.
            let ours = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == ours) {
                return Ok(Self { file });
            }
        }
    }

    /// Says that nobody holds the cluster, and gives the lock back.
    pub fn release(self) -> Result<()> {
        fs::remove_dir_all(DIRECTORY).with_context(|| format!("failed to remove {DIRECTORY}"))?;
        drop(self.file);
        Ok(())
    }
}
