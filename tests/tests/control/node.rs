//! A light fake of a node: it subscribes, acknowledges what it is sent as it is told to, and says that it lives.

use crate::plane::Plane;
use anyhow::Result;
use sluice_tests::apiserver::ApiServer;
use sluice_wire::pb::{from_node, to_node};
use sluice_wire::{feed_client, hello, pb};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

/// More often than a real one does.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What a node does with what it is sent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Does {
    /// Everything as it should be.
    Applies,
    /// It refuses it, with this reason.
    Refuses(String),
    /// It lacks the interfaces of all pods.
    Lacks(String),
}

/// A node. Dropping it ends its stream.
pub(crate) struct FakeNode {
    does: watch::Sender<Does>,
    lives: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeNode {
    /// A node that has this generation in force, and subscribes now.
    pub(crate) fn join(server: &ApiServer, plane: &Plane, name: &str, generation: u64) -> Self {
        let (does, told) = watch::channel(Does::Applies);
        let (lives, alive) = watch::channel(true);
        let (socket, name) = (plane.socket(), name.to_owned());
        let task = server.spawn(async move {
            if let Err(error) = run(socket, &name, generation, told, alive).await {
                eprintln!("{name}: {error:#}");
            }
        });
        Self { does, lives, task }
    }

    pub(crate) fn does(&self, does: Does) {
        self.does.send_replace(does);
    }

    /// Whether it says that it lives.
    pub(crate) fn lives(&self, lives: bool) {
        self.lives.send_replace(lives);
    }
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    socket: PathBuf,
    name: &str,
    generation: u64,
    mut does: watch::Receiver<Does>,
    lives: watch::Receiver<bool>,
) -> Result<()> {
    let connect = move |_: tonic::transport::Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
    };
    let channel = tonic::transport::Endpoint::from_static("http://control.invalid")
        .connect_with_connector(tower::service_fn(connect))
        .await?;
    let (say, said) = mpsc::channel(4);
    say.send(hello(name, generation)).await?;
    let mut stream = feed_client(channel).subscribe(ReceiverStream::new(said)).await?.into_inner();
    let mut newest: Option<pb::Snapshot> = None;
    let mut beat = tokio::time::interval(HEARTBEAT);
    loop {
        let say_ack = tokio::select! {
            message = stream.message() => match message?.and_then(|message| message.message) {
                Some(to_node::Message::Snapshot(snapshot)) => {
                    newest = Some(snapshot);
                    true
                }
                None => return Ok(()),
            },
            changed = does.changed() => {
                changed?;
                true
            }
            _ = beat.tick() => false,
        };
        let message = match &newest {
            Some(snapshot) if say_ack => {
                Some(from_node::Message::Ack(ack(snapshot, &does.borrow_and_update().clone())))
            }
            _ if !say_ack && *lives.borrow() => {
                let kernel = Some(pb::Kernel { generation, ..Default::default() });
                Some(from_node::Message::Report(pb::Report { kernel, ..Default::default() }))
            }
            _ => None,
        };
        if let Some(message) = message {
            say.send(pb::FromNode { message: Some(message) }).await?;
        }
    }
}

fn ack(snapshot: &pb::Snapshot, does: &Does) -> pb::Ack {
    let workload = |endpoint: &pb::Endpoint| &snapshot.workloads[endpoint.workload as usize];
    let endpoints: Vec<String> = snapshot
        .endpoints
        .iter()
        .map(|endpoint| format!("{}/{}", workload(endpoint).namespace, workload(endpoint).pod))
        .collect();
    let applied = pb::Ack { generation: snapshot.generation, applied: true, ..Default::default() };
    match does {
        Does::Applies => pb::Ack { attached: endpoints, ..applied },
        Does::Refuses(reason) => pb::Ack { applied: false, rejected: reason.clone(), ..applied },
        Does::Lacks(reason) => {
            let missing = |endpoint| pb::MissingEndpoint { endpoint, reason: reason.clone() };
            pb::Ack { missing: endpoints.into_iter().map(missing).collect(), ..applied }
        }
    }
}
