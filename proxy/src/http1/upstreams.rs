//! The connections to servers that one client's connection has: one, or for a Service one for each backend that its
//! requests were allowed to.
//!
//! They are the client's own and go with it. No more than [`UPSTREAMS`]: then the one that was idle longest goes.

use super::body::let_go;
use crate::limits::UPSTREAMS;
use crate::proxy::Proxy;
use crate::service::route::Target;
use crate::share::Place;
use crate::tunnel::Server;
use bytes::BytesMut;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use tokio::net::TcpStream;

/// The server's end of a connection.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) at: SocketAddr,
    pub(crate) stream: TcpStream,
    pub(crate) buf: BytesMut,
    /// It has answered before: if it is gone now, the client may be told by closing.
    pub(crate) reused: bool,
    /// Each but the first counts as a connection of the source.
    place: Option<Place>,
}

impl Upstream {
    pub(crate) fn new(at: SocketAddr, stream: TcpStream, place: Option<Place>) -> Self {
        Self { at, stream, buf: BytesMut::new(), reused: false, place }
    }

    /// Ready when the server has closed, or says something that nobody asked for.
    fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.buf.is_empty() {
            return Poll::Ready(());
        }
        loop {
            let readable = ready!(self.stream.poll_read_ready(cx));
            match self.stream.try_read(&mut [0]) {
                // Readable was said in error, and is taken back.
                Err(error) if readable.is_ok() && error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return Poll::Ready(()),
            }
        }
    }
}

/// Idle connections; the one that was used last is the last.
#[derive(Debug, Default)]
pub(super) struct Upstreams {
    list: Vec<Upstream>,
    /// The backend that was chosen with the connection: it gets every request that it may have.
    home: Option<SocketAddr>,
}

impl Upstreams {
    /// Where they lead: to the first backend, then to the one that was used last.
    pub(super) fn open(&self) -> Vec<SocketAddr> {
        self.home.into_iter().chain(self.list.iter().rev().map(|upstream| upstream.at)).collect()
    }

    /// A connection to this backend came about, or did not.
    pub(super) fn dialled(&mut self, at: SocketAddr, connected: bool) {
        if connected {
            self.home.get_or_insert(at);
        } else {
            self.home = self.home.filter(|home| *home != at);
        }
    }

    /// Takes the connection to a server out.
    pub(super) fn take(&mut self, at: SocketAddr) -> Option<Upstream> {
        let place = self.list.iter().position(|upstream| upstream.at == at)?;
        Some(self.list.remove(place))
    }

    /// Puts a connection back that may carry another request.
    pub(super) fn put(&mut self, mut upstream: Upstream) {
        let_go(&mut upstream.buf);
        self.list.push(upstream);
    }

    /// Closes what leads to a backend that has left its Service: it is not going to be taken again.
    pub(super) fn forget_others(&mut self, target: &Target) {
        let stays = |at: SocketAddr| match &target.service {
            Some(vip) => vip.group_of(at).is_some(),
            None => at == target.leg.destination,
        };
        self.list.retain(|upstream| stays(upstream.at));
        self.home = self.home.filter(|home| stays(*home));
    }

    /// Makes room for one more; returns its place among the source's connections, if it needs one. Where there is
    /// none, the one that was idle longest makes way.
    pub(super) fn make_room(&mut self, proxy: &Proxy, target: &Target) -> Option<Place> {
        if self.list.is_empty() {
            return None;
        }
        let room = self.list.len() < UPSTREAMS;
        let place = room.then(|| proxy.place(&proxy.state.view(), &target.leg).ok()).flatten();
        place.or_else(|| self.list.remove(0).place)
    }

    /// Ready when the last of them is closed. Those that close before are forgotten.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.list.is_empty() {
            return Poll::Pending;
        }
        self.list.retain(|upstream| upstream.poll_left(cx).is_pending());
        if self.list.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// As a tunnel takes them.
    pub(super) fn into_servers(self) -> Vec<Server> {
        self.list.into_iter().map(|upstream| (upstream.at, upstream.stream, upstream.buf.freeze())).collect()
    }
}
