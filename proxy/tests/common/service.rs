//! A Service made by hand: its address is where the proxy listens, its backends are servers of the test.

use super::{CLIENT, World, http};
use bytes::Bytes;
use h2::client::SendRequest;
use sluice_policy::{
    Backend, Class, ClassId, ClassSet, Conditions, Endpoint, GrpcMatch, HttpMatch, Identity, IsolatedPorts,
    Isolation, Kind, Layer, Mode, OnDeny, Origin, PathMatch, Policy, PolicyId, PortSet, Prefix, PrefixTable,
    Profile, ProfileId, Protocol, Rule, Scope, Service, ServicePort, Side, Snapshot, Workload,
};
use sluice_proxy::dial::Dialer;
use sluice_proxy::draft::Sink;
use sluice_proxy::proxy::Proxy;
use sluice_proxy::telemetry::sampler::Sampler;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The Service's address.
pub const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));

/// Classes of backends: cart's two versions, and one that no rule names.
pub const ONE: ClassId = ClassId(3);
pub const TWO: ClassId = ClassId(4);
pub const OTHER: ClassId = ClassId(5);

/// An allow: whom, and what may be said.
pub type Allow = (Vec<ClassId>, Option<Conditions>);

pub fn everything(peers: &[ClassId]) -> Allow {
    (peers.to_vec(), None)
}

pub fn requests(peers: &[ClassId], items: Vec<HttpMatch>) -> Allow {
    (peers.to_vec(), Some(Conditions { http: items, ..Conditions::default() }))
}

pub fn below(peers: &[ClassId], path: &str) -> Allow {
    requests(peers, vec![http(&[], Some(PathMatch::prefix(path)))])
}

pub fn calls(peers: &[ClassId], methods: &[&str]) -> Allow {
    let methods = methods.iter().map(|method| (*method).into());
    let grpc = vec![GrpcMatch::grpc("shop.v1.Cart", methods)];
    (peers.to_vec(), Some(Conditions { grpc, ..Conditions::default() }))
}

/// What the node knows. Change it, and swap it in again.
#[derive(Clone, Debug)]
pub struct Shop {
    pub generation: u64,
    pub vip: SocketAddr,
    pub backends: Vec<(SocketAddr, ClassId)>,
    /// Who stands behind the Service, by place among the backends.
    pub serving: Vec<usize>,
    pub affinity: Option<u32>,
    /// `false`: there is no such Service.
    pub exists: bool,
    pub egress: Vec<Allow>,
    pub mode: Mode,
    /// Backends that are endpoints of this node, and what their ingress allows.
    pub local: Vec<usize>,
    pub ingress: Vec<Allow>,
    /// Further Services: their addresses, and who stands there.
    pub others: Vec<(SocketAddr, SocketAddr)>,
}

impl Shop {
    pub fn new(backends: Vec<(SocketAddr, ClassId)>, egress: Vec<Allow>) -> Self {
        Self {
            generation: 1,
            vip: SocketAddr::new(VIP, 0),
            serving: (0..backends.len()).collect(),
            backends,
            affinity: None,
            exists: true,
            egress,
            mode: Mode::Enforce,
            local: Vec::new(),
            ingress: Vec::new(),
            others: Vec::new(),
        }
    }

    fn side(policy: &Arc<Policy>, allows: &[Allow]) -> Side {
        let rule = |(place, (peers, conditions)): (usize, &Allow)| Rule {
            policy: policy.clone(),
            name: format!("rule-{place}").as_str().into(),
            scopes: vec![Scope { peers: ClassSet::of(peers.iter().copied()), ports: PortSet::All }],
            conditions: conditions.clone().map(Arc::new),
        };
        let isolation = vec![Isolation { policy: policy.clone(), ports: IsolatedPorts::All }];
        let allow = allows.iter().enumerate().map(rule).collect();
        Side { layers: [Layer::default(), Layer { isolation, allow }], ..Side::default() }
    }

    fn services(&self) -> Vec<Service> {
        let service = |name: &str, at: SocketAddr, backends: Vec<SocketAddr>| {
            let mut backends: Vec<Backend> =
                backends.iter().map(|to| Backend { address: to.ip(), port: to.port() }).collect();
            backends.sort_unstable();
            let port = ServicePort { protocol: Protocol::Tcp, port: at.port(), backends: backends.into() };
            Service {
                namespace: "shop".into(),
                name: name.into(),
                addresses: vec![at.ip()],
                ports: vec![port],
                affinity: self.affinity,
            }
        };
        let serving = self.serving.iter().map(|place| self.backends[*place].0).collect();
        let cart = self.exists.then(|| service("cart", self.vip, serving));
        let others = self.others.iter().map(|(at, to)| service("other", *at, vec![*to]));
        cart.into_iter().chain(others).collect()
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        let policy = |id, name: &str| {
            let origin = Origin { kind: Kind::L7NetworkPolicy, namespace: "shop".into(), name: name.into() };
            let on_deny = OnDeny::default();
            Arc::new(Policy { id: PolicyId(id), origin, mode: self.mode, on_deny })
        };
        let (out, into) = (policy(0, "frontend"), policy(1, "cart"));
        let frontend = Profile { egress: Self::side(&out, &self.egress), ingress: Side::default() };
        let cart = Profile { ingress: Self::side(&into, &self.ingress), egress: Side::default() };
        let mut addresses = PrefixTable::new();
        addresses.insert(Prefix::EVERYTHING, ClassId(2));
        addresses.insert(Prefix::host(CLIENT), ClassId(1));
        let workload = |pod: String| {
            Arc::new(Workload {
                namespace: "shop".into(),
                pod: pod.as_str().into(),
                uid: "".into(),
                service_account: "default".into(),
                node: "here".into(),
            })
        };
        let endpoint = |pod, address, profile| {
            Arc::new(Endpoint { workload: workload(pod), addresses: vec![address], profile })
        };
        let mut endpoints = vec![endpoint("frontend".to_owned(), CLIENT, ProfileId(0))];
        let mut workloads = std::collections::HashMap::new();
        for (place, (at, class)) in self.backends.iter().enumerate() {
            let pod = format!("cart-{place}");
            if at.ip() == CLIENT {
                continue;
            }
            addresses.insert(Prefix::host(at.ip()), *class);
            workloads.insert(at.ip(), workload(pod.clone()));
            if self.local.contains(&place) {
                endpoints.push(endpoint(pod, at.ip(), ProfileId(1)));
            }
        }
        let class = |identity| Class { identity, cidrs: Vec::new() };
        let named = |name: &str| class(Identity::Workload(name.into()));
        Arc::new(Snapshot {
            generation: self.generation,
            policies: vec![out, into],
            classes: vec![
                class(Identity::Missing),
                named("shop/frontend"),
                class(Identity::World),
                named("shop/cart-one"),
                named("shop/cart-two"),
                named("shop/other"),
            ],
            addresses,
            endpoints: endpoints.into(),
            profiles: vec![frontend, cart].into(),
            workloads,
            services: self.services().into(),
        })
    }

    /// The next generation of it, in force; how many flows that cut.
    pub fn swap(&mut self, world: &World) -> usize {
        self.generation += 1;
        world.proxy.state.swap(self.snapshot())
    }

    /// A proxy that listens at the Service's address.
    pub async fn start(&mut self) -> World {
        let (sink, records) = Sink::new();
        let proxy = Proxy::new(Dialer::Local, sink, Sampler::OFF);
        let listener = TcpListener::bind(SocketAddr::new(self.vip.ip(), 0)).await.expect("a free port");
        self.vip = listener.local_addr().expect("bound");
        proxy.state.swap(self.snapshot());
        tokio::spawn(proxy.clone().accept(listener, false));
        World { proxy, at: self.vip, records }
    }
}

/// A server of a backend that counts, and says its number.
#[derive(Debug)]
pub struct Counter {
    pub at: SocketAddr,
    /// Connections that were accepted.
    pub accepted: Arc<AtomicUsize>,
    /// Requests that came.
    pub asked: Arc<AtomicUsize>,
    /// Changes with each request.
    pub news: watch::Receiver<usize>,
}

impl Counter {
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// An address of a backend's own.
pub fn address(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, number))
}

/// An HTTP/1.1 server that answers each head with its number.
pub async fn http1(number: u8) -> Counter {
    let listener = TcpListener::bind(SocketAddr::new(address(number), 0)).await.expect("a free port");
    let (asked, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (tell, news) = watch::channel(0);
    let counter = Counter {
        at: listener.local_addr().expect("bound"),
        accepted: accepted.clone(),
        asked: asked.clone(),
        news,
    };
    let tell = Arc::new(tell);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            let (asked, tell) = (asked.clone(), tell.clone());
            tokio::spawn(async move {
                let mut said = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut said).await {
                    while let Some(end) = said.windows(4).position(|w| w == b"\r\n\r\n") {
                        let head: Vec<u8> = said.drain(..end + 4).collect();
                        let count = asked.fetch_add(1, Ordering::SeqCst) + 1;
                        tell.send_replace(count);
                        let switch = head.windows(9).any(|w| w == b"websocket");
                        let answer = if switch {
                            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
                                .to_owned()
                        } else {
                            format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}")
                        };
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    counter
}

/// A server that says its number and then repeats what it hears.
pub async fn echo(number: u8) -> Counter {
    let listener = TcpListener::bind(SocketAddr::new(address(number), 0)).await.expect("a free port");
    let accepted = Arc::new(AtomicUsize::new(0));
    let counter = Counter {
        at: listener.local_addr().expect("bound"),
        accepted: accepted.clone(),
        asked: Arc::default(),
        news: watch::channel(0).1,
    };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                stream.write_all(&[b'0' + number]).await.expect("sent");
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    counter
}

/// A client's HTTP/2 connection to the Service.
pub async fn connect(world: &World) -> SendRequest<Bytes> {
    super::http2::connect(world).await
}
