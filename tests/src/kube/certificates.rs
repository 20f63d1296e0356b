//! Who is who in a cluster: one authority, and a certificate or a kubeconfig for each of its members.
//!
//! All of it is made anew for each cluster and goes with its directory.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;

/// The group that may do everything, whatever RBAC says.
pub const MASTERS: &str = "system:masters";

/// The cluster's authority, with what it has signed in a directory.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The files of a certificate and its key, PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, PKCS 8.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one; `directory` exists.
    pub fn new(directory: &Path) -> Result<Self> {
        let mut parameters = named("veer-test-cluster", None);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("make the authority's key")?;
        let issuer = CertifiedIssuer::self_signed(parameters, key).context("sign the authority")?;
        let authority = Self { directory: directory.to_owned(), issuer };
        write(&authority.certificate(), &authority.issuer.pem())?;
        Ok(authority)
    }

    /// Its own certificate's file.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// For a server of these names and addresses.
    pub fn server(&self, name: &str, names: &[&str], addresses: &[IpAddr]) -> Result<Pair> {
        let mut parameters = named(name, None);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        for name in names {
            parameters.subject_alt_names.push(SanType::DnsName((*name).try_into()?));
        }
        parameters.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.sign(name, &parameters)
    }

    /// For a client: the API server takes the name for its user and the group for a group.
    pub fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Pair> {
        let mut parameters = named(user, group);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(file, &parameters)
    }

    /// A kubeconfig for a client of the API server at `address`, `https://…`, with all that it needs inside.
    pub fn kubeconfig(&self, address: &str, file: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let pair = self.client(file, user, group)?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": address, "certificate-authority": self.certificate()}}],
            "users": [{"name": "test", "user": {
                "client-certificate": pair.certificate, "client-key": pair.key}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        let path = self.directory.join(format!("{file}.kubeconfig"));
        write(&path, &serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }

    /// A key that nobody has signed, because service accounts' tokens are signed with it: the public half, and both.
    pub fn bare_key(&self, file: &str) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate().context("make a key")?;
        let [public, both] = ["pub", "key"].map(|end| self.directory.join(format!("{file}.{end}")));
        write(&public, &key.public_key_pem())?;
        write(&both, &key.serialize_pem())?;
        Ok((public, both))
    }

    fn sign(&self, file: &str, parameters: &CertificateParams) -> Result<Pair> {
        let key = KeyPair::generate().with_context(|| format!("make a key for {file}"))?;
        let certificate = parameters.signed_by(&key, &self.issuer).with_context(|| format!("sign {file}"))?;
        let pair = Pair {
            certificate: self.directory.join(format!("{file}.crt")),
            key: self.directory.join(format!("{file}.key")),
        };
        write(&pair.certificate, &certificate.pem())?;
        write(&pair.key, &key.serialize_pem())?;
        Ok(pair)
    }
}

fn named(name: &str, organization: Option<&str>) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    if let Some(organization) = organization {
        parameters.distinguished_name.push(DnType::OrganizationName, organization);
    }
    parameters
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}
