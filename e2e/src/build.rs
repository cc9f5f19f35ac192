//! Go programs, built once from the `go.mod` directories of `components/` and kept in the cache.
//!
//! The key is a hash of everything that the directory holds and of the flags. A build runs with
//! `-mod=readonly`: what is built is what go.sum says.

use std::{
    fs,
    fs::File,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{cache, debian, process};

/// What `KUBECONFIG` offers to those who cannot have the cluster of this machine.
pub const ALTERNATIVE: &str = "or use a cluster of your own: `KUBECONFIG=... make demo`";

/// A directory with a `go.mod` and the programs that are built from it.
#[derive(Clone, Copy, Debug)]
pub struct GoModule {
    /// The directory's name in `e2e/components`, and the binary's name.
    pub name: &'static str,
    /// For the one line that says what is built.
    pub version: &'static str,
    /// The package that is built: `.`, or the import path of a `tool`.
    pub package: &'static str,
    /// Values for `-ldflags -X`.
    pub variables: &'static [&'static str],
    /// Further names under which the binary is started.
    pub aliases: &'static [&'static str],
}

/// Kubernetes, kubectl and etcd in one binary.
pub const KUBERNETES: GoModule = GoModule {
    name: "kubernetes",
    version: "v1.36.3",
    package: ".",
    variables: &[
        "k8s.io/component-base/version.gitVersion=v1.36.3",
        "k8s.io/component-base/version.gitMajor=1",
        "k8s.io/component-base/version.gitMinor=36",
        "k8s.io/client-go/pkg/version.gitVersion=v1.36.3",
        "k8s.io/client-go/pkg/version.gitMajor=1",
        "k8s.io/client-go/pkg/version.gitMinor=36",
    ],
    aliases: &[
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubectl",
        "kubelet",
    ],
};

/// The cluster's DNS server.
pub const COREDNS: GoModule = GoModule {
    name: "coredns",
    version: "v1.15.0",
    package: ".",
    variables: &[],
    aliases: &[],
};

/// The queue that pipelines keep their messages in.
pub const NATS: GoModule = GoModule {
    name: "nats",
    version: "v2.15.2",
    package: "github.com/nats-io/nats-server/v2",
    variables: &[],
    aliases: &["nats-server"],
};

/// The program of a container that only holds its pod's namespaces.
pub const PAUSE: GoModule = GoModule {
    name: "pause",
    version: "1",
    package: ".",
    variables: &[],
    aliases: &[],
};

impl GoModule {
    /// The program `name` of this module, built if need be.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        Ok(self.build()?.join(name))
    }

    /// The directory of the built programs.
    pub fn build(&self) -> Result<PathBuf> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("components")
            .join(self.name);
        let arguments = self.arguments();
        let key = self.key(&source, &arguments)?;
        cache::entry(self.name, &key, |directory| {
            self.compile(&source, &arguments, directory)
        })
    }

    fn arguments(&self) -> Vec<String> {
        let mut linker = "-s -w".to_owned();
        for variable in self.variables {
            linker.push_str(" -X ");
            linker.push_str(variable);
        }
        let fixed = [
            "build",
            "-mod=readonly",
            "-trimpath",
            "-buildvcs=false",
            // The linker drops it anyway; not making it saves a twentieth of the time.
            "-gcflags=all=-dwarf=false",
            "-ldflags",
        ];
        fixed.map(str::to_owned).into_iter().chain([linker]).collect()
    }

    fn key(&self, source: &Path, arguments: &[String]) -> Result<String> {
        let mut files: Vec<PathBuf> = fs::read_dir(source)
            .with_context(|| format!("failed to read {}", source.display()))?
            .map(|file| Ok(file?.path()))
            .collect::<Result<_>>()?;
        files.sort();
        let mut parts = Vec::new();
        for file in files {
            parts.push(file.file_name().unwrap_or_default().as_encoded_bytes().to_vec());
            parts.push(fs::read(&file).with_context(|| format!("failed to read {}", file.display()))?);
        }
        let rest = arguments
            .iter()
            .map(String::as_str)
            .chain([self.package])
            .chain(self.aliases.iter().copied());
        parts.extend(rest.map(|part| part.as_bytes().to_vec()));
        Ok(cache::key(parts.iter().map(Vec::as_slice)))
    }

    fn compile(&self, source: &Path, arguments: &[String], directory: &Path) -> Result<()> {
        let go = find_go(source)?;
        let start = Instant::now();
        eprintln!("  building {} {} ...", self.name, self.version);
        let log = cache::directory()?.join(format!("build-{}.log", self.name));
        let output = File::create(&log).with_context(|| format!("failed to create {}", log.display()))?;
        let mut command = process::bound_command(go, None);
        command
            .args(arguments)
            .arg("-o")
            .arg(directory.join(self.name))
            .arg(self.package)
            .current_dir(source)
            .env("CGO_ENABLED", "0")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let status = process::spawn(command)
            .and_then(|mut child| child.wait())
            .context("failed to run go")?;
        if !status.success() {
            bail!(
                "failed to build {} ({status}); the end of {}:\n{}\nif a download failed, run this again: what is built so far is kept",
                self.name,
                log.display(),
                end_of(&log)
            );
        }
        for alias in self.aliases {
            symlink(self.name, directory.join(alias))?;
        }
        eprintln!(
            "  built {} {} in {}",
            self.name,
            self.version,
            in_words(start.elapsed())
        );
        Ok(())
    }
}

/// Go, able to build the module in `source`: of the version that its `go.mod` asks for, or new enough to fetch that.
fn find_go(source: &Path) -> Result<PathBuf> {
    let module = fs::read_to_string(source.join("go.mod")).context("failed to read go.mod")?;
    let wanted = module
        .lines()
        .find_map(|line| line.strip_prefix("go "))
        .unwrap_or("1.26.0");
    let what_to_do = format!("install Go {wanted} or newer (https://go.dev/dl), {ALTERNATIVE}");
    let Some(go) = debian::find("go").or_else(|| debian::find("/usr/local/go/bin/go")) else {
        bail!("Go is missing: {what_to_do}");
    };
    let output = Command::new(&go)
        .args(["env", "GOVERSION"])
        .current_dir(source)
        .output()
        .context("failed to run go")?;
    let found = String::from_utf8_lossy(&output.stdout);
    let found = found.trim().trim_start_matches("go");
    if !output.status.success() || version(found) < version(wanted) {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!(
            "Go {wanted} is needed and {} is {found} {}: {what_to_do}",
            go.display(),
            reason.trim()
        );
    }
    Ok(go)
}

/// Major and minor number of a Go version such as `1.26.3`.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap_or(0)
    });
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// The last lines of a log, for the message of what failed.
#[must_use]
pub fn end_of(log: &Path) -> String {
    /// Enough for a stack of wrapped errors, and still one screen.
    const LINES: usize = 15;
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// A duration as a person says it.
#[must_use]
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        format!("{} min {} s", seconds / 60, seconds % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_versions_as_numbers() {
        assert!(version("1.26.8") >= version("1.26.0"));
        assert!(version("1.9") < version("1.26"));
        assert!(version("1.27rc1") > version("1.26"));
        assert_eq!(version("devel"), (0, 0));
    }

    #[test]
    fn says_durations_in_words() {
        assert_eq!(in_words(Duration::from_secs(354)), "5 min 54 s");
        assert_eq!(in_words(Duration::from_millis(4250)), "4.2 s");
    }

    #[test]
    fn another_flag_is_another_key() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("components/pause");
        let key = PAUSE.key(&source, &PAUSE.arguments()).unwrap();
        assert_eq!(key, PAUSE.key(&source, &PAUSE.arguments()).unwrap());
        assert_ne!(key, PAUSE.key(&source, &["build".to_owned()]).unwrap());
    }
}
