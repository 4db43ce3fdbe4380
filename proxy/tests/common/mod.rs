//! A proxy on loopback without eBPF, a policy made by hand, and a server that writes down every byte.

#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod http2;
pub mod script;
pub mod service;

use sluice_policy::{
    Class, ClassId, ClassSet, Conditions, Endpoint, GrpcMatch, HeaderMatch, HeaderTest, HttpMatch, Identity,
    IsolatedPorts, Isolation, Kind, Layer, Mode, OnDeny, Origin, PathMatch, Policy, PolicyId, PortSet,
    Prefix, PrefixTable, Profile, ProfileId, Rule, Scope, Side, Snapshot, Workload,
};
use sluice_proxy::dial::Dialer;
use sluice_proxy::draft::{Reader, Sink};
use sluice_proxy::proxy::{Http2, Proxy};
use sluice_proxy::record::Record;
use sluice_proxy::telemetry::sampler::Sampler;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The frontend's address. Loopback has them all.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
/// A pod that no rule names.
pub const INTRUDER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 66));
/// The cart's address: where the proxy listens in the tests, as the original destination.
pub const CART: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// Longer than anything here takes, shorter than patience.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Waits for the future, or fails the test.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took too long"),
    }
}

/// What the policy on the cart says.
#[derive(Clone, Debug)]
pub struct Rules {
    pub http: Vec<HttpMatch>,
    pub grpc: Vec<GrpcMatch>,
    /// No condition at all: L3/L4 alone.
    pub plain: bool,
    pub mode: Mode,
    pub on_deny: OnDeny,
}

pub fn http(methods: &[&str], path: Option<PathMatch>) -> HttpMatch {
    HttpMatch { methods: methods.iter().map(|m| (*m).into()).collect(), path, ..HttpMatch::default() }
}

/// GET below /api, POST /api/v1/checkout, and shop.v1.Cart/GetCart and WatchCart.
pub fn shop() -> Rules {
    Rules {
        http: vec![
            http(&["GET", "HEAD"], Some(PathMatch::prefix("/api"))),
            http(&["POST"], Some(PathMatch::Exact("/api/v1/checkout".into()))),
        ],
        grpc: vec![GrpcMatch::grpc("shop.v1.Cart", ["GetCart".into(), "WatchCart".into()])],
        plain: false,
        mode: Mode::Enforce,
        on_deny: OnDeny::default(),
    }
}

pub fn snapshot(generation: u64, rules: &Rules) -> Arc<Snapshot> {
    let origin = Origin { kind: Kind::L7NetworkPolicy, namespace: "shop".into(), name: "cart".into() };
    let policy = Arc::new(Policy { id: PolicyId(0), origin, mode: rules.mode, on_deny: rules.on_deny });
    let conditions =
        Conditions { http: rules.http.clone(), grpc: rules.grpc.clone(), ..Conditions::default() };
    let rule = Rule {
        policy: policy.clone(),
        name: "frontend".into(),
        scopes: vec![Scope { peers: ClassSet::of([ClassId(1)]), ports: PortSet::All }],
        conditions: (!rules.plain).then(|| Arc::new(conditions)),
    };
    let isolation = vec![Isolation { policy: policy.clone(), ports: IsolatedPorts::All }];
    let layers = [Layer::default(), Layer { isolation, allow: vec![rule] }];
    let profile = Profile { ingress: Side { layers, ..Side::default() }, egress: Side::default() };
    let mut addresses = PrefixTable::new();
    addresses.insert(Prefix::EVERYTHING, ClassId(2));
    addresses.insert(Prefix::host(CLIENT), ClassId(1));
    let workload = |pod: &str| {
        Arc::new(Workload {
            namespace: "shop".into(),
            pod: pod.into(),
            uid: "".into(),
            service_account: "default".into(),
            node: "here".into(),
        })
    };
    let class = |identity| Class { identity, cidrs: Vec::new() };
    let endpoint = Endpoint { workload: workload("cart"), addresses: vec![CART], profile: ProfileId(0) };
    Arc::new(Snapshot {
        generation,
        policies: vec![policy],
        classes: vec![
            class(Identity::Missing),
            class(Identity::Workload("shop/frontend".into())),
            class(Identity::World),
        ],
        addresses,
        endpoints: vec![Arc::new(endpoint)].into(),
        profiles: vec![profile].into(),
        workloads: [(CLIENT, workload("frontend"))].into(),
        services: sluice_policy::Services::default(),
    })
}

/// Everything HTTP may pass, but for what this item takes.
pub fn denying(item: HttpMatch) -> Arc<Snapshot> {
    let mut snapshot = (*snapshot(1, &Rules { http: vec![http(&[], None)], ..shop() })).clone();
    let mut profiles = snapshot.profiles.to_vec();
    let side = &mut profiles[0].ingress;
    let conditions = Conditions { http: vec![item], ..Conditions::default() };
    let allow = side.layers[1].allow[0].clone();
    side.deny.push(Rule { name: "deny".into(), conditions: Some(Arc::new(conditions)), ..allow });
    snapshot.profiles = profiles.into();
    Arc::new(snapshot)
}

/// An item with one condition on a header.
pub fn header(name: &str, test: HeaderTest) -> HttpMatch {
    HttpMatch { headers: vec![HeaderMatch { name: name.into(), test }], ..HttpMatch::default() }
}

/// How HTTP/2 is served: the tests of a binary whose name says so run on the rewriting path.
pub fn http2_path() -> Http2 {
    let name = std::env::current_exe().expect("a name");
    let name = name.file_name().expect("a name").to_string_lossy().into_owned();
    if name.starts_with("rewritten") { Http2::Rewritten } else { Http2::Relayed }
}

/// A proxy with one listener.
pub struct World {
    pub proxy: Arc<Proxy>,
    pub at: SocketAddr,
    pub records: Reader,
}

impl World {
    pub async fn start(rules: &Rules, server: SocketAddr) -> Self {
        Self::sampled(rules, server, Sampler::OFF).await
    }

    pub async fn sampled(rules: &Rules, server: SocketAddr, sampler: Sampler) -> Self {
        Self::on(rules, server, sampler, http2_path()).await
    }

    pub async fn on(rules: &Rules, server: SocketAddr, sampler: Sampler, http2: Http2) -> Self {
        let (sink, records) = Sink::new();
        let proxy = Proxy::with(Dialer::Loopback(server), sink, sampler, http2);
        proxy.state.swap(snapshot(1, rules));
        let listener = TcpListener::bind(SocketAddr::new(CART, 0)).await.expect("a free port");
        let at = listener.local_addr().expect("bound");
        tokio::spawn(proxy.clone().accept(listener, false));
        Self { proxy, at, records }
    }

    pub async fn connect_from(&self, source: IpAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(source, 0)).expect("loopback has every address");
        // Else every second small write waits 40 ms for an acknowledgement.
        socket.set_nodelay(true).expect("an option");
        soon("connecting", socket.connect(self.at)).await.expect("the proxy listens")
    }

    pub async fn connect(&self) -> Client {
        Client { stream: self.connect_from(CLIENT).await, buf: Vec::new() }
    }

    pub async fn record(&mut self) -> Record {
        soon("a record", self.records.recv()).await.expect("the proxy lives")
    }
}

/// A client that sends bytes and reads whole answers.
pub struct Client {
    pub stream: TcpStream,
    buf: Vec<u8>,
}

impl Client {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the proxy reads");
    }

    /// One answer with a `Content-Length`: head and body. An error if the connection ends before.
    pub async fn try_answer(&mut self) -> std::io::Result<String> {
        loop {
            let text = String::from_utf8_lossy(&self.buf).into_owned();
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text[..end]
                    .lines()
                    .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                    .unwrap_or(0);
                let whole = end + 4 + length;
                if self.buf.len() >= whole {
                    let rest = self.buf.split_off(whole);
                    let answer = std::mem::replace(&mut self.buf, rest);
                    return Ok(String::from_utf8(answer).expect("text"));
                }
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece).await? {
                0 => return Err(std::io::Error::other(format!("the connection ended after {text:?}"))),
                length => self.buf.extend_from_slice(&piece[..length]),
            }
        }
    }

    pub async fn answer(&mut self) -> String {
        soon("an answer", self.try_answer()).await.expect("an answer")
    }

    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> String {
        self.send(request).await;
        self.answer().await
    }

    /// Everything up to the end of the connection; an error if it is a reset.
    pub async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = std::mem::take(&mut self.buf);
        soon("the end", self.stream.read_to_end(&mut rest)).await.map(|_| rest)
    }
}

/// A server that writes down every byte and who sent it, and answers each head with `answer`.
pub struct Recorder {
    pub at: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Recorder {
    pub async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.3:0").await.expect("a free port");
        let at = listener.local_addr().expect("bound");
        let recorder = Self { at, seen: Arc::default(), peers: Arc::default() };
        let (seen, peers) = (recorder.seen.clone(), recorder.peers.clone());
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                peers.lock().expect("whole").push(peer);
                tokio::spawn(record(stream, answer, seen.clone()));
            }
        });
        recorder
    }

    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("whole")).into_owned()
    }

    pub fn peers(&self) -> Vec<SocketAddr> {
        self.peers.lock().expect("whole").clone()
    }
}

async fn record(mut stream: TcpStream, answer: &'static str, seen: Arc<Mutex<Vec<u8>>>) {
    let mut here = Vec::new();
    let mut answered = 0;
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        seen.lock().expect("whole").extend_from_slice(&piece[..length]);
        here.extend_from_slice(&piece[..length]);
        let heads = here.windows(4).filter(|w| w == b"\r\n\r\n").count();
        while answered < heads {
            answered += 1;
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
            if answer.contains("connection: close") {
                return;
            }
        }
    }
}

pub const OK: &str = "HTTP/1.1 200 OK\r\nX-Served-BY: cart\r\nContent-Length: 2\r\n\r\nok";
