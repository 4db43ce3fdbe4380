//! Between agent and worker: descriptors once, then frames both ways over one Unix socket.
//!
//! The two are always the same build, so the format has no version. Knows nothing of what a snapshot says. The
//! socket's end is each side's sign that the other is gone.

use crate::limits::{FRAME_BYTES, QUEUES};
use crate::record::Record;
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

/// From agent to worker.
#[derive(Clone, PartialEq, Message)]
pub struct ToWorker {
    /// The agent's number of the snapshot; comes back in [`Swapped`].
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// A snapshot to put in force, as sluice-wire writes it to a file.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub snapshot: Option<Bytes>,
    /// End every connection after what it is doing.
    #[prost(bool, tag = "3")]
    pub drain: bool,
    /// How long that may take, in milliseconds.
    #[prost(uint64, tag = "4")]
    pub patience: u64,
}

/// From worker to agent.
#[derive(Clone, PartialEq, Message)]
pub struct FromWorker {
    /// A snapshot is in force and open flows were judged by it.
    #[prost(message, optional, tag = "1")]
    pub swapped: Option<Swapped>,
    /// What happened.
    #[prost(message, repeated, tag = "2")]
    pub records: Vec<Record>,
    /// Records dropped since the worker began.
    #[prost(uint64, tag = "3")]
    pub dropped: u64,
    /// Every connection has ended, or its time is up.
    #[prost(bool, tag = "4")]
    pub drained: bool,
}

/// What became of a snapshot in the worker.
#[derive(Clone, PartialEq, Message)]
pub struct Swapped {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// How many open flows lost their permission.
    #[prost(uint64, tag = "2")]
    pub cut: u64,
    /// Why the snapshot was not taken; empty if it was.
    #[prost(string, tag = "3")]
    pub refused: String,
}

/// The end that sends.
#[derive(Debug)]
pub struct Sender(FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>);

/// The end that receives. Apart from the other: were both sides to send before they receive, neither would end.
#[derive(Debug)]
pub struct Receiver(FramedRead<OwnedReadHalf, LengthDelimitedCodec>);

/// Both ends of one side.
///
/// # Errors
/// If the socket cannot be made non-blocking, or there is no runtime.
pub fn open(socket: OwnedFd) -> io::Result<(Sender, Receiver)> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let (read, write) = UnixStream::from_std(socket)?.into_split();
    let codec = || LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES).new_codec();
    Ok((Sender(FramedWrite::new(write, codec())), Receiver(FramedRead::new(read, codec()))))
}

impl Sender {
    /// Sends one message, with records that are its fields already.
    ///
    /// # Errors
    /// If the other end is gone.
    pub async fn tell(&mut self, mut records: Vec<u8>, message: &FromWorker) -> io::Result<()> {
        message.encode(&mut records).map_err(io::Error::other)?;
        self.0.send(Bytes::from(records)).await
    }

    /// Sends one message.
    ///
    /// # Errors
    /// If the other end is gone.
    pub async fn send(&mut self, message: &impl Message) -> io::Result<()> {
        self.0.send(Bytes::from(message.encode_to_vec())).await
    }
}

impl Receiver {
    /// The next message; `None` when the other end is gone. May be dropped and called again.
    ///
    /// # Errors
    /// If what came is no message.
    pub async fn receive<M: Message + Default>(&mut self) -> io::Result<Option<M>> {
        match self.0.next().await {
            None => Ok(None),
            Some(frame) => M::decode(frame?).map(Some).map_err(io::Error::other),
        }
    }
}

/// The most descriptors that one message carries: the namespace, and for each accept queue a listener of both families.
const DESCRIPTORS: usize = 1 + 2 * QUEUES as usize;

/// Both ends of a new channel, closed in children that are not meant to have them.
///
/// # Errors
/// What the kernel says.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    Ok(rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        flags,
        None,
    )?)
}

/// Sends descriptors, before anything else is sent.
///
/// # Errors
/// What the kernel says.
pub fn send_descriptors(socket: impl AsFd, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if descriptors.len() > DESCRIPTORS || !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a message carries"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives the descriptors that [`send_descriptors`] sent.
///
/// # Errors
/// What the kernel says.
pub fn receive_descriptors(socket: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::with_capacity(DESCRIPTORS);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            descriptors.extend(received);
        }
    }
    Ok(descriptors)
}
