//! The shop: two nodes, a frontend, a cart, a billing service and an intruder, for tests that tell one story.
//!
//! The frontend and the intruder are on the first node, the cart and billing on the second, so that what the
//! frontend asks the cart goes across. Knows no policy. Called by the end-to-end tests.

use crate::cluster::Cluster;
use crate::manifests::{self, PodManifest};
use crate::peer::{Answer, Ask, Version, http_client, raw_client};
use crate::world::{Family, NodeSpec, PodSpec, Process, World};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// The pods, with their nodes.
pub const PODS: [(&str, &str); 4] =
    [("n1", "shop/frontend"), ("n2", "shop/cart"), ("n2", "shop/billing"), ("n1", "shop/intruder")];
/// What each of them serves.
const SERVED: &[&str] = &[
    "--http",
    "[::]:8080",
    "--http",
    "[::]:9090",
    "--tcp",
    "[::]:5432",
    "--greet",
    "[::]:3306",
    "--udp",
    "[::]:5353",
];
/// The bytes that stand for a protocol nobody knows.
pub const BYTES: &[u8] = b"\x00\x01\x02not http\xff";

/// The frontend may GET below /items; the database and a datagram port have no L7 rules.
pub const CART: &str = "
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: cart, namespace: shop }
spec:
  podSelector: { matchLabels: { app: cart } }
  ingress:
  - name: items
    from: [ { podSelector: { matchLabels: { app: frontend } } } ]
    ports: [ { port: http } ]
    rules: { http: [ { methods: [GET], path: { type: PathPrefix, value: /items } } ] }
  - name: billing
    from: [ { podSelector: { matchLabels: { app: billing } } } ]
    ports: [ { port: grpc } ]
    rules: { grpc: [ { service: shop.v1.Cart, methods: [GetCart, WatchCart] } ] }
  - name: database
    from: [ { podSelector: { matchLabels: { app: frontend } } } ]
    ports: [ { port: 5432 }, { port: 3306 }, { port: 5353, protocol: UDP } ]
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: billing, namespace: shop }
spec:
  podSelector: { matchLabels: { app: billing } }
  ingress:
  - name: anything
    from: [ { podSelector: {} } ]
";

/// The shop, with everything running.
#[derive(Debug)]
pub struct Scene {
    /// The peers, in the order of [`PODS`].
    pub servers: Vec<Process>,
    /// The cluster.
    pub cluster: Cluster,
}

impl Scene {
    /// Builds the world, without control and proxies.
    ///
    /// # Errors
    /// With the command that failed.
    pub fn build() -> Result<World> {
        let nodes = [NodeSpec::routed("n1"), NodeSpec::routed("n2")];
        let builder = nodes.into_iter().fold(World::builder(), crate::WorldBuilder::node);
        PODS.iter().fold(builder, |builder, (node, pod)| builder.pod(PodSpec::new(*node, *pod))).build()
    }

    /// Builds it with the policies in force. `environment` is the proxies'.
    ///
    /// # Errors
    /// When a part of it does not come up.
    pub fn start(environment: &[(&str, &str)], policies: &str) -> Result<Self> {
        Self::start_in(Self::build()?, environment, policies)
    }

    /// Starts everything in a world that is up.
    ///
    /// # Errors
    /// When a part of it does not come up.
    pub fn start_in(world: World, environment: &[(&str, &str)], policies: &str) -> Result<Self> {
        let servers =
            PODS.iter().map(|(_, pod)| world.serve(pod, SERVED)).collect::<Result<Vec<Process>>>()?;
        let mut scene = Self { servers, cluster: Cluster::start(world, environment)? };
        scene.apply(policies)?;
        Ok(scene)
    }

    /// Replaces the policies, a stream of YAML documents, and waits until they are in force.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn apply(&mut self, policies: &str) -> Result<Duration> {
        let mut objects = self.objects();
        objects.extend(serde_saphyr::from_multiple::<Value>(policies)?);
        self.cluster.apply(&objects)
    }

    /// The namespace and the pods.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![manifests::namespace("shop", "enabled", &BTreeMap::new())];
        for pod in &self.cluster.world.pods {
            let labels = BTreeMap::from([("app".to_owned(), pod.short_name().to_owned())]);
            let ports = [
                json!({"name": "http", "containerPort": 8080}),
                json!({"name": "grpc", "containerPort": 9090}),
            ];
            objects.push(manifests::pod(&PodManifest {
                name: &pod.name,
                node: &pod.node,
                serial: pod.serial,
                v4: pod.v4,
                v6: pod.v6,
                labels: &labels,
                ports: &ports,
                service_account: None,
            }));
        }
        objects
    }

    /// The world.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.cluster.world
    }

    /// A pod's address and a port of it.
    #[must_use]
    pub fn address(&self, pod: &str, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.cluster.world.pod(pod).ip(family), port)
    }

    /// Requests over one connection.
    ///
    /// # Errors
    /// When there is no connection.
    pub fn http(
        &self,
        from: &str,
        target: SocketAddr,
        version: Version,
        asks: &[Ask],
    ) -> Result<Vec<Answer>> {
        self.cluster.world.pod(from).netns.block_on(|| http_client::ask(target, version, asks))?
    }

    /// The status of one HTTP/1.1 request over a connection of its own; nothing where there is no connection
    /// within the deadline.
    ///
    /// # Errors
    /// When the pod's namespace cannot be entered.
    pub fn status(
        &self,
        from: &str,
        target: SocketAddr,
        ask: Ask,
        deadline: Duration,
    ) -> Result<Option<u16>> {
        let netns = &self.cluster.world.pod(from).netns;
        let asks = [ask];
        let answers = netns.block_on(|| http_client::ask_within(target, Version::Http1, &asks, deadline))?;
        Ok(answers.ok().and_then(|answers| answers.first().map(|answer| answer.status)))
    }

    /// Whether arbitrary bytes come back over TCP.
    ///
    /// # Errors
    /// When the pod's namespace cannot be entered.
    pub fn tcp(&self, from: &str, target: SocketAddr, deadline: Duration) -> Result<bool> {
        let netns = &self.cluster.world.pod(from).netns;
        let answer = netns.inside(|| raw_client::tcp(target, BYTES, BYTES.len(), deadline))?;
        Ok(answer.received == BYTES)
    }

    /// Whether a datagram comes back.
    ///
    /// # Errors
    /// When the pod's namespace cannot be entered.
    pub fn udp(&self, from: &str, target: SocketAddr, deadline: Duration) -> Result<bool> {
        let netns = &self.cluster.world.pod(from).netns;
        Ok(netns.inside(|| raw_client::udp(target, BYTES, deadline))??.received == BYTES)
    }

    /// Whether an echo request is answered.
    ///
    /// # Errors
    /// When the pod's namespace cannot be entered.
    pub fn ping(&self, from: &str, target: SocketAddr, deadline: Duration) -> Result<bool> {
        let netns = &self.cluster.world.pod(from).netns;
        Ok(!netns.inside(|| raw_client::icmp(target.ip(), deadline))??.received.is_empty())
    }

    /// Bytes and requests that reached one port of a pod.
    ///
    /// # Errors
    /// When its peer does not answer.
    pub fn reached(&self, pod: &str, port: u16) -> Result<(u64, u64)> {
        let stats = self.cluster.world.stats(pod, 8080).context("the ledger")?;
        Ok(stats.get(&port).map_or((0, 0), |stats| (stats.bytes, stats.requests)))
    }
}
