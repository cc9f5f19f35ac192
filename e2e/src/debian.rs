//! System programs come from Debian's packages; what is missing is installed, or one message says what is.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// A program, and the Debian package that brings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Package {
    /// Looked for on PATH, in the system's own directories and, with an absolute path, just there.
    pub program: &'static str,
    /// Installed where the program is missing.
    pub package: &'static str,
}

/// Where programs are that an ordinary PATH may not name.
const SYSTEM_DIRECTORIES: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// Where a program is.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(SYSTEM_DIRECTORIES.iter().map(PathBuf::from));
    directories
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Installs the packages of the programs that are missing.
///
/// # Errors
/// Names all that is missing, and what to do, where it cannot be installed.
pub fn ensure(packages: &[Package]) -> Result<()> {
    let missing = missing(packages, |program| find(program).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let hint = format!(
        "install them (`apt-get install {list}`), or use a cluster of your own (`KUBECONFIG=... make demo`)"
    );
    if !rustix::process::geteuid().is_root() {
        bail!("Debian packages are missing and only root can install them: {hint}");
    }
    if find("apt-get").is_none() {
        bail!(
            "Debian packages are missing and this is no Debian: {list}; install what corresponds to them, or use a cluster of your own (`KUBECONFIG=... make demo`)"
        );
    }
    println!("installing Debian packages: {list}");
    let log = crate::cache::directory()?.join("apt.log");
    apt(&log, &["update", "-q"]).with_context(|| format!("failed to update the package lists; {hint}"))?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&log, &arguments).with_context(|| format!("failed to install {list}; {hint}"))
}

/// The packages of the programs that `is_there` does not know, each once.
fn missing(packages: &[Package], is_there: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let mut missing = Vec::new();
    for package in packages {
        if !is_there(package.program) && !missing.contains(&package.package) {
            missing.push(package.package);
        }
    }
    missing
}

/// Runs apt-get so that no installed service starts: `RUNLEVEL=1` makes invoke-rc.d refuse, as at a rescue boot.
fn apt(log: &Path, arguments: &[&str]) -> Result<()> {
    let output = std::fs::File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("failed to run apt-get")?;
    if !status.success() {
        bail!(
            "apt-get {} failed ({status}); its log is {}",
            arguments.join(" "),
            log.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGES: [Package; 3] = [
        Package {
            program: "ip",
            package: "iproute2",
        },
        Package {
            program: "bridge",
            package: "iproute2",
        },
        Package {
            program: "nft",
            package: "nftables",
        },
    ];

    #[test]
    fn a_package_of_two_missing_programs_is_installed_once() {
        assert_eq!(missing(&PACKAGES, |_| false), ["iproute2", "nftables"]);
        assert_eq!(missing(&PACKAGES, |program| program != "nft"), ["nftables"]);
    }

    #[test]
    fn finds_a_program_outside_of_path() {
        assert_eq!(find("/bin/sh"), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find("no-such-program"), None);
    }
}
