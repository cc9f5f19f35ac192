//! Images without a registry: a static binary, and what it needs, packed as an archive that container engines import.
//!
//! The same input gives the same bytes, so that an unchanged image is known by the hash of its archive.

use std::{
    fmt::Write as _,
    fs,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Archive, Builder, EntryType, Header};

/// The user of the images' processes; the `nonroot` of other minimal images.
const USER: u64 = 65532;
/// Where Debian's package ca-certificates has them, and where TLS libraries look.
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What an image is made of.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its whole name, registry and tag included.
    pub name: String,
    /// A static binary: the entry point, at the root of the image and under its own name.
    pub binary: PathBuf,
    /// The certificate authorities that its clients trust, for a program that has clients.
    pub certificates: Option<PathBuf>,
}

#[derive(Deserialize)]
struct ManifestEntry {
    #[serde(rename = "RepoTags")]
    repo_tags: Vec<String>,
}

impl Image {
    /// Writes the image's archive.
    pub fn write(&self, archive: &Path) -> Result<()> {
        ensure!(
            self.name
                .rsplit('/')
                .next()
                .is_some_and(|last| last.contains(':')),
            "the image name {} has no tag",
            self.name
        );
        let program = self
            .binary
            .file_name()
            .and_then(|name| name.to_str())
            .context("the binary has no name")?;
        let layer = self.layer(program)?;
        let layer_digest = hex(&Sha256::digest(&layer));
        let configuration = json!({
            "architecture": architecture(),
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "User": format!("{USER}:{USER}"),
                "Entrypoint": [format!("/{program}")],
                "Env": [format!("SSL_CERT_FILE={CERTIFICATES}")],
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        })
        .to_string();
        let configuration_name = format!("{}.json", hex(&Sha256::digest(&configuration)));
        let layer_name = format!("{layer_digest}/layer.tar");
        let manifest =
            json!([{"Config": configuration_name, "RepoTags": [self.name], "Layers": [layer_name]}])
                .to_string();

        let file =
            File::create(archive).with_context(|| format!("failed to create {}", archive.display()))?;
        let mut tar = Builder::new(file);
        append_file(&mut tar, &configuration_name, 0o644, configuration.as_bytes())?;
        append_file(&mut tar, &layer_name, 0o644, &layer)?;
        append_file(&mut tar, "manifest.json", 0o644, manifest.as_bytes())?;
        tar.finish()?;
        Ok(())
    }

    fn layer(&self, program: &str) -> Result<Vec<u8>> {
        let binary =
            fs::read(&self.binary).with_context(|| format!("failed to read {}", self.binary.display()))?;
        ensure!(
            is_static(&binary),
            "{} is not a static Linux binary: build it with `RUSTFLAGS=-Ctarget-feature=+crt-static` and `--target`",
            self.binary.display()
        );
        let mut tar = Builder::new(Vec::new());
        append_directory(&mut tar, "tmp/", 0o1777)?;
        append_directory(&mut tar, "etc/", 0o755)?;
        append_file(
            &mut tar,
            "etc/passwd",
            0o644,
            format!("nonroot:x:{USER}:{USER}::/:/\n").as_bytes(),
        )?;
        if let Some(path) = &self.certificates {
            let certificates = fs::read(path)
                .with_context(|| format!("failed to read {}: install ca-certificates", path.display()))?;
            append_directory(&mut tar, "etc/ssl/", 0o755)?;
            append_directory(&mut tar, "etc/ssl/certs/", 0o755)?;
            append_file(
                &mut tar,
                CERTIFICATES.trim_start_matches('/'),
                0o644,
                &certificates,
            )?;
        }
        append_file(&mut tar, program, 0o755, &binary)?;
        Ok(tar.into_inner()?)
    }
}

/// The name of the image in an archive.
pub fn name_in(archive: &Path) -> Result<String> {
    let file = File::open(archive).with_context(|| format!("failed to open {}", archive.display()))?;
    for entry in Archive::new(file).entries()? {
        let mut entry = entry.with_context(|| format!("{} is no image archive", archive.display()))?;
        if entry.path()?.as_ref() == Path::new("manifest.json") {
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            let images: Vec<ManifestEntry> = serde_json::from_str(&text)?;
            let name = images.into_iter().flat_map(|image| image.repo_tags).next();
            return name.with_context(|| format!("the image in {} has no name", archive.display()));
        }
    }
    anyhow::bail!(
        "{} is no image archive: it has no manifest.json",
        archive.display()
    )
}

/// The hash of an archive.
pub fn digest_of(archive: &Path) -> Result<String> {
    let bytes = fs::read(archive).with_context(|| format!("failed to read {}", archive.display()))?;
    Ok(hex(&Sha256::digest(bytes)))
}

fn append_file<W: std::io::Write>(tar: &mut Builder<W>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    append(tar, path, EntryType::Regular, mode, content)
}

fn append_directory<W: std::io::Write>(tar: &mut Builder<W>, path: &str, mode: u32) -> Result<()> {
    append(tar, path, EntryType::Directory, mode, &[])
}

fn append<W: std::io::Write>(
    tar: &mut Builder<W>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content)
        .with_context(|| format!("failed to pack {path}"))
}

/// Whether these are the bytes of a 64-bit ELF program that names no loader.
fn is_static(binary: &[u8]) -> bool {
    /// The type of the program header that names the loader.
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = binary.get(at..at.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u64::from(*byte)),
        )
    };
    let headers = || -> Option<bool> {
        // Offsets of the ELF specification: e_phoff, e_phentsize, e_phnum; p_type comes first in each header.
        let (start, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let mut kinds = (0..count).map(|index| number(usize::try_from(start + index * size).ok()?, 4));
        Some(kinds.all(|kind| kind.is_some_and(|kind| kind != u64::from(PT_INTERP))))
    };
    binary.starts_with(b"\x7fELF\x02\x01") && headers().unwrap_or(false)
}

/// The machine's architecture, by the name that images have for it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of this type.
    fn program(kind: u32) -> Vec<u8> {
        let mut binary = vec![0; 64 + 56];
        binary[..6].copy_from_slice(b"\x7fELF\x02\x01");
        binary[32..40].copy_from_slice(&64_u64.to_le_bytes());
        binary[54..56].copy_from_slice(&56_u16.to_le_bytes());
        binary[56..58].copy_from_slice(&1_u16.to_le_bytes());
        binary[64..68].copy_from_slice(&kind.to_le_bytes());
        binary
    }

    #[test]
    fn tells_static_programs() {
        assert!(is_static(&program(1)));
        assert!(!is_static(&program(3)));
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(&program(1)[..66]));
    }

    #[test]
    fn packs_the_same_input_into_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("tool");
        fs::write(&binary, program(1)).unwrap();
        let certificates = directory.path().join("ca.crt");
        fs::write(&certificates, "certificates").unwrap();
        let image = Image {
            name: "docker.io/nomnom/tool:1".to_owned(),
            binary,
            certificates: Some(certificates),
        };
        let [one, two] = ["one.tar", "two.tar"].map(|name| directory.path().join(name));
        image.write(&one).unwrap();
        image.write(&two).unwrap();
        assert_eq!(digest_of(&one).unwrap(), digest_of(&two).unwrap());
        assert_eq!(name_in(&one).unwrap(), "docker.io/nomnom/tool:1");
        assert!(name_in(&image.binary).is_err());
    }

    #[test]
    fn refuses_a_name_without_tag_and_a_dynamic_binary() {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("tool");
        fs::write(&binary, program(3)).unwrap();
        let mut image = Image {
            name: "localhost:5000/tool".to_owned(),
            binary,
            certificates: None,
        };
        let output = directory.path().join("image.tar");
        assert!(image.write(&output).unwrap_err().to_string().contains("no tag"));
        "localhost:5000/tool:1".clone_into(&mut image.name);
        assert!(
            image
                .write(&output)
                .unwrap_err()
                .to_string()
                .contains("not a static")
        );
    }
}
