//! Our worker, as its agent runs it: a process of its own, with the listeners and a snapshot, telling its records.
//!
//! This process is its agent: it takes the records off the socket and counts what was lost of them. It does so on the
//! core of the loads, where its own time is nobody's but theirs.

use crate::common::{Rules, http, shop, snapshot};
use crate::world::{CLIENT, SECOND, SERVER, World, listener};
use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use sluice_policy::{ClassId, Conditions, PathMatch, PolicyId, Prefix, Regex, Snapshot};
use sluice_proxy::agent::child::{Launch, start};
use sluice_proxy::channel::{FromWorker, ToWorker};
use sluice_proxy::confine::User;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::process::Child;

/// What is heard of records alone: that there were some, and what was lost.
#[derive(Clone, PartialEq, prost::Message)]
struct Heard {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    records: Vec<Bytes>,
    #[prost(uint64, tag = "3")]
    dropped: u64,
}

/// What was heard so far.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) records: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

/// The policy that all have: one of ours, on the server; after so many others on the same server, of which each lets the
/// same client ask for something else.
fn policy(others: u32) -> Result<Arc<Snapshot>> {
    let path = |pattern: &str| Regex::new(pattern).map(|regex| Some(PathMatch::Regex(regex)));
    let wrong = |_| anyhow::anyhow!("the patterns are right");
    let items = vec![
        http(&["GET"], path("/public/.*").map_err(wrong)?),
        http(&["POST"], path("/api/v[0-9]+/items").map_err(wrong)?),
    ];
    let mut snapshot = (*snapshot(1, &Rules { http: items, grpc: Vec::new(), ..shop() })).clone();
    let (client, server) = (IpAddr::V4(CLIENT), IpAddr::V4(SERVER));
    for client in [client, IpAddr::V4(SECOND)] {
        snapshot.addresses.insert(Prefix::host(client), ClassId(1));
    }
    let mut endpoint = (*snapshot.endpoints[0]).clone();
    endpoint.addresses = vec![server];
    snapshot.endpoints = vec![Arc::new(endpoint)].into();
    let frontend = snapshot.workloads.values().next().cloned().context("the frontend")?;
    snapshot.workloads = [(client, frontend)].into();
    let mut profiles = snapshot.profiles.to_vec();
    let layer = &mut profiles[0].ingress.layers[1];
    for number in 1..=others {
        let mut policy = (*snapshot.policies[0]).clone();
        (policy.id, policy.origin.name) = (PolicyId(number), format!("other-{number}").into());
        let (policy, path) = (Arc::new(policy), path(&format!("/team-{number}/.*")).map_err(wrong)?);
        let conditions = Conditions { http: vec![http(&["GET"], path)], ..Conditions::default() };
        let (mut rule, mut isolation) = (layer.allow[0].clone(), layer.isolation[0].clone());
        (rule.policy, rule.conditions) = (policy.clone(), Some(Arc::new(conditions)));
        isolation.policy = policy.clone();
        layer.allow.push(rule);
        layer.isolation.push(isolation);
        snapshot.policies.push(policy);
    }
    // The one that is used comes last.
    layer.allow.rotate_left(1);
    snapshot.profiles = profiles.into();
    Ok(Arc::new(snapshot))
}

/// Starts a worker for these ports.
pub(crate) async fn run(
    binary: PathBuf,
    ports: [u16; 2],
    others: u32,
    world: &World,
) -> Result<(Child, Arc<Told>)> {
    let listeners = ports.into_iter().map(listener).collect::<Result<_, _>>()?;
    let launch = Launch {
        binary,
        netns: world.node.try_clone()?.into(),
        listeners,
        threads: 1,
        user: User::default(),
        patient: false,
    };
    let (child, mut sender, mut receiver) = start(&launch)?;
    let bytes = Bytes::from(sluice_wire::to_bytes(&*policy(others)?));
    sender.send(&ToWorker { sequence: 1, snapshot: Some(bytes), ..ToWorker::default() }).await?;
    let first = receiver.receive::<FromWorker>().await?.and_then(|message| message.swapped);
    let refused = first.context("the worker says what became of its snapshot")?.refused;
    ensure!(refused.is_empty(), "{refused}");
    let told = Arc::new(Told::default());
    let telling = told.clone();
    tokio::spawn(async move {
        // Kept: its end would be the worker's.
        let _sender = sender;
        while let Ok(Some(heard)) = receiver.receive::<Heard>().await {
            telling.records.fetch_add(heard.records.len() as u64, Ordering::Relaxed);
            telling.dropped.store(heard.dropped, Ordering::Relaxed);
        }
    });
    Ok((child, told))
}
