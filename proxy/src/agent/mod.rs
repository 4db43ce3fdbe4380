//! The agent: privileged, and deaf to strangers.
//!
//! Owns the loader, the listeners, the feed and the telemetry's sockets; everything that reads what pods send is its
//! [`child`]. Stays in the node's network namespace. Knows nothing of HTTP.

pub mod child;
mod engine;
mod feed;
mod links;
mod records;
mod store;

use crate::telemetry::settings::Settings;
use anyhow::Context as _;
use child::Launch;
use engine::Engine;
use feed::Feed;
use records::Records;
use sluice_redirect::{Node, NodeConfig};
use std::path::PathBuf;
use std::sync::Arc;
use store::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What `sluice-proxy run` was told.
#[derive(Debug)]
pub struct Options {
    /// For the loader.
    pub node: NodeConfig,
    /// The node's name.
    pub name: String,
    /// `unix:/path`.
    pub control: String,
    /// Where the last snapshot is kept.
    pub state: Option<PathBuf>,
    /// Where records go.
    pub records: Option<PathBuf>,
}

/// Snapshots that wait to be applied; control sends the newest, and the next one only after it.
const SNAPSHOTS: usize = 2;

/// What waits to be said to control.
const OUTGOING: usize = 16;

/// What waits of the worker's words.
const EVENTS: usize = 16;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// What could not be set up, and what to do about it.
pub fn run(options: Options) -> anyhow::Result<()> {
    let settings = Settings::from_env().map_err(anyhow::Error::msg)?;
    // One thread does everything but what blocks. Also the worker's parent: it must live as long as the agent.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(serve(options, &settings));
    runtime.shutdown_background();
    result
}

async fn serve(options: Options, settings: &Settings) -> anyhow::Result<()> {
    // Before the node is touched: whatever comes from here on, what we hold is put down in order.
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let store =
        options.state.as_deref().map(Store::open).transpose().context("open the --state directory")?;
    let records = Records::open(options.records.as_deref(), settings).context("open --records")?;
    let generation = Arc::default();
    let feed = Feed { control: options.control, node: options.name, generation: Arc::clone(&generation) };
    feed.check()?;

    let node = Node::open(options.node)?;
    let launch = Launch {
        binary: "/proc/self/exe".into(),
        netns: node.proxy_netns().try_clone_to_owned().context("keep the proxy's network namespace")?,
        listeners: {
            let (v4, v6) = node.listener()?;
            vec![v4, v6]
        },
    };
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let (events, mut from_worker) = mpsc::channel(EVENTS);
    let (snapshots, mut from_feed) = mpsc::channel(SNAPSHOTS);
    let (outgoing, to_control) = mpsc::channel(OUTGOING);
    let supervisor = tokio::spawn(child::supervise(launch, events, drain.clone(), stop.clone()));
    let mut engine =
        Engine::new(node, store, records, outgoing, generation).context("watch the node's devices")?;
    engine.start().await;
    tokio::spawn(feed.follow(snapshots, to_control));
    tracing::info!("running");
    let ended = tokio::select! {
        never = engine.run(&mut from_worker, &mut from_feed) => never,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    tracing::info!("draining");
    drain.cancel();
    engine.drain(&mut from_worker, &mut from_feed).await;
    stop.cancel();
    // Nobody reads its events any more: it must not wait for that.
    drop(from_worker);
    let _ = supervisor.await;
    engine.release().await?;
    ended
}
