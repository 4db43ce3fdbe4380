//! The proxy beside other proxies: what a request costs each of them, in one run, taken in turn.
//!
//! Three network namespaces, a client's, a node's and a server's; the proxies run in the node's on a core of their own,
//! the client and the server share another one. All have the same policy, which is tried before anything is measured.
//! `cargo xtask bench proxy` runs it, as root. Knows the proxy as its agent does: by the worker's socket alone.
//!
//! Arguments, all optional: `--json`, `rounds=N`, `millis=N`, `peers=a,b`, `scenarios=a,b`.

#[path = "../../tests/common/mod.rs"]
mod common;

mod client;
mod floor;
mod http1;
mod http2;
mod idle;
mod ours;
mod peer;
mod server;
mod table;
mod usage;
mod world;

use anyhow::{Context as _, Result, bail};
use client::{Scenario, Work};
use peer::{Kind, Peer};
use std::time::Duration;
use table::Results;
use world::World;

/// How often everything is measured: the median of an odd number is one of them.
const ROUNDS: usize = 5;
/// How long one measurement takes.
const TIME: Duration = Duration::from_millis(1000);

/// What was asked for.
struct Asked {
    json: bool,
    rounds: usize,
    time: Duration,
    peers: Vec<Kind>,
    scenarios: Vec<Scenario>,
    idle: bool,
}

impl Asked {
    fn read() -> Result<Self> {
        let mut asked = Self {
            json: false,
            rounds: ROUNDS,
            time: TIME,
            peers: Kind::ALL.to_vec(),
            scenarios: Scenario::ALL.to_vec(),
            idle: true,
        };
        for argument in std::env::args().skip(1) {
            match argument.split_once('=') {
                None if argument == "--json" => asked.json = true,
                // What cargo says of itself begins with a dash.
                None if argument.starts_with("--") => {}
                Some(("rounds", number)) => asked.rounds = number.parse::<usize>()?.max(1),
                Some(("millis", number)) => asked.time = Duration::from_millis(number.parse()?),
                Some(("peers", names)) => {
                    asked.peers.retain(|kind| names.split(',').any(|n| n == kind.key()));
                }
                Some(("scenarios", names)) => {
                    asked.scenarios.retain(|scenario| names.split(',').any(|n| n == scenario.key()));
                    asked.idle = names.split(',').any(|name| name == "idle");
                }
                _ => bail!(
                    "{argument}: not known; write rounds=5, millis=1000, peers=…, scenarios=… or --json"
                ),
            }
        }
        Ok(asked)
    }
}

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("floor") {
        return floor::run();
    }
    let asked = Asked::read()?;
    // What else runs here would be measured as well.
    let _ = rustix::process::nice(-10);
    let _alone = usage::Precedence::take();
    usage::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(&asked))
}

async fn measure(asked: &Asked) -> Result<()> {
    let world = World::build()?;
    // Children are started from here, and die with this thread.
    world::enter(&world.node)?;
    let servers = server::start(&world)?;
    let mut peers = Vec::new();
    let mut missing = Vec::new();
    for (place, kind) in asked.peers.iter().enumerate() {
        match Peer::start(*kind, u16::try_from(place)?, &world).await {
            Ok(Some(peer)) => peers.push(peer),
            Ok(None) => missing.push(*kind),
            Err(error) => return Err(error.context(format!("start {}", kind.name()))),
        }
    }
    world::pin(world::LOAD_CORE)?;
    for peer in &peers {
        client::check(&world, peer).await.with_context(|| format!("the policy of {}", peer.kind.name()))?;
    }
    let mut results = Results::new(peers.iter().map(|peer| peer.kind).collect(), missing);
    for round in 0..asked.rounds {
        eprintln!("round {} of {}", round + 1, asked.rounds);
        for scenario in &asked.scenarios {
            // Each round begins with another one.
            for place in 0..peers.len() {
                let at = (place + round) % peers.len();
                let work = Work { scenario: *scenario, time: asked.time };
                let sample = client::run(&world, &peers[at], work).await;
                let name = peers[at].kind.name();
                results.take(*scenario, at, sample.with_context(|| format!("{name}, {}", scenario.name()))?);
            }
        }
    }
    if asked.idle {
        for (place, peer) in peers.iter().enumerate() {
            let sizes = idle::run(&world, peer).await;
            results.idle(place, sizes.with_context(|| format!("{}, idle", peer.kind.name()))?);
        }
    }
    for peer in &peers {
        peer.complain();
    }
    drop(servers);
    println!("{}", table::machine());
    print!("{results}");
    if asked.json {
        println!("{}", results.json());
    }
    Ok(())
}
