//! The certificates and keys of one API server, valid for loopback alone.
//!
//! Knows nothing of who uses them. Called by the API server's start.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::fs;
use std::path::{Path, PathBuf};

/// The server's certificate, and its key.
pub(super) const SERVER: &str = "server.crt";
pub(super) const SERVER_KEY: &str = "server.key";
/// What signs the tokens of service accounts, and what they are checked with.
pub(super) const ACCOUNTS_KEY: &str = "accounts.key";
pub(super) const ACCOUNTS: &str = "accounts.pub";

/// Where the authority's certificate is.
pub(super) struct Certificates {
    pub(super) ca: PathBuf,
    pub(super) ca_der: Vec<u8>,
}

impl Certificates {
    /// Makes an authority, the server's certificate and the key for tokens.
    pub(super) fn write(dir: &Path) -> Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        authority.distinguished_name.push(DnType::CommonName, "sluice tests");
        let certificate = authority.self_signed(&authority_key)?;
        let issuer = Issuer::new(authority, authority_key);

        let server_key = KeyPair::generate()?;
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned(), "kubernetes.default.svc".to_owned()];
        let server = CertificateParams::new(names)?.signed_by(&server_key, &issuer)?;

        let accounts = KeyPair::generate()?;
        let ca = dir.join("ca.crt");
        fs::write(&ca, certificate.pem())?;
        fs::write(dir.join(SERVER), server.pem())?;
        fs::write(dir.join(SERVER_KEY), server_key.serialize_pem())?;
        fs::write(dir.join(ACCOUNTS_KEY), accounts.serialize_pem())?;
        fs::write(dir.join(ACCOUNTS), accounts.public_key_pem())?;
        Ok(Self { ca, ca_der: certificate.der().to_vec() })
    }
}
