//! Fixtures: policies, pods and requests with the verdict that each must get, in one YAML file.
//!
//! The same file runs through the engine alone and through the real datapath. Pods have no addresses in it: who
//! runs it assigns them. Knows nothing of either way to run it. Called by the fixture tests and by the
//! end-to-end tests.

use crate::manifests::{self, PodManifest};
use crate::peer::Ask;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// Hosts outside the cluster that fixtures may name, with their addresses.
pub const OUTSIDE: [(&str, Ipv4Addr, Ipv6Addr); 2] = [
    ("bank", Ipv4Addr::new(203, 0, 113, 10), Ipv6Addr::new(0x2001, 0xdb8, 0x5c, 0, 0, 0, 0, 0x10)),
    ("mint", Ipv4Addr::new(203, 0, 113, 20), Ipv6Addr::new(0x2001, 0xdb8, 0x5c, 0, 0, 0, 0, 0x20)),
];

/// One fixture.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fixture {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    /// What it is about, in a sentence.
    pub about: String,
    /// The namespaces.
    pub namespaces: BTreeMap<String, NamespaceFixture>,
    /// The pods, by `namespace/name`.
    pub pods: BTreeMap<String, PodFixture>,
    /// The hosts of [`OUTSIDE`] that take part.
    #[serde(default)]
    pub outside: Vec<String>,
    /// The policies, as they would be applied.
    pub policies: Vec<Value>,
    /// The requests.
    pub requests: Vec<Request>,
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceFixture {
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `sluice.dev/dataplane`; `enabled` unless given.
    #[serde(default)]
    pub dataplane: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodFixture {
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its container ports.
    #[serde(default)]
    pub ports: Vec<Value>,
    /// Its service account.
    #[serde(default)]
    pub service_account: Option<String>,
}

/// One request and its verdict.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// A pod, or a host outside.
    pub from: String,
    /// A pod, or a host outside.
    pub to: String,
    /// The protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The destination port; 0 for ICMP.
    #[serde(default)]
    pub port: u16,
    /// An HTTP request.
    #[serde(default)]
    pub http: Option<Http>,
    /// A gRPC call.
    #[serde(default)]
    pub grpc: Option<Grpc>,
    /// The verdict.
    pub expect: Expect,
    /// The policy that must decide, as `Kind/namespace/name`.
    #[serde(default)]
    pub policy: Option<String>,
    /// Its rule.
    #[serde(default)]
    pub rule: Option<String>,
    /// The reason.
    #[serde(default)]
    pub reason: Option<String>,
    /// What the nearest miss must contain.
    #[serde(default)]
    pub nearest_miss: Option<String>,
}

/// A protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP; without `http` and `grpc` a connection and some bytes.
    #[default]
    Tcp,
    /// A datagram.
    Udp,
    /// An echo request.
    Icmp,
}

/// A verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// It passes.
    Allow,
    /// It is refused.
    Deny,
    /// It passes, and an audited policy would refuse it.
    Audit,
}

impl Expect {
    /// `allow`, `deny` or `audit`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

/// An HTTP request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The host; the destination's address and port unless given.
    #[serde(default)]
    pub host: Option<String>,
    /// The headers; a list is several fields of one name.
    #[serde(default)]
    pub headers: BTreeMap<String, OneOrMany>,
    /// `h1` unless given.
    #[serde(default)]
    pub version: HttpVersion,
}

/// A value, or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl OneOrMany {
    /// All of them.
    #[must_use]
    pub fn values(&self) -> &[String] {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::Many(values) => values,
        }
    }
}

/// How the request travels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpVersion {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
}

/// A gRPC call.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grpc {
    /// The service.
    pub service: String,
    /// The method.
    pub method: String,
}

impl Request {
    /// The HTTP request that this is, with its version; a gRPC call is one too. Nothing for a bare connection.
    #[must_use]
    pub fn ask(&self) -> Option<(Ask, HttpVersion)> {
        if let Some(grpc) = &self.grpc {
            let mut ask = Ask::new("POST", &format!("/{}/{}", grpc.service, grpc.method))
                .header("content-type", "application/grpc")
                .header("te", "trailers");
            // An empty message: no compression, length zero.
            ask.body = "\0\0\0\0\0".to_owned();
            return Some((ask, HttpVersion::H2));
        }
        let http = self.http.as_ref()?;
        let mut ask = Ask::new(&http.method, &http.path);
        for (name, values) in &http.headers {
            ask = values.values().iter().fold(ask, |ask, value| ask.header(name, value));
        }
        ask.host.clone_from(&http.host);
        Some((ask, http.version))
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {} {:?}/{}", self.from, self.to, self.protocol, self.port)?;
        if let Some(Http { method, path, headers, version, .. }) = &self.http {
            write!(f, " {version:?} {method} {path}")?;
            for (name, values) in headers {
                write!(f, " {name}={}", values.values().join("|"))?;
            }
        }
        if let Some(Grpc { service, method }) = &self.grpc {
            write!(f, " gRPC {service}/{method}")?;
        }
        write!(f, " => {}", self.expect.as_str())
    }
}

/// Where a pod is, and which addresses it has.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The node.
    pub node: String,
    /// The address.
    pub v4: Ipv4Addr,
    /// The address.
    pub v6: Ipv6Addr,
}

impl Fixture {
    /// Reads one file.
    ///
    /// # Errors
    /// With the file and the place in it.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let mut fixture: Self = serde_saphyr::from_str(&text).with_context(|| path.display().to_string())?;
        fixture.name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for request in &fixture.requests {
            for end in [&request.from, &request.to] {
                let known = fixture.pods.contains_key(end) || fixture.outside.contains(end);
                ensure!(known, "{}: {end} is neither a pod nor outside: {request}", path.display());
            }
        }
        Ok(fixture)
    }

    /// Every fixture of this crate, sorted by name.
    ///
    /// # Errors
    /// With the file that cannot be read.
    pub fn all() -> Result<Vec<Self>> {
        let mut paths = Vec::new();
        let dir = directory();
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            paths.push(entry?.path());
        }
        paths.sort();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
        paths.iter().map(|path| Self::read(path)).collect()
    }

    /// The objects of the cluster that it describes, with the pods where `place` puts them.
    pub fn manifests(&self, mut place: impl FnMut(&str) -> Result<Placed>) -> Result<Vec<Value>> {
        let mut objects = Vec::new();
        for (name, namespace) in &self.namespaces {
            let dataplane = namespace.dataplane.as_deref().unwrap_or("enabled");
            objects.push(manifests::namespace(name, dataplane, &namespace.labels));
        }
        for (name, pod) in &self.pods {
            let Placed { node, v4, v6 } = place(name)?;
            let (labels, ports) = (&pod.labels, &pod.ports);
            let service_account = pod.service_account.as_deref();
            objects.push(manifests::pod(&PodManifest {
                name,
                node: &node,
                serial: 0,
                v4,
                v6,
                labels,
                ports,
                service_account,
            }));
        }
        objects.extend(self.policies.iter().cloned());
        Ok(objects)
    }
}

/// Where the fixtures are.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}
