//! Where things that take long to make are kept between runs: outside the checkout, and keyed by a hash
//! of what they are made from, so that whoever makes the same thing again finds it there.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The variable that names another cache directory.
pub const DIRECTORY_VARIABLE: &str = "NOMNOM_E2E_CACHE";

/// The cache directory, created where it is missing: `$NOMNOM_E2E_CACHE`, or `nomnom-e2e` in the user's
/// cache directory.
pub fn directory() -> Result<PathBuf> {
    let path = if let Some(path) = env::var_os(DIRECTORY_VARIABLE) {
        PathBuf::from(path)
    } else if let Some(caches) = env::var_os("XDG_CACHE_HOME") {
        PathBuf::from(caches).join("nomnom-e2e")
    } else if let Some(home) = env::var_os("HOME") {
        PathBuf::from(home).join(".cache/nomnom-e2e")
    } else {
        bail!("HOME is not set: name a directory for built programs in {DIRECTORY_VARIABLE}");
    };
    fs::create_dir_all(&path)
        .with_context(|| format!("failed to create the cache directory {}", path.display()))?;
    Ok(path)
}

/// A key of 16 hex digits for what is made from `parts`; their borders count.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut framed = Vec::new();
    for part in parts {
        framed.extend(part.len().to_le_bytes());
        framed.extend(part);
    }
    nomnom_crds::runtime::content_hash(&framed)
}

/// The directory `<name>-<key>` of the cache, filled by `make` the first time.
///
/// `make` writes into a directory that gets its final name only when `make` succeeds, so what is found is
/// complete; a second process waits meanwhile.
pub fn entry(name: &str, key: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let directory = directory()?;
    let path = directory.join(format!("{name}-{key}"));
    let lock_path = directory.join(format!("{name}.lock"));
    let lock =
        File::create(&lock_path).with_context(|| format!("failed to create {}", lock_path.display()))?;
    flock(&lock, FlockOperation::LockExclusive).context("failed to lock the cache")?;
    if path.is_dir() {
        return Ok(path);
    }
    let unfinished = directory.join(format!("{name}-unfinished"));
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)
            .with_context(|| format!("failed to remove {}", unfinished.display()))?;
    }
    fs::create_dir(&unfinished).with_context(|| format!("failed to create {}", unfinished.display()))?;
    make(&unfinished)?;
    fs::rename(&unfinished, &path).with_context(|| format!("failed to finish {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_the_borders_of_its_parts() {
        assert_ne!(key([b"ab".as_slice(), b"c"]), key([b"a".as_slice(), b"bc"]));
        assert_eq!(key([b"a".as_slice()]).len(), 16);
    }
}
