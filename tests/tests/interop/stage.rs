//! The world that all tests here share: two nodes, a frontend on one, foreign servers on the other, and a policy that
//! allows part of what each of them does.
//!
//! The frontend's requests pass both nodes' proxies, each of which judges its own end; by the Service's address the
//! first of them builds HTTP/2 anew, by the pod's address it passes it on as it is.

use crate::parts::{Part, script};
use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use sluice_tests::cluster::Cluster;
use sluice_tests::manifests::{self, PodManifest};
use sluice_tests::world::{Family, Netns, Process, eventually};
use sluice_tests::{NodeSpec, PodSpec, World, WorldBuilder};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::time::Duration;

/// How long a foreign server may take to listen.
const UP: Duration = Duration::from_secs(30);
/// The pods.
const PODS: [(&str, &str); 2] = [("n1", "shop/frontend"), ("n2", "shop/cart")];
/// The Service before the server of HTTP.
const SERVICE: &str = "10.96.0.10";

/// Where each server listens.
pub(crate) mod port {
    /// Go's net/http, HTTP/1.1 and HTTP/2 without TLS.
    pub(crate) const HTTP: u16 = 8080;
    /// The same with TLS.
    pub(crate) const TLS: u16 = 8443;
    /// Another one that no L7 rule governs.
    pub(crate) const TLS_DIRECT: u16 = 8444;
    /// The server of grpc-go's interop tests, all of it allowed.
    pub(crate) const GRPC: u16 = 10_000;
    /// Another one that no L7 rule governs: the way past the proxy.
    pub(crate) const GRPC_DIRECT: u16 = 10_001;
    /// Another one of which two methods are allowed.
    pub(crate) const GRPC_PART: u16 = 10_002;
    /// grpcio's.
    pub(crate) const PYTHON_GRPC: u16 = 50_051;
    /// The library websockets'.
    pub(crate) const WEBSOCKET: u16 = 8765;
    /// Our own, of tonic.
    pub(crate) const TONIC: u16 = 9090;
}

const POLICIES: &str = "
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: cart, namespace: shop }
spec:
  podSelector: { matchLabels: { app: cart } }
  policyTypes: [Ingress]
  ingress:
  - name: items
    ports: [ { port: 8080 } ]
    rules: { http: [ { methods: [GET, HEAD, PUT, POST], path: { type: PathPrefix, value: /items } } ] }
  - name: named
    ports: [ { port: 8443 } ]
    rules: { tls: { serverNames: [allowed.test] } }
  - name: sockets
    ports: [ { port: 8765 } ]
    rules: { http: [ { methods: [GET], path: { type: Exact, value: /echo }, upgrades: [websocket] } ] }
  - name: interop
    ports: [ { port: 10000 } ]
    rules: { grpc: [ { service: grpc.testing.TestService }, { service: grpc.testing.UnimplementedService } ] }
  - name: direct
    ports: [ { port: 10001 }, { port: 8444 } ]
  - name: part
    ports: [ { port: 10002 } ]
    rules: { grpc: [ { service: grpc.testing.TestService, methods: [EmptyCall, UnaryCall] } ] }
  - name: python
    ports: [ { port: 50051 } ]
    rules: { grpc: [ { service: interop.Echo, methods: [Unary, Fail, Download, Upload, Chat, Unheard] } ] }
  - name: tonic
    ports: [ { port: 9090 } ]
    rules: { grpc: [ { service: shop.v1.Cart, methods: [GetCart, WatchCart] } ] }
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: frontend, namespace: shop }
spec:
  podSelector: { matchLabels: { app: frontend } }
  policyTypes: [Egress]
  isolation: ListedPorts
  egress:
  - name: all-but-secret
    to: [ { podSelector: { matchLabels: { app: cart } } } ]
    ports: [ { port: 8080 } ]
    rules: { http: [ { path: { type: PathPrefix, value: /items } }, { path: { type: PathPrefix, value: /admin } } ] }
";

/// Everything, running.
#[derive(Debug)]
pub(crate) struct Stage {
    servers: Vec<Process>,
    cluster: Cluster,
    /// The names that a browser knows the TLS servers' keys by.
    pub(crate) spki: String,
}

static STAGE: OnceLock<Result<Stage, String>> = OnceLock::new();

impl Stage {
    /// The one that all tests share.
    pub(crate) fn get() -> Result<&'static Self> {
        let stage = STAGE.get_or_init(|| Self::start().map_err(|error| format!("{error:#}")));
        stage.as_ref().map_err(|error| anyhow!("the stage: {error}"))
    }

    fn start() -> Result<Self> {
        let nodes = ["n1", "n2"].map(NodeSpec::routed);
        let builder = nodes.into_iter().fold(World::builder(), WorldBuilder::node);
        let world = PODS
            .iter()
            .fold(builder, |builder, (node, pod)| builder.pod(PodSpec::new(*node, *pod)))
            .build()?;
        let mut servers = vec![world.serve("shop/cart", &["--http", &format!("[::]:{}", port::TONIC)])?];
        let mut start = |name: &str, part: Part, arguments: &[&str], ready: &str| -> Result<String> {
            let program = part.path().with_context(|| format!("{part:?} is gone"))?;
            let mut server = world.start(name, &world.pod("shop/cart").netns, &program, arguments)?;
            let line = match ready {
                // It listens without a word: it is looked for below.
                "" => String::new(),
                _ => server.wait_line(0, UP, "that it listens", |line| line.contains(ready))?,
            };
            servers.push(server);
            Ok(line)
        };
        let httpd = Part::Go("httpd");
        start("httpd", httpd, &["-listen", &format!("[::]:{}", port::HTTP)], "ready")?;
        let mut keys = Vec::new();
        for port in [port::TLS, port::TLS_DIRECT] {
            let names = ["-listen", &format!("[::]:{port}"), "-tls", "allowed.test,denied.test"];
            let said: Value =
                serde_json::from_str(&start(&format!("httpd-{port}"), httpd, &names, "ready")?)?;
            keys.push(said["spki"].as_str().context("no key")?.to_owned());
        }
        for port in [port::GRPC, port::GRPC_DIRECT, port::GRPC_PART] {
            let arguments = [&*format!("--port={port}"), "--use_tls=false"];
            start(&format!("interop-{port}"), Part::Go("interop-server"), &arguments, "")?;
        }
        let python = |name: &str| script(name).display().to_string();
        let address = format!("[::]:{}", port::PYTHON_GRPC);
        start("grpcio", Part::Python, &["-u", "-B", &python("grpc_server.py"), &address], "ready")?;
        let port = port::WEBSOCKET.to_string();
        start("websockets", Part::Python, &["-u", "-B", &python("websocket_server.py"), &port], "ready")?;
        for port in [port::GRPC, port::GRPC_DIRECT, port::GRPC_PART] {
            let listens = || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok();
            let cart = &world.pod("shop/cart").netns;
            eventually("the interop server listens", UP, || cart.inside(listens))?;
        }
        let mut stage = Self { servers, cluster: Cluster::start(world, &[])?, spki: keys.join(",") };
        stage.apply()?;
        Ok(stage)
    }

    fn apply(&mut self) -> Result<()> {
        let mut objects = vec![manifests::namespace("shop", "enabled", &BTreeMap::new())];
        for pod in &self.cluster.world.pods {
            let labels = BTreeMap::from([("app".to_owned(), pod.short_name().to_owned())]);
            objects.push(manifests::pod(&PodManifest {
                name: &pod.name,
                node: &pod.node,
                serial: pod.serial,
                v4: pod.v4,
                v6: pod.v6,
                labels: &labels,
                ports: &[],
                service_account: None,
            }));
        }
        let cart = self.cluster.world.pod("shop/cart");
        let port = json!({"name": "http", "protocol": "TCP", "port": port::HTTP});
        objects.push(json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "shop", "name": "cart"},
            "spec": {"type": "ClusterIP", "clusterIP": SERVICE, "clusterIPs": [SERVICE], "ports": [port]}}));
        objects.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "cart-v4",
                "labels": {"kubernetes.io/service-name": "cart"}},
            "addressType": "IPv4", "ports": [port],
            "endpoints": [{"addresses": [cart.v4.to_string()], "conditions": {"ready": true},
                "nodeName": cart.node}]}));
        objects.extend(serde_saphyr::from_multiple::<Value>(POLICIES)?);
        self.cluster.apply(&objects).map(drop)
    }

    /// The network of a pod.
    pub(crate) fn netns(&self, pod: &str) -> &Netns {
        &self.cluster.world.pod(pod).netns
    }

    /// A directory for files.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.cluster.world.dir()
    }

    /// A server, by the pod's own address.
    pub(crate) fn cart(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.world.pod("shop/cart").ip(family), port)
    }

    /// The server of HTTP by each address that it has: both families, and the Service's.
    pub(crate) fn http(&self) -> [String; 3] {
        let [four, six] = Family::BOTH.map(|family| self.cart(family, port::HTTP).to_string());
        [four, six, format!("{SERVICE}:{}", port::HTTP)]
    }

    /// What a server said of its requests.
    pub(crate) fn lines(&self, server: &str) -> Vec<String> {
        let found = self.servers.iter().find(|process| process.name() == server);
        found.map(|process| process.lines_since(0)).unwrap_or_default()
    }

    /// The last lines of everything, without the flow records.
    pub(crate) fn tails(&self) -> String {
        let servers = self.servers.iter().map(|server| format!("--- {}\n{}", server.name(), server.tail(6)));
        let proxies = self.cluster.tails();
        let told = proxies.lines().filter(|line| !line.contains("\"verdict\""));
        servers.collect::<String>() + &told.collect::<Vec<_>>().join("\n")
    }
}
