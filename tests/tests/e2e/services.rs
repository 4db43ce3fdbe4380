//! L7 policy through a Service's address: a pod, its proxy, and the backends that the proxy chooses, on its own node
//! and on another. Without kube-proxy, and with the rules that it writes.

use crate::NEEDS;
use crate::translation::{Mode, translate};
use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sluice_policy::{Backend, Protocol, Service, ServicePort};
use sluice_tests::cluster::Cluster;
use sluice_tests::harness;
use sluice_tests::manifests::{self, PodManifest};
use sluice_tests::peer::http_client::Connection;
use sluice_tests::peer::{Answer, Ask, Version, grpc_client, http_client};
use sluice_tests::world::{Family, Process};
use sluice_tests::{NodeSpec, PodSpec, World, WorldBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

pub(crate) fn tests() -> Vec<Trial> {
    let all = [None].into_iter().chain(Mode::ALL.map(Some));
    let named = |mode: Option<Mode>| mode.map_or("no kube-proxy".to_owned(), |mode| format!("{mode:?}"));
    let spread = all.map(|mode| {
        harness::test(
            format!("services: requests are judged and spread, {}", named(mode)),
            NEEDS,
            move || spread(mode),
        )
    });
    let mut tests = vec![
        harness::test("services: slices change under an open connection", NEEDS, live),
        harness::test("services: a pod behind its own service", NEEDS, itself),
        harness::test("services: one backend allows and one does not", NEEDS, mixed),
    ];
    tests.extend(spread);
    tests
}

/// The frontend asks for the cart by its Service; behind that are a pod beside it and one on the other node. `old`
/// stands behind it too where a test says so, and nobody may speak with it.
const PODS: [(&str, &str, &str); 5] = [
    ("n1", "shop/frontend", "frontend"),
    ("n1", "shop/cart-0", "cart"),
    ("n2", "shop/cart-1", "cart"),
    ("n2", "shop/old", "old"),
    ("n1", "shop/loner", "loner"),
];

const POLICIES: &str = "
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: frontend, namespace: shop }
spec:
  podSelector: { matchLabels: { app: frontend } }
  policyTypes: [Egress]
  egress:
  - name: cart
    to: [ { podSelector: { matchLabels: { app: cart } } } ]
    ports: [ { port: 8080 } ]
    rules: { http: [ { methods: [GET], path: { type: PathPrefix, value: /items } } ] }
  - name: calls
    to: [ { podSelector: { matchLabels: { app: cart } } } ]
    ports: [ { port: 8080 } ]
    rules: { grpc: [ { service: shop.v1.Cart, methods: [GetCart] } ] }
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: cart, namespace: shop }
spec:
  podSelector: { matchLabels: { app: cart } }
  policyTypes: [Ingress]
  ingress:
  - name: not-private
    from: [ { podSelector: { matchLabels: { app: frontend } } } ]
    ports: [ { port: 8080 } ]
    rules: { http: [ { path: { type: PathPrefix, value: /items/public } } ], grpc: [ { service: shop.v1.Cart } ] }
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: loner, namespace: shop }
spec:
  podSelector: { matchLabels: { app: loner } }
  policyTypes: [Egress]
  egress:
  - name: itself
    to: [ { podSelector: { matchLabels: { app: loner } } } ]
    ports: [ { port: 8080 } ]
    rules: { http: [ { methods: [GET] } ] }
";

struct Shop {
    cluster: Cluster,
    _servers: Vec<Process>,
    mode: Option<Mode>,
    /// Who stands behind the Service.
    backends: Vec<&'static str>,
}

fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => [10, 96, 0, 10].into(),
        Family::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10].into(),
    }
}

fn at(family: Family) -> SocketAddr {
    SocketAddr::new(vip(family), 80)
}

impl Shop {
    fn start(mode: Option<Mode>, backends: &[&'static str]) -> Result<Self> {
        let nodes = ["n1", "n2"].map(NodeSpec::routed);
        let builder = nodes.into_iter().fold(World::builder(), WorldBuilder::node);
        let pods = PODS.iter().map(|(node, pod, _)| PodSpec::new(*node, *pod));
        let world = pods.fold(builder, WorldBuilder::pod).build()?;
        let serve = |(_, pod, _): &(_, &str, _)| world.serve(pod, &["--http", "[::]:8080"]);
        let servers = PODS.iter().map(serve).collect::<Result<Vec<Process>>>()?;
        let cluster = Cluster::start(world, &[])?;
        let mut shop = Self { cluster, _servers: servers, mode, backends: backends.to_vec() };
        shop.apply(POLICIES)?;
        Ok(shop)
    }

    fn apply(&mut self, policies: &str) -> Result<()> {
        let mut objects = vec![manifests::namespace("shop", "enabled", &BTreeMap::new())];
        for (_, name, app) in PODS {
            let pod = self.cluster.world.pod(name);
            let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
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
        objects.extend(self.service());
        objects.extend(serde_saphyr::from_multiple::<Value>(policies)?);
        if let Some(mode) = self.mode {
            translate(&self.cluster.world, "n1", mode, &self.translated())?;
        }
        self.cluster.apply(&objects)?;
        Ok(())
    }

    /// The Service and its slices, as the API server has them.
    fn service(&self) -> Vec<Value> {
        let addresses = Family::BOTH.map(|family| vip(family).to_string());
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "cart"},
            "spec": {
                "type": "ClusterIP", "clusterIP": addresses[0], "clusterIPs": addresses,
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}],
            },
        })];
        for (family, kind) in Family::BOTH.into_iter().zip(["IPv4", "IPv6"]) {
            let endpoint = |pod: &&str| {
                let pod = self.cluster.world.pod(pod);
                json!({"addresses": [pod.ip(family).to_string()], "conditions": {"ready": true}, "nodeName": pod.node})
            };
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
                "metadata": {
                    "namespace": "shop", "name": format!("cart-{}", kind.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": "cart"},
                },
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": self.backends.iter().map(endpoint).collect::<Vec<_>>(),
            }));
        }
        objects
    }

    /// The same for kube-proxy.
    fn translated(&self) -> Vec<Service> {
        let of = |pod: &&str| {
            Family::BOTH.map(|family| Backend { address: self.cluster.world.pod(pod).ip(family), port: 8080 })
        };
        let backends: Vec<Backend> = self.backends.iter().flat_map(of).collect();
        vec![Service {
            namespace: "shop".into(),
            name: "cart".into(),
            addresses: Family::BOTH.map(vip).to_vec(),
            ports: vec![ServicePort { protocol: Protocol::Tcp, port: 80, backends: backends.into() }],
            affinity: None,
        }]
    }

    fn ask(&self, from: &str, family: Family, version: Version, asks: &[Ask]) -> Result<Vec<Answer>> {
        self.cluster.world.pod(from).netns.block_on(|| http_client::ask(at(family), version, asks))?
    }

    /// Requests that a pod's server has had.
    fn requests(&self, pod: &str) -> Result<u64> {
        Ok(self.cluster.world.stats(pod, 8080)?.get(&8080).map_or(0, |stats| stats.requests))
    }
}

/// Who answered.
fn server(answer: &Answer) -> String {
    answer.json()["server"].as_str().unwrap_or_default().to_owned()
}

const BOTH: [&str; 2] = ["shop/cart-0", "shop/cart-1"];

fn spread(mode: Option<Mode>) -> Result<()> {
    let shop = Shop::start(mode, &BOTH)?;
    for family in Family::BOTH {
        let client = shop.cluster.world.pod("shop/frontend").ip(family).to_string();
        let mark = shop.cluster.mark();
        let get = Ask::new("GET", "/items/public/1");
        let mut servers = BTreeSet::new();
        for _ in 0..24 {
            let asks = [
                get.clone(),
                Ask::new("DELETE", "/items/public/1"),
                Ask::new("GET", "/items/private"),
                get.clone(),
            ];
            let answers = shop.ask("shop/frontend", family, Version::Http1, &asks)?;
            let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            ensure!(statuses == [200, 403, 403, 200], "{family:?}: {answers:#?}");
            ensure!(server(&answers[0]) == server(&answers[3]), "kept with its connection: {answers:#?}");
            ensure!(answers[0].json()["peer"] == client.as_str(), "the server sees the client: {answers:#?}");
            servers.insert(server(&answers[0]));
        }
        ensure!(servers.len() == 2, "{family:?}: {servers:?}");
        // Streams of one connection.
        let asks = vec![get.clone(); 40];
        let answers = shop.ask("shop/frontend", family, Version::Http2, &asks)?;
        ensure!(answers.iter().all(|answer| answer.status == 200), "{answers:#?}");
        let servers: BTreeSet<String> = answers.iter().map(server).collect();
        ensure!(servers.len() == 2, "{family:?}: {servers:?}");
        // The client's proxy names the Service and the backend; the far one's sees the backend alone.
        for (pod, ingress) in [("cart-0", true), ("cart-1", false)] {
            let record = shop.cluster.wait_record(&mark, "a request by the Service", |record| {
                record["service"]["name"] == "cart"
                    // The other family's may come late: records are sent together.
                    && record["service"]["ip"] == vip(family).to_string()
                    && record["destination"]["pod"] == pod
                    && record["verdict"] == "allow"
            })?;
            let rule = if ingress { "not-private" } else { "cart" };
            ensure!(record["rule"] == rule, "{record}");
        }
        grpc(&shop, family)?;
    }
    Ok(())
}

/// Calls over one channel, made by tonic.
fn grpc(shop: &Shop, family: Family) -> Result<()> {
    let before = (shop.requests(BOTH[0])?, shop.requests(BOTH[1])?);
    let netns = &shop.cluster.world.pod("shop/frontend").netns;
    netns.block_on(|| async {
        let mut client = grpc_client::connect(at(family)).await?;
        for _ in 0..40 {
            let outcome = grpc_client::call(&mut client, "GetCart", "mine", 0).await?;
            ensure!(outcome.code == 0, "{outcome:?}");
        }
        let denied = grpc_client::call(&mut client, "DeleteItem", "mine", 0).await?;
        ensure!(denied.code == 7, "{denied:?}");
        Ok(())
    })??;
    let after = (shop.requests(BOTH[0])?, shop.requests(BOTH[1])?);
    let got = (after.0 - before.0, after.1 - before.1);
    // 40 at random: fewer than 5 at one has odds of one in ten million.
    ensure!(got.0 + got.1 == 40 && got.0.min(got.1) >= 5, "{family:?}: one channel, spread: {got:?}");
    Ok(())
}

/// A backend that no rule allows is behind the Service as well: nothing ever comes to it.
fn mixed() -> Result<()> {
    let mut shop = Shop::start(Some(Mode::Nftables), &["shop/cart-1", "shop/old"])?;
    for family in Family::BOTH {
        for version in [Version::Http1, Version::Http2] {
            let asks = vec![Ask::new("GET", "/items/public/1"); 20];
            let answers = shop.ask("shop/frontend", family, version, &asks)?;
            ensure!(answers.iter().all(|a| a.status == 200 && server(a).contains("cart-1")), "{answers:#?}");
        }
    }
    ensure!(shop.cluster.world.stats("shop/old", 8080)?.get(&8080).is_none_or(|stats| stats.requests == 0));
    shop.backends = vec!["shop/old"];
    shop.apply(POLICIES)?;
    let asks = [Ask::new("GET", "/items/public/1")];
    ensure!(shop.ask("shop/frontend", Family::V4, Version::Http1, &asks).is_err(), "nobody may be reached");
    Ok(())
}

fn live() -> Result<()> {
    let mut shop = Shop::start(None, &BOTH[..1])?;
    let netns = shop.cluster.world.pod("shop/frontend").netns.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let ask = Ask::new("GET", "/items/public/1");
    let mut connection = netns.inside(|| runtime.block_on(Connection::open(at(Family::V4))))??;
    let mut get = |expected: &str| {
        let answer = runtime.block_on(connection.send(&ask))?;
        ensure!(answer.status == 200 && server(&answer).contains(expected), "{expected}: {answer:?}");
        anyhow::Ok(())
    };
    get("cart-0")?;
    shop.backends = vec![BOTH[1]];
    shop.apply(POLICIES)?;
    get("cart-1")?;
    shop.backends = BOTH.to_vec();
    shop.apply(POLICIES)?;
    get("cart-1")?;
    let nothing =
        POLICIES.replace("methods: [GET], path: { type: PathPrefix, value: /items }", "methods: [PUT]");
    shop.apply(&nothing)?;
    let answer = runtime.block_on(connection.send(&ask))?;
    ensure!(answer.status == 403, "{answer:?}");
    Ok(())
}

/// A host takes no packet from its own address off the wire, so the pod sees the Service's.
fn itself() -> Result<()> {
    for mode in [None, Some(Mode::Nftables)] {
        let shop = Shop::start(mode, &["shop/loner"])?;
        for family in Family::BOTH {
            let asks = [Ask::new("GET", "/me"), Ask::new("GET", "/me")];
            let answers = shop.ask("shop/loner", family, Version::Http1, &asks)?;
            let peer = vip(family).to_string();
            let good = |answer: &Answer| answer.status == 200 && answer.json()["peer"] == peer.as_str();
            ensure!(answers.iter().all(good), "{family:?}: {answers:#?}");
        }
    }
    Ok(())
}
