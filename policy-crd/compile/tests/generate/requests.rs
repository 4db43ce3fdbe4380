//! Questions: who to whom, on which port, and what is said.

use super::world::address;
use crate::reference::verdict::{Asked, Http, Said};
use proptest::prelude::*;
use proptest::sample::select;

const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/c",
    "/ab",
    "/admin",
    "/admin/",
    "/admin/x",
    "/c",
    "/ADMIN",
    "/shop.Cart/Get",
    "/shop.Cart/List",
    "/a/Get",
];
const ODD_PATHS: &[&str] = &[
    "/a/../admin",
    "/a/%2e%2e/admin",
    "/%61dmin",
    "/%61",
    "/a%2fb",
    "/a%2Fb",
    "//admin",
    "/a//b",
    "/a//../admin",
    "/admin;x=1",
    "/a;x/b",
    "/a\\b",
    "\\admin",
    "/a/%00",
    "/admin%00",
    "/%2561dmin",
    "/a/..;/admin",
    "/./a",
    "/a/.",
    "/a/..",
    "/..",
    "*",
    "",
    "/%c0%ae%c0%ae/admin",
    "/a/%c0%ae%c0%ae/admin",
    "/a%3fb",
    "/admin%3fx",
    "http://cart/admin",
    "/a%5c..%5cadmin",
    "/%5cadmin",
    "/a/%252e%252e/admin",
    "/a%252f..%252fadmin",
    "/a/%2e%2e%2fadmin",
    "/%zz",
    "/a%",
    "/caf\u{e9}",
    "/a/b%20c",
    "/shop.Cart//Get",
    "/shop.Cart%2fGet",
    "/x/../shop.Cart/Get",
    "/a/.%2e/%2e./admin",
    "/%2e/admin",
    "/a/...//admin",
    "/admin.",
    "/admin%20",
];
const QUERIES: &[&str] = &[
    "",
    "v=1",
    "v=2",
    "v=x",
    "v",
    "v=",
    "v=1&v=1",
    "v=1&v=2",
    "v=%31",
    "%76=1",
    "V=1",
    "w-x=1",
    "w_x=1",
    "w-x=1&w_x=2",
    "u=1&v=1",
    "&&v=1",
    "v=1=2",
    "v=+1",
    "",
];
const METHODS: &[&str] =
    &["GET", "GET", "GET", "HEAD", "POST", "POST", "get", "DELETE", "CONNECT", "OPTIONS"];
const HOSTS: &[&str] = &[
    "cart",
    "CART",
    "cart:8080",
    "cart.",
    "cart.:80",
    "shop.example",
    "Shop.Example.",
    "evil",
    "[::1]:80",
    "",
    "cart:",
    "cart..",
    "cart:80:80",
    "user@cart",
    "cart ",
];
const FIELDS: &[(&str, &str)] = &[
    ("x-a", "1"),
    ("x-a", "2"),
    ("x_a", "1"),
    ("x-b", "1"),
    ("x_b", ""),
    ("x-a", ""),
    ("x-a", "%31"),
    ("x-a", "1, 2"),
    ("X-A", "1"),
    ("content-type", "application/grpc"),
    ("content-type", "application/grpc+proto"),
    ("content-type", "application/grpc-web+proto"),
    ("content-type", "application/connect+json"),
    ("content-type", "application/grpcx"),
    ("content-type", "application/json"),
    ("connect-protocol-version", "1"),
    ("upgrade", "websocket"),
    ("upgrade", "WebSocket"),
    ("upgrade", "h2c"),
    ("upgrade", "h2c, websocket"),
    ("upgrade", "websocket/13"),
];

/// A question about addresses of one family.
pub(crate) fn asked() -> impl Strategy<Value = Asked> {
    let protocol = prop_oneof![8 => Just("TCP"), 1 => Just("UDP"), 1 => Just("SCTP")];
    let ends = (address(), address());
    (ends, protocol, select(vec![80, 80, 81, 8080, 90]), any::<bool>(), said()).prop_map(
        |((from, to), protocol, port, socket, said)| {
            let said = match said {
                Said::Bytes => Said::Bytes,
                said if protocol == "TCP" => said,
                _ => Said::Nothing,
            };
            let (from, mut to) = (from.parse().expect("an address"), to.parse().expect("an address"));
            if std::net::IpAddr::is_ipv4(&from) != std::net::IpAddr::is_ipv4(&to) {
                to = if from.is_ipv4() { "10.0.1.1" } else { "fd00::1" }.parse().expect("an address");
            }
            Asked { from, to, protocol, port, socket, said }
        },
    )
}

fn said() -> impl Strategy<Value = Said> {
    let names = select(vec![
        None,
        None,
        Some("shop.example"),
        Some("Other.Example."),
        Some("a.shop.example"),
        Some("example"),
        Some("evil"),
    ]);
    prop_oneof![
        3 => Just(Said::Nothing),
        10 => http().prop_map(Said::Http),
        2 => call().prop_map(Said::Http),
        5 => names.prop_map(|name| Said::Tls(name.map(String::from))),
        1 => Just(Said::Bytes),
    ]
}

fn http() -> impl Strategy<Value = Http> {
    let path = prop_oneof![3 => select(PATHS), 2 => select(ODD_PATHS)];
    let host = prop_oneof![1 => Just(None), 5 => select(HOSTS).prop_map(|host| Some(host.to_owned()))];
    let fields = prop::collection::vec(select(FIELDS), 0..3);
    (select(METHODS), path, select(QUERIES), host, fields).prop_map(|(method, path, query, host, fields)| {
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let headers = fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Http { version: 1, method: method.to_owned(), target, host, headers, far: false }
    })
}

/// A gRPC call as it should be.
fn call() -> impl Strategy<Value = Http> {
    let fields = prop::collection::vec(select(&FIELDS[..6]), 0..2);
    (select(vec!["shop.Cart", "a", "a.b"]), select(vec!["Get", "Watch", "Set"]), fields).prop_map(
        |(service, method, fields)| {
            let mut headers = vec![("content-type".to_owned(), "application/grpc".to_owned())];
            headers.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())));
            let target = format!("/{service}/{method}");
            Http { version: 2, method: "POST".to_owned(), target, host: None, headers, far: false }
        },
    )
}
