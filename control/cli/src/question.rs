//! Questions as people and programs write them, into queries.
//!
//! Knows nothing of clusters: that a pod exists is the query's matter.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sluice_compile::query::{Port, Query, Said};
use sluice_policy::Protocol;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A question as one line of JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Question {
    from: String,
    to: String,
    protocol: Option<String>,
    port: Option<PortGiven>,
    http: Option<HttpGiven>,
    grpc: Option<GrpcGiven>,
    tls: Option<TlsGiven>,
    /// Whether the answer shall tell every stage and rule.
    #[serde(default)]
    pub(crate) trace: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a port number or the name of a port")]
enum PortGiven {
    Number(u16),
    Name(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HttpGiven {
    method: String,
    path: String,
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrpcGiven {
    service: String,
    method: String,
    #[serde(default)]
    headers: BTreeMap<String, Values>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TlsGiven {
    server_name: Option<String>,
}

/// A header's value, or several occurrences of it.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a header's value, or a list of them")]
enum Values {
    One(String),
    Many(Vec<String>),
}

impl Question {
    /// The query that it means.
    pub(crate) fn into_query(self) -> Result<Query> {
        let protocol = protocol(self.protocol.as_deref())?;
        let (to, port) = match self.port {
            Some(PortGiven::Number(number)) => (self.to, Some(Port::Number(number))),
            Some(PortGiven::Name(name)) => (self.to, Some(Port::Named(name))),
            None => destination(&self.to)?,
        };
        let said = match (self.http, self.grpc, self.tls) {
            (Some(http), None, None) => self::http(http.method, http.path, http.host, flatten(http.headers))?,
            (None, Some(grpc), None) => self::grpc(grpc.service, grpc.method, flatten(grpc.headers))?,
            (None, None, Some(tls)) => self::tls(tls.server_name),
            (None, None, None) => Said::Nothing,
            _ => bail!("a question is about one of http, grpc and tls: remove the others"),
        };
        query(self.from, to, protocol, port, said)
    }
}

fn flatten(headers: BTreeMap<String, Values>) -> Vec<(String, String)> {
    let values = |values| match values {
        Values::One(value) => vec![value],
        Values::Many(values) => values,
    };
    headers
        .into_iter()
        .flat_map(|(name, given)| values(given).into_iter().map(move |value| (name.clone(), value)))
        .collect()
}

/// Puts a query together; requests need TCP, and everything with ports needs a port.
pub(crate) fn query(
    from: String,
    to: String,
    protocol: Protocol,
    port: Option<Port>,
    said: Said,
) -> Result<Query> {
    ensure!(
        said == Said::Nothing || protocol == Protocol::Tcp,
        "requests and TLS travel over TCP: leave --protocol {protocol} out, or leave the request out"
    );
    let port = match port {
        Some(Port::Number(0)) if protocol.has_ports() => bail!("there is no port 0: write 1 to 65535"),
        Some(port) if protocol.has_ports() => port,
        Some(_) => bail!("{protocol} has no ports: write the destination without one"),
        None if protocol.has_ports() => bail!("\"{to}\" has no port: write it as {to}:8080"),
        None => Port::Number(0),
    };
    Ok(Query { from, to, protocol, port, said })
}

/// The protocol of this name; TCP where none is given.
pub(crate) fn protocol(name: Option<&str>) -> Result<Protocol> {
    let name = name.unwrap_or("TCP");
    Protocol::parse(&name.to_ascii_uppercase())
        .with_context(|| format!("\"{name}\" is no protocol: write TCP, UDP, SCTP or ICMP"))
}

/// Splits `shop/cart:8080`, `shop/cart:grpc`, `10.0.0.1:80` and `[fd00::1]:80`.
pub(crate) fn destination(to: &str) -> Result<(String, Option<Port>)> {
    if to.parse::<IpAddr>().is_ok() {
        return Ok((to.to_owned(), None));
    }
    let (host, port) = match to.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').with_context(|| format!("\"{to}\" lacks its `]`"))?;
            (host, rest.strip_prefix(':').unwrap_or(rest))
        }
        None => to.rsplit_once(':').unwrap_or((to, "")),
    };
    let port = match (port, port.parse::<u16>()) {
        ("", _) => None,
        (_, Ok(number)) => Some(Port::Number(number)),
        (name, Err(_)) if name.bytes().all(|b| b.is_ascii_digit()) => {
            bail!("{name} is no port: write 1 to 65535")
        }
        (name, Err(_)) => Some(Port::Named(name.to_owned())),
    };
    Ok((host.to_owned(), port))
}

/// An HTTP request.
pub(crate) fn http(
    method: String,
    target: String,
    host: Option<String>,
    headers: Vec<(String, String)>,
) -> Result<Said> {
    ensure!(!method.is_empty(), "the request has no method: write it as 'GET /path'");
    ensure!(
        target.starts_with('/') || target == "*" || method == "CONNECT",
        "\"{target}\" is no request target: write a path that starts with /"
    );
    Ok(Said::Http { method, target, host, headers })
}

/// A gRPC call.
pub(crate) fn grpc(service: String, method: String, headers: Vec<(String, String)>) -> Result<Said> {
    let word = |text: &str| !text.is_empty() && !text.contains('/');
    ensure!(word(&service) && word(&method), "a call is service/method: write it as shop.v1.Cart/GetCart");
    Ok(Said::Grpc { service, method, headers })
}

/// A TLS connection; without a name it is one that nobody can read.
pub(crate) fn tls(server_name: Option<String>) -> Said {
    Said::Tls { server_name: server_name.filter(|name| !name.is_empty()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (to, host, port) in [
            ("shop/cart:8080", "shop/cart", Some(Port::Number(8080))),
            ("shop/cart:grpc", "shop/cart", Some(Port::Named("grpc".into()))),
            ("shop/cart", "shop/cart", None),
            ("10.0.0.1:80", "10.0.0.1", Some(Port::Number(80))),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]:80", "fd00::1", Some(Port::Number(80))),
        ] {
            assert_eq!(destination(to).unwrap(), (host.to_owned(), port), "{to}");
        }
        assert!(destination("shop/cart:70000").is_err());
        assert!(destination("[fd00::1").is_err());
    }

    #[test]
    fn a_question_that_says_more_than_we_read_is_refused() {
        let parse = |text: &str| serde_json::from_str::<Question>(text);
        assert!(parse(r#"{"from":"a/b","to":"c/d","port":1,"htpp":{}}"#).is_err());
        let udp = parse(
            r#"{"from":"a/b","to":"c/d","port":1,"protocol":"UDP","http":{"method":"GET","path":"/"}}"#,
        );
        assert!(udp.unwrap().into_query().is_err());
        let many = parse(
            r#"{"from":"a/b","to":"c/d","port":"http","http":{"method":"GET","path":"/","headers":{"a":["1","2"]}}}"#,
        );
        let query = many.unwrap().into_query().unwrap();
        assert!(matches!(query.said, Said::Http { headers, .. } if headers.len() == 2));
    }
}
