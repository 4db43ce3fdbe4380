//! The feed from control: snapshots come, acks and reports go, over a Unix socket, again and again.
//!
//! Decodes whole or refuses whole. Knows nothing of rows or of workers. A control that is away is no error: the last
//! snapshot stays in force.

use sluice_policy::Snapshot;
use sluice_wire::pb;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

/// The first wait before control is dialled again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Messages on their way to control: more are dropped, a report at a time.
const OUTBOX: usize = 16;

/// Where the feed is and who follows it.
#[derive(Debug)]
pub(super) struct Feed {
    /// `unix:/path`.
    pub(super) control: String,
    /// The node's name.
    pub(super) node: String,
    /// The generation in force, for the next hello.
    pub(super) generation: Arc<AtomicU64>,
}

impl Feed {
    /// Checks the address.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let path = self.control.strip_prefix("unix:").filter(|path| path.starts_with('/'));
        anyhow::ensure!(path.is_some(), "--control {}: write unix: and an absolute path", self.control);
        Ok(())
    }

    /// Follows control for ever. `outgoing` is what is said to it; said while it is away, it is lost.
    pub(super) async fn follow(
        self,
        snapshots: mpsc::Sender<Snapshot>,
        mut outgoing: mpsc::Receiver<pb::FromNode>,
    ) {
        let mut backoff = BACKOFF.0;
        let mut away = false;
        loop {
            match self.connection(&snapshots, &mut outgoing, &mut backoff).await {
                Ok(()) => return,
                Err(reason) if !away => {
                    tracing::warn!(control = self.control, reason, "control is away; what is in force stays");
                    away = true;
                }
                Err(reason) => tracing::debug!(control = self.control, reason, "control is away"),
            }
            if backoff == BACKOFF.0 {
                away = false;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
            while outgoing.try_recv().is_ok() {}
        }
    }

    /// One connection. `Ok`: the agent wants no more.
    async fn connection(
        &self,
        snapshots: &mpsc::Sender<Snapshot>,
        outgoing: &mut mpsc::Receiver<pb::FromNode>,
        backoff: &mut Duration,
    ) -> Result<(), String> {
        let endpoint = Endpoint::from_shared(self.control.clone()).map_err(|error| error.to_string())?;
        let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
        let (out, stream) = mpsc::channel(OUTBOX);
        let hello = sluice_wire::hello(&self.node, self.generation.load(Ordering::Relaxed));
        let gone = |_| "the connection ended".to_owned();
        out.send(hello).await.map_err(|error| error.to_string())?;
        let mut client = sluice_wire::feed_client(channel);
        let subscribed = client.subscribe(ReceiverStream::new(stream)).await;
        let mut messages = subscribed.map_err(|status| status.to_string())?.into_inner();
        tracing::info!(control = self.control, node = self.node, "following control");
        *backoff = BACKOFF.0;
        loop {
            tokio::select! {
                message = messages.message() => {
                    let message = message.map_err(|status| status.to_string())?.ok_or("control closed the feed")?;
                    let Some(pb::to_node::Message::Snapshot(snapshot)) = message.message else { continue };
                    match decode(snapshot).await {
                        Ok(snapshot) => if snapshots.send(snapshot).await.is_err() {
                            return Ok(());
                        },
                        Err(ack) => out.send(sluice_wire::ack(ack)).await.map_err(gone)?,
                    }
                }
                Some(message) = outgoing.recv() => out.send(message).await.map_err(gone)?,
            }
        }
    }
}

/// The snapshot, or the ack that refuses it.
async fn decode(message: pb::Snapshot) -> Result<Snapshot, pb::Ack> {
    let generation = message.generation;
    // Regular expressions take milliseconds to build.
    let decoded = tokio::task::spawn_blocking(move || sluice_wire::decode(message)).await;
    let rejected = match decoded {
        Ok(Ok(snapshot)) => return Ok(snapshot),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    tracing::error!(generation, rejected, "a snapshot is refused whole; the one before stays in force");
    Err(pb::Ack { generation, rejected, ..pb::Ack::default() })
}
