//! The demo's table: each line one real request by a real client.
//!
//! The last column says who decided as it was really told: by the proxy's flow record of the request, or by the kernel's
//! of what never came to a proxy (marked `▪`). Called by the demo.

use crate::cluster::is_of_the_kernel;
use crate::demo::stage::Stage;
use crate::demo::table::{self, Line, Style, short};
use crate::demo::{say, tell};
use crate::engine::Judged;
use crate::fixture::{Expect, Grpc, Http, HttpVersion, Protocol, Request};
use crate::peer::{Answer, Ask, Version, grpc_client, http_client, raw_client};
use crate::world::{Family, Pod};
use anyhow::Result;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// How long a connection that is refused in silence is waited for: a second SYN goes out after one second.
const NO_CONNECTION: Duration = Duration::from_millis(1300);
/// How long anything that must come is waited for.
const ANSWER: Duration = Duration::from_secs(5);
/// The same for datagrams.
const DATAGRAM: Duration = Duration::from_millis(500);
/// Streams sent at once on one HTTP/2 connection.
const STREAMS: usize = 40;
/// What a datagram carries.
const PAYLOAD: &[u8] = b"\x00\x01sluice";

/// Which real client sends it.
#[derive(Clone, Copy, Debug)]
enum Client {
    Curl,
    CurlH2,
    Tonic,
    KeepAlive,
    Streams,
    Datagram,
    Ping,
}

/// One line to be played.
#[derive(Clone, Copy, Debug)]
struct Row {
    client: Client,
    family: Family,
    from: &'static str,
    to: &'static str,
    port: u16,
    method: &'static str,
    path: &'static str,
    header: Option<(&'static str, &'static str)>,
    expect: Expect,
}

const fn row(
    client: Client,
    from: &'static str,
    to: &'static str,
    port: u16,
    method: &'static str,
    path: &'static str,
    expect: Expect,
) -> Row {
    Row { client, family: Family::V4, from, to, port, method, path, header: None, expect }
}

impl Row {
    const fn v6(self) -> Self {
        Self { family: Family::V6, ..self }
    }

    const fn header(self, name: &'static str, value: &'static str) -> Self {
        Self { header: Some((name, value)), ..self }
    }
}

const FRONTEND: &str = "shop/frontend";
const CART: &str = "shop/cart";
const BILLING: &str = "shop/billing";
const INTRUDER: &str = "shop/intruder";
const LEGACY: &str = "outside/legacy";
const CARTS: &str = "shop.v1.Cart";

/// Before what a record of the kernel says.
const OF_THE_KERNEL: &str = "▪ ";

/// What is below the table.
const LEGEND: [&str; 3] = [
    "Policy and rule are what the flow record says: the proxy's of each request, and, with a ▪, the kernel's of",
    "what never came to it. The policy engine, asked about the same manifests, has to say the same.",
    "l7np = L7NetworkPolicy, netpol = NetworkPolicy.",
];

/// Every line, in order.
const ROWS: &[Row] = &[
    row(Client::Curl, FRONTEND, CART, 8080, "GET", "/api/v1/items", Expect::Allow),
    row(Client::Curl, FRONTEND, CART, 8080, "GET", "/api/v1/items/7", Expect::Allow).v6(),
    row(Client::CurlH2, FRONTEND, CART, 8080, "GET", "/api/v1/items", Expect::Allow),
    row(Client::Curl, FRONTEND, CART, 8080, "POST", "/api/v1/checkout", Expect::Allow)
        .header("x-tenant", "acme"),
    row(Client::Curl, FRONTEND, CART, 8080, "POST", "/api/v1/checkout", Expect::Deny),
    row(Client::Curl, FRONTEND, CART, 8080, "DELETE", "/api/v1/items", Expect::Deny),
    row(Client::Curl, FRONTEND, CART, 8080, "HEAD", "/api/v1/items", Expect::Deny),
    row(Client::Curl, FRONTEND, CART, 8080, "GET", "/admin", Expect::Deny).v6(),
    row(Client::Curl, FRONTEND, CART, 8080, "GET", "/api/v1/items/..%2fadmin", Expect::Deny),
    row(Client::KeepAlive, FRONTEND, CART, 8080, "GET", "/api/v1/items", Expect::Allow),
    row(Client::Streams, FRONTEND, CART, 8080, "GET", "/api/v1/items", Expect::Allow),
    row(Client::Tonic, BILLING, CART, 9090, CARTS, "GetCart", Expect::Allow),
    row(Client::Tonic, BILLING, CART, 9090, CARTS, "WatchCart", Expect::Allow).v6(),
    row(Client::Tonic, BILLING, CART, 9090, CARTS, "DeleteItem", Expect::Deny),
    row(Client::Curl, BILLING, CART, 8080, "GET", "/api/v1/items", Expect::Deny),
    row(Client::Curl, INTRUDER, CART, 8080, "GET", "/api/v1/items", Expect::Deny),
    row(Client::Tonic, INTRUDER, CART, 9090, CARTS, "GetCart", Expect::Deny),
    row(Client::Datagram, INTRUDER, CART, 5353, "", "", Expect::Deny),
    row(Client::Curl, INTRUDER, BILLING, 8080, "GET", "/", Expect::Allow),
    row(Client::Datagram, FRONTEND, BILLING, 5353, "", "", Expect::Allow),
    row(Client::Ping, CART, FRONTEND, 0, "", "", Expect::Allow),
    row(Client::Curl, LEGACY, CART, 8080, "GET", "/api/v1/items", Expect::Deny),
    row(Client::Curl, CART, LEGACY, 8080, "GET", "/", Expect::Allow),
];

/// Plays every line; whether all were as expected.
///
/// # Errors
/// When a client cannot be run.
pub fn play(stage: &mut Stage, style: Style) -> Result<bool> {
    say(&table::heading(style));
    let mut good = true;
    for row in ROWS {
        let line = play_one(stage, row)?;
        good &= line.good;
        say(&table::line(style, &line));
        tell(&json!({
            "part": "table",
            "from": row.from,
            "to": row.to,
            "what": line.what,
            "expected": line.expected,
            "got": line.got,
            "decidedBy": line.decided.trim_start_matches(OF_THE_KERNEL),
            "toldBy": if line.decided.starts_with(OF_THE_KERNEL) { "kernel" } else { "record" },
            "more": line.more,
            "good": line.good,
        }));
    }
    say("");
    for text in LEGEND {
        say(&style.dim(&format!("   {text}")));
    }
    say("");
    Ok(good)
}

fn play_one(stage: &Stage, row: &Row) -> Result<Line> {
    let world = &stage.cluster.world;
    let (from, to) = (world.pod(row.from), world.pod(row.to));
    let target = SocketAddr::new(to.ip(row.family), row.port);
    let request = row.request();
    let judged = stage.engine()?.judge(from.ip(row.family), target.ip(), &request);
    let mark = stage.cluster.mark();
    let (got, passed, honest) = match row.client {
        Client::Curl => curl(row, from, target, &[])?,
        Client::CurlH2 => curl(row, from, target, &["--http2-prior-knowledge"])?,
        Client::Tonic => tonic(row, from, target)?,
        Client::KeepAlive => keep_alive(row, from, target)?,
        Client::Streams => streams(row, from, target)?,
        Client::Datagram => datagram(row, from, target)?,
        Client::Ping => ping(row, from, target)?,
    };
    let Decided { by, more, told } = decided(stage, row, &judged, from, target, &mark);
    let good = honest && told && judged.outcome == row.expect && passed == (row.expect != Expect::Deny);
    Ok(Line {
        who: format!("{} → {}", from.short_name(), to.short_name()),
        what: row.what(),
        expected: if row.mixed() { "mixed".to_owned() } else { row.expect.as_str().to_owned() },
        got,
        decided: by,
        more,
        good,
    })
}

impl Row {
    /// How long an answer is waited for; `silence` where none must come.
    fn patience(&self, silence: Duration) -> Duration {
        if self.expect == Expect::Deny { silence } else { ANSWER }
    }

    /// Whether some of its requests are denied.
    const fn mixed(&self) -> bool {
        matches!(self.client, Client::KeepAlive | Client::Streams)
    }

    fn request(&self) -> Request {
        let grpc = matches!(self.client, Client::Tonic);
        let http = !self.method.is_empty() && !grpc;
        let h2 = matches!(self.client, Client::CurlH2 | Client::Streams);
        let header = self
            .header
            .map(|(name, value)| (name.to_owned(), crate::fixture::OneOrMany::One(value.to_owned())));
        Request {
            from: self.from.to_owned(),
            to: self.to.to_owned(),
            protocol: match self.client {
                Client::Datagram => Protocol::Udp,
                Client::Ping => Protocol::Icmp,
                _ => Protocol::Tcp,
            },
            port: self.port,
            http: http.then(|| Http {
                method: self.method.to_owned(),
                path: self.path.to_owned(),
                host: None,
                headers: header.into_iter().collect(),
                version: if h2 { HttpVersion::H2 } else { HttpVersion::H1 },
            }),
            grpc: grpc.then(|| Grpc { service: self.method.to_owned(), method: self.path.to_owned() }),
            expect: self.expect,
            policy: None,
            rule: None,
            reason: None,
            nearest_miss: None,
        }
    }

    fn what(&self) -> String {
        let v6 = if self.family == Family::V6 { " (IPv6)" } else { "" };
        let with = self.header.map_or_else(String::new, |(name, _)| format!(" +{name}"));
        match self.client {
            Client::Curl => format!("{} {}{with}{v6}", self.method, self.path),
            Client::CurlH2 => format!("{} {} (HTTP/2)", self.method, self.path),
            Client::Tonic => format!("gRPC Cart/{}{v6}", self.path),
            Client::KeepAlive => "GET, DELETE, GET keep-alive".to_owned(),
            Client::Streams => format!("{STREAMS} streams, 1 connection"),
            Client::Datagram => format!("UDP {}", self.port),
            Client::Ping => "ping".to_owned(),
        }
    }
}

/// What happened: as shown, whether it passed, and whether it was what it seems (the right server saw the right
/// client, the mesh refused and not the server).
type Got = (String, bool, bool);

fn curl(row: &Row, from: &Pod, target: SocketAddr, more: &[&str]) -> Result<Got> {
    let url = format!("http://{target}{}", row.path);
    let seconds = row.patience(NO_CONNECTION).as_secs_f64().to_string();
    let mut arguments =
        vec!["curl", "-sS", "--path-as-is", "-w", "\n%{http_code}", "--connect-timeout", &seconds];
    arguments.extend(["--max-time", "5"]);
    arguments.extend(more);
    let header = row.header.map(|(name, value)| format!("{name}: {value}"));
    if let Some(header) = &header {
        arguments.extend(["-H", header]);
    }
    if row.method == "HEAD" {
        arguments.push("--head");
    } else {
        arguments.extend(["-X", row.method]);
    }
    arguments.push(&url);
    let output = from.netns.output(&arguments)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').unwrap_or(("", "000"));
    if code == "000" {
        return Ok(("no connection".to_owned(), false, output.status.code() == Some(28)));
    }
    let answer: Value = serde_json::from_str(body.trim()).unwrap_or_default();
    let served = answer["peer"] == from.ip(family(target)).to_string().as_str();
    Ok((
        code.to_owned(),
        code == "200",
        if code == "200" { served } else { code == "403" && answer.is_null() },
    ))
}

fn tonic(row: &Row, from: &Pod, target: SocketAddr) -> Result<Got> {
    let outcome = from.netns.block_on(|| async {
        let connect = tokio::time::timeout(row.patience(NO_CONNECTION), grpc_client::connect(target));
        let Ok(Ok(mut client)) = connect.await else { return Ok(None) };
        grpc_client::call(&mut client, row.path, "blue", 3).await.map(Some)
    })??;
    let Some(outcome) = outcome else { return Ok(("no connection".to_owned(), false, true)) };
    let peer = from.ip(family(target)).to_string();
    let served = !outcome.replies.is_empty() && outcome.replies.iter().all(|reply| reply.peer == peer);
    let name = match outcome.code {
        0 => "OK".to_owned(),
        7 => "7 (denied)".to_owned(),
        code => format!("{code} {}", outcome.name),
    };
    Ok((name, outcome.code == 0, if outcome.code == 0 { served } else { outcome.code == 7 }))
}

/// Statuses of several requests over one connection.
fn statuses(from: &Pod, target: SocketAddr, version: Version, asks: &[Ask]) -> Result<Vec<Answer>> {
    from.netns.block_on(|| http_client::ask(target, version, asks))?
}

fn keep_alive(row: &Row, from: &Pod, target: SocketAddr) -> Result<Got> {
    let asks = [Ask::new("GET", row.path), Ask::new("DELETE", row.path), Ask::new("GET", row.path)];
    let answers = statuses(from, target, Version::Http1, &asks)?;
    let codes: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    let got = codes.iter().map(u16::to_string).collect::<Vec<_>>().join(" ");
    Ok((got, codes == [200, 403, 200], true))
}

fn streams(row: &Row, from: &Pod, target: SocketAddr) -> Result<Got> {
    let ask = |number: usize| Ask::new(if number.is_multiple_of(2) { "GET" } else { "DELETE" }, row.path);
    let asks: Vec<Ask> = (0..STREAMS).map(ask).collect();
    let answers = statuses(from, target, Version::Http2, &asks)?;
    let count = |status: u16| answers.iter().filter(|answer| answer.status == status).count();
    let right =
        answers.iter().all(|answer| answer.status == if answer.index.is_multiple_of(2) { 200 } else { 403 });
    Ok((format!("{}×200 {}×403", count(200), count(403)), right, true))
}

fn datagram(row: &Row, from: &Pod, target: SocketAddr) -> Result<Got> {
    let answer = from.netns.inside(|| raw_client::udp(target, PAYLOAD, row.patience(DATAGRAM)))??;
    Ok(echoed(&answer.received))
}

fn ping(row: &Row, from: &Pod, target: SocketAddr) -> Result<Got> {
    let answer = from.netns.inside(|| raw_client::icmp(target.ip(), row.patience(DATAGRAM)))??;
    Ok(echoed(&answer.received))
}

fn echoed(received: &[u8]) -> Got {
    if received.is_empty() {
        ("silence".to_owned(), false, true)
    } else {
        ("answered".to_owned(), true, true)
    }
}

const fn family(target: SocketAddr) -> Family {
    if target.is_ipv4() { Family::V4 } else { Family::V6 }
}

/// Who decided a line.
struct Decided {
    /// The policy and rule.
    by: String,
    /// What came nearest to allowing, or who decided the others.
    more: String,
    /// Whether it was told as it had to be.
    told: bool,
}

fn name(policy: &str, rule: &str) -> String {
    match (policy, rule) {
        ("", _) => "no policy isolates it".to_owned(),
        (policy, "") => short(policy),
        // A rule without a name is known by its place.
        (policy, rule) => {
            format!("{} {}", short(policy), rule.trim_start_matches("ingress").trim_start_matches("egress"))
        }
    }
}

fn decided(
    stage: &Stage,
    row: &Row,
    judged: &Judged,
    from: &Pod,
    target: SocketAddr,
    mark: &BTreeMap<String, usize>,
) -> Decided {
    if !judged.proxied {
        return by_the_kernel(stage, row, judged, (from.ip(row.family), target), mark);
    }
    let source = from.ip(row.family).to_string();
    let wait = |verdict: &str| {
        stage.cluster.wait_record(mark, &row.what(), |record| {
            // The kernel tells of the connection as well, at the client's end.
            !is_of_the_kernel(record)
                && record["source"]["ip"] == source.as_str()
                && record["destination"]["ip"] == target.ip().to_string().as_str()
                && record["destination"]["port"] == target.port()
                && record["verdict"] == verdict
        })
    };
    let text = |record: &Value, key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let by = |record: &Value| name(&text(record, "policy"), &text(record, "rule"));
    let Ok(record) = wait(row.expect.as_str()) else {
        return Decided { by: "the proxy reported nothing".to_owned(), more: String::new(), told: false };
    };
    let mut more = text(&record, "nearestMiss");
    let mut told = true;
    if row.mixed() {
        match wait("deny") {
            Ok(denied) => more = format!("the 403s: {}", by(&denied)),
            Err(_) => told = false,
        }
    }
    Decided { by: by(&record), more, told }
}

/// What the kernel's record says of a flow. Each node tells of its own end; the one that names what decided is shown.
fn by_the_kernel(
    stage: &Stage,
    row: &Row,
    judged: &Judged,
    (source, target): (IpAddr, SocketAddr),
    mark: &BTreeMap<String, usize>,
) -> Decided {
    let found = stage.cluster.wait_record(mark, &row.what(), |record| {
        is_of_the_kernel(record)
            && record["source"]["ip"] == source.to_string().as_str()
            && record["destination"]["ip"] == target.ip().to_string().as_str()
            && (matches!(row.client, Client::Ping) || record["destination"]["port"] == target.port())
            && record["verdict"] == row.expect.as_str()
            && (record["policy"] == judged.policy.as_str() || row.expect == Expect::Deny)
    });
    let Ok(record) = found else {
        return Decided { by: "the kernel told nothing".to_owned(), more: String::new(), told: false };
    };
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    let told = (text("policy"), text("rule")) == (&*judged.policy, &*judged.rule);
    Decided {
        by: format!("{OF_THE_KERNEL}{}", name(text("policy"), text("rule"))),
        more: text("nearestMiss").to_owned(),
        told,
    }
}
