//! The certificates by which the parts of a control plane know each other.
//!
//! ECDSA keys, so that making a set takes milliseconds and nothing needs to be cached.

use std::{fs, net::IpAddr, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};

/// Whom a certificate names, and for which addresses it serves.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// The common name: Kubernetes' user.
    pub user: &'a str,
    /// The organization: Kubernetes' group.
    pub group: Option<&'a str>,
    /// Names that a server answers under.
    pub names: &'a [&'a str],
    /// Addresses that a server answers under.
    pub addresses: &'a [IpAddr],
}

/// A certificate and its key, as PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// A certificate authority. Its key stays with the set that it issues: nothing is issued later.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new authority.
    pub fn new(name: &str) -> Result<Self> {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        parameters.distinguished_name = distinguished_name(name, None);
        Ok(Self(CertifiedIssuer::self_signed(
            parameters,
            KeyPair::generate()?,
        )?))
    }

    /// The authority's own certificate, as PEM.
    #[must_use]
    pub fn certificate(&self) -> String {
        self.0.pem()
    }

    /// Issues a certificate for servers and clients alike.
    pub fn issue(&self, subject: &Subject) -> Result<Identity> {
        let names: Vec<String> = subject.names.iter().map(ToString::to_string).collect();
        let mut parameters = CertificateParams::new(names)?;
        parameters
            .subject_alt_names
            .extend(subject.addresses.iter().copied().map(SanType::IpAddress));
        parameters.distinguished_name = distinguished_name(subject.user, subject.group);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        Ok(Identity {
            certificate: parameters.signed_by(&key, &self.0)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Writes `<name>.crt` and `<name>.key` into `directory`.
    pub fn write(&self, directory: &Path, name: &str) -> Result<()> {
        write_pair(
            directory,
            name,
            &self.certificate(),
            &self.0.key().serialize_pem(),
        )
    }
}

fn distinguished_name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, user);
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name
}

impl Identity {
    /// Writes `<name>.crt` and `<name>.key` into `directory`.
    pub fn write(&self, directory: &Path, name: &str) -> Result<()> {
        write_pair(directory, name, &self.certificate, &self.key)
    }
}

/// Writes a key for service account tokens: `<name>.key`, and its public half as `<name>.pub`.
pub fn write_signing_key(directory: &Path, name: &str) -> Result<()> {
    let key = KeyPair::generate()?;
    write_private(&directory.join(format!("{name}.key")), &key.serialize_pem())?;
    write_private(&directory.join(format!("{name}.pub")), &key.public_key_pem())
}

fn write_pair(directory: &Path, name: &str, certificate: &str, key: &str) -> Result<()> {
    write_private(&directory.join(format!("{name}.crt")), certificate)?;
    write_private(&directory.join(format!("{name}.key")), key)
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(())
}
