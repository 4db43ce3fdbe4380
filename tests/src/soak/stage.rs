//! The world of the soak: two nodes, two pods that ask and one that serves, and the two policies that take turns.
//!
//! The clients' proxy judges nothing of its own: the node of the server's does. Called by the soak.

use super::clients;
use super::servers::{self, Certified};
use super::tally::{Kind, Tally};
use super::{CONNECTED, Options};
use crate::cluster::Cluster;
use crate::manifests::{self, PodManifest};
use crate::world::{Family, NodeSpec, PodSpec, World};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

/// The pods: each source may have 4,096 connections, so two of them ask.
const PODS: [(&str, &str); 3] = [("n1", "shop/ask-0"), ("n1", "shop/ask-1"), ("n2", "shop/cart")];
/// Those that ask.
const ASKING: usize = 2;

/// `TURN` is the method of the turn, `CALL` the gRPC method, `NAME` the server name; the rest is allowed always.
const POLICIES: &str = "
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: cart, namespace: shop }
spec:
  podSelector: { matchLabels: { app: cart } }
  policyTypes: [Ingress]
  ingress:
  - name: http
    ports: [ { port: 8080 } ]
    rules: { http: [ { methods: [GET], path: { type: PathPrefix, value: /items } }, { methods: [TURN] } ] }
  - name: grpc
    ports: [ { port: 9090 } ]
    rules: { grpc: [ { service: shop.v1.Cart, methods: [CALL] } ] }
  - name: sockets
    ports: [ { port: 8765 } ]
    rules: { http: [ { methods: [GET], path: { type: Exact, value: /echo }, upgrades: [websocket] } ] }
  - name: tls
    ports: [ { port: 8443 } ]
    rules: { tls: { serverNames: [always.test, NAME] } }
---
apiVersion: policy.sluice.dev/v1alpha1
kind: L7NetworkPolicy
metadata: { name: ask, namespace: shop }
spec:
  podSelector: { matchLabels: { role: ask } }
  policyTypes: [Egress]
  isolation: ListedPorts
  egress:
  - name: http
    ports: [ { port: 8080 } ]
    rules: { http: [ {} ] }
";

/// The world, with servers.
#[derive(Debug)]
pub struct Stage {
    /// The product.
    pub cluster: Cluster,
    certified: Certified,
    changes: u64,
}

impl Stage {
    /// Builds it. The servers' thread ends with the process.
    ///
    /// # Errors
    /// When a part of it does not come up.
    pub fn start() -> Result<Self> {
        let nodes = ["n1", "n2"].map(NodeSpec::routed);
        let builder = nodes.into_iter().fold(World::builder(), crate::WorldBuilder::node);
        let world = PODS
            .iter()
            .fold(builder, |builder, (node, pod)| builder.pod(PodSpec::new(*node, *pod)))
            .build()?;
        let certified = Certified::make()?;
        let (netns, of_servers) = (world.pod("shop/cart").netns.clone(), certified.clone());
        let (ready, listening) = channel();
        std::thread::spawn(move || {
            let served = netns.block_on(|| {
                servers::serve(of_servers, move || {
                    let _ = ready.send(());
                })
            });
            if let Ok(Err(error)) | Err(error) = served {
                eprintln!("the servers ended: {error:#}");
            }
        });
        listening.recv_timeout(CONNECTED).context("the servers do not listen")?;
        Ok(Self { cluster: Cluster::start_unrecorded(world)?, certified, changes: 0 })
    }

    /// How often the policy changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The other policy, until it is in force.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn flip(&mut self, tally: &Tally) -> Result<()> {
        let even = tally.next(false);
        let policies = match even {
            true => POLICIES
                .replace("TURN", "PUT")
                .replace("CALL", "GetCart, WatchCart")
                .replace("NAME", "even.test"),
            false => {
                POLICIES.replace("TURN", "POST").replace("CALL", "WatchCart").replace("NAME", "odd.test")
            }
        };
        let mut objects = vec![manifests::namespace("shop", "enabled", &BTreeMap::new())];
        for pod in &self.cluster.world.pods {
            let role = if pod.short_name() == "cart" { "serve" } else { "ask" };
            let labels = BTreeMap::from([
                ("app".to_owned(), pod.short_name().to_owned()),
                ("role".to_owned(), role.to_owned()),
            ]);
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
        objects.extend(serde_saphyr::from_multiple::<Value>(&policies)?);
        self.cluster.apply(&objects)?;
        self.changes += 1;
        tally.next(true);
        Ok(())
    }

    /// Starts the clients: a thread in each pod that asks.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn clients(&self, options: &Options, tally: &Arc<Tally>) -> Result<Vec<JoinHandle<Result<()>>>> {
        let mut threads = Vec::new();
        for pod in 0..ASKING {
            let name = format!("shop/ask-{pod}");
            let netns = self.cluster.world.pod(&name).netns.clone();
            let family = Family::BOTH[pod % 2];
            let cart = self.cluster.world.pod("shop/cart").ip(family);
            let at = move |port| SocketAddr::new(cart, port);
            let every = Kind::ALL.len();
            // 40 % keep-alive, 20 % HTTP/2, and the others.
            let share = [40, 20, 10, 10, 10, 10];
            let each = options.connections / ASKING;
            let counts: Vec<(Kind, usize)> =
                (0..every).map(|index| (Kind::ALL[index], (each * share[index] / 100).max(1))).collect();
            let pace = std::time::Duration::from_secs_f64(
                options.connections as f64 / f64::from(options.rate.max(1)),
            );
            let shared =
                clients::Shared { tally: Arc::clone(tally), tls: Arc::clone(&self.certified.client), pace };
            threads.push(
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || netns.block_on(|| clients::run(shared, counts, at))?)?,
            );
        }
        Ok(threads)
    }
}
