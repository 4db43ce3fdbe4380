//! The feed's server: one task per subscribed node between its stream and the controller's loop.
//!
//! A node that reads slowly holds up nobody: its task waits, and sends whatever is newest when it reads again.
//! Knows nothing of objects or compiling. Called by tonic.

use crate::heard;
use sluice_wire::pb::from_node::Message;
use sluice_wire::{Feed, WIRE_VERSION, pb};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// A stream must say who it is within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// The newest snapshot for a node; `None` until the first is compiled.
pub type Newest = watch::Receiver<Option<Arc<pb::Snapshot>>>;

/// What a node's stream tells the controller's loop.
#[derive(Debug)]
pub enum Event {
    /// A node subscribed.
    Joined {
        /// The node's name.
        node: String,
        /// This stream; a node may have two while its proxy is replaced.
        stream: u64,
        /// What the node has in force.
        last_generation: u64,
        /// Where its snapshots come from, or why it gets none.
        reply: oneshot::Sender<Result<Newest, String>>,
    },
    /// A stream ended.
    Left {
        /// The node's name.
        node: String,
        /// The stream.
        stream: u64,
    },
    /// What became of a snapshot.
    Acked {
        /// The node's name.
        node: String,
        /// The stream.
        stream: u64,
        /// The node's word.
        ack: pb::Ack,
        /// See [`Turn`].
        turn: Turn,
    },
    /// What happened on the node.
    Reported {
        /// The node's name.
        node: String,
        /// The stream.
        stream: u64,
        /// Flow records received.
        records: u64,
        /// Flow records the node dropped.
        dropped: u64,
        /// What the node knows of its kernel, if it says so this time.
        kernel: Option<heard::Kernel>,
        /// See [`Turn`].
        turn: Turn,
    },
}

/// Held until an event is taken: of each stream one message waits for the loop, and the next is not read before. Else
/// a node that floods would fill the memory of all while the loop compiles.
pub type Turn = OwnedSemaphorePermit;

/// The service.
pub struct FeedService {
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
    streams: AtomicU64,
}

impl FeedService {
    /// A service that tells these events and ends its streams on shutdown.
    #[must_use]
    pub fn new(events: mpsc::Sender<Event>, shutdown: CancellationToken) -> Self {
        Self { events, shutdown, streams: AtomicU64::new(0) }
    }
}

#[tonic::async_trait]
impl Feed for FeedService {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<pb::ToNode, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<pb::FromNode>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let mut incoming = request.into_inner();
        let hello = tokio::time::timeout(HELLO_WITHIN, hello(&mut incoming))
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello within 10 s"))??;
        let stream = self.streams.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        let joined =
            Event::Joined { node: hello.node.clone(), stream, last_generation: hello.last_generation, reply };
        self.events.send(joined).await.map_err(|_| stopping())?;
        let newest = answer.await.map_err(|_| stopping())?.map_err(Status::resource_exhausted)?;
        // One message waits while the node reads another; newer ones replace each other in `newest`.
        let (out, outgoing) = mpsc::channel(1);
        let session = Session {
            node: hello.node,
            stream,
            incoming,
            newest,
            out,
            events: self.events.clone(),
            shutdown: self.shutdown.clone(),
            turn: Arc::new(Semaphore::new(1)),
        };
        tokio::spawn(session.run());
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

fn stopping() -> Status {
    Status::unavailable("control is stopping; the node keeps what it has and should come again")
}

async fn hello(incoming: &mut Streaming<pb::FromNode>) -> Result<pb::Hello, Status> {
    let first = incoming.message().await?.and_then(|message| message.message);
    let Some(Message::Hello(hello)) = first else {
        return Err(Status::invalid_argument("the first message of a node is Hello"));
    };
    if hello.wire_version != WIRE_VERSION {
        let text = format!(
            "node {} reads snapshots of version {}, this control writes {WIRE_VERSION}: run one release of both",
            hello.node, hello.wire_version
        );
        return Err(Status::failed_precondition(text));
    }
    if !heard::is_node_name(&hello.node) {
        return Err(Status::invalid_argument("Hello.node is the node's name, as in the pods' spec.nodeName"));
    }
    Ok(hello)
}

/// One node's stream.
struct Session {
    node: String,
    stream: u64,
    incoming: Streaming<pb::FromNode>,
    newest: Newest,
    out: mpsc::Sender<Result<pb::ToNode, Status>>,
    events: mpsc::Sender<Event>,
    shutdown: CancellationToken,
    turn: Arc<Semaphore>,
}

impl Session {
    async fn run(mut self) {
        self.newest.mark_changed();
        let mut pending = false;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => {
                    self.say_stopping();
                    break;
                }
                message = self.incoming.message() => match message {
                    Ok(Some(message)) => if self.tell(message).await.is_err() { break },
                    Ok(None) => break,
                    Err(status) => {
                        tracing::debug!(node = self.node, "the stream broke: {status}");
                        break;
                    }
                },
                changed = self.newest.changed(), if !pending => {
                    // The loop is gone, which it is on shutdown alone.
                    if changed.is_err() {
                        self.say_stopping();
                        break;
                    }
                    pending = true;
                },
                permit = self.out.reserve(), if pending => match permit {
                    Ok(permit) => {
                        let newest = self.newest.borrow_and_update().clone();
                        if let Some(snapshot) = newest {
                            permit.send(Ok(sluice_wire::to_node((*snapshot).clone())));
                        }
                        pending = false;
                    }
                    Err(_) => break,
                },
            }
        }
        let left = Event::Left { node: self.node, stream: self.stream };
        // The loop has ended: nobody keeps count any more.
        let _ = self.events.send(left).await;
    }

    /// The node reads the reason if it has room for it; it comes again in any case.
    fn say_stopping(&self) {
        let _ = self.out.try_send(Err(stopping()));
    }

    /// Waits until the loop has taken what this stream said before.
    async fn tell(&self, message: pb::FromNode) -> Result<(), ()> {
        let (node, stream) = (self.node.clone(), self.stream);
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| ())?;
        let event = match message.message {
            Some(Message::Ack(ack)) => Event::Acked { node, stream, ack: heard::ack(ack), turn },
            Some(Message::Report(report)) => Event::Reported {
                node,
                stream,
                records: report.records.len() as u64,
                dropped: report.dropped,
                kernel: report.kernel.map(heard::kernel),
                turn,
            },
            Some(Message::Hello(_)) | None => {
                tracing::warn!(node, "sent a message that has no place here: ignored");
                return Ok(());
            }
        };
        self.events.send(event).await.map_err(|_| ())
    }
}
