//! The connections to servers that one client's HTTP/2 connection has: one, or for a Service one for each backend that
//! streams were sent to.
//!
//! They are the client's own and end with it, each after its last stream. A server that takes no more streams is
//! replaced, and harms no stream at another. Knows nothing of requests or of policy.

use super::client;
use crate::answer::Refusal;
use crate::limits::{H2_HANDSHAKE_TIMEOUT, UPSTREAMS};
use crate::proxy::Proxy;
use crate::service::route::Target;
use crate::share::Place;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use tokio::sync::{Mutex, OnceCell};
use tokio_util::sync::CancellationToken;

/// The connection to one server, dialled by whichever stream needs it first. Every stream on it holds it.
#[derive(Debug)]
pub(super) struct Server {
    at: SocketAddr,
    send: OnceCell<SendRequest<Bytes>>,
    /// Asks whether it has said its settings.
    ping: Mutex<Option<PingPong>>,
    /// It has.
    heard: OnceCell<()>,
    /// The connection has ended, or wants to.
    gone: CancellationToken,
    /// Each but the first counts as a connection of the source.
    place: Option<Place>,
}

impl Server {
    fn new(at: SocketAddr, gone: CancellationToken, place: Option<Place>) -> Arc<Self> {
        let (send, ping, heard) = Default::default();
        Arc::new(Self { at, send, ping, heard, gone, place })
    }

    /// Takes no more streams.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// The server has said that it wants no more streams.
    pub(super) fn leaves(&self) {
        self.gone.cancel();
    }

    /// The handle that opens streams.
    pub(super) async fn connected(
        &self,
        proxy: &Proxy,
        target: &Target,
    ) -> Result<SendRequest<Bytes>, Refusal> {
        self.send.get_or_try_init(|| self.connect(proxy, target)).await.cloned()
    }

    /// Whether it takes extended CONNECT: nobody knows before it has said its settings, the first thing that it says.
    pub(super) async fn takes_upgrades(&self, send: &SendRequest<Bytes>) -> Result<bool, Refusal> {
        let hear = async {
            let mut ping = self.ping.lock().await;
            let ping = ping.as_mut().ok_or(Refusal::BadAnswer("no HTTP/2"))?;
            // One that was sent for a stream that has gone since is as good.
            let _ = ping.send_ping(Ping::opaque());
            match tokio::time::timeout(H2_HANDSHAKE_TIMEOUT, poll_fn(|cx| ping.poll_pong(cx))).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) => Err(Refusal::BadAnswer("no HTTP/2")),
                Err(_) => Err(Refusal::Timeout),
            }
        };
        self.heard.get_or_try_init(|| hear).await?;
        Ok(send.is_extended_connect_protocol_enabled())
    }

    async fn connect(&self, proxy: &Proxy, target: &Target) -> Result<SendRequest<Bytes>, Refusal> {
        let stream = proxy.dial(target).await?;
        let handshake = client().handshake(stream);
        let (send, mut connection) = tokio::time::timeout(H2_HANDSHAKE_TIMEOUT, handshake)
            .await
            .map_err(|_| Refusal::Timeout)?
            .map_err(|_| Refusal::BadAnswer("no HTTP/2"))?;
        *self.ping.lock().await = connection.ping_pong();
        let gone = self.gone.clone();
        // Ends when the server's connection does, or when the last stream and the client's connection are gone.
        tokio::spawn(async move {
            let _ = connection.await;
            gone.cancel();
        });
        Ok(send)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Upstreams(std::sync::Mutex<Vec<Arc<Server>>>);

impl Upstreams {
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Server>>> {
        // A panic elsewhere leaves the list whole: each change is one call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the connections lead, if there may be no more of them.
    pub(super) fn full(&self) -> Option<Vec<SocketAddr>> {
        let list = self.list();
        (list.len() >= UPSTREAMS).then(|| list.iter().map(|server| server.at).collect())
    }

    /// The connection of a client whose destination is none of a Service: there is one, and the client goes with it.
    pub(super) fn only(&self, at: SocketAddr, gone: &CancellationToken) -> Arc<Server> {
        let mut list = self.list();
        if let Some(server) = list.first() {
            return server.clone();
        }
        let server = Server::new(at, gone.clone(), None);
        list.push(server.clone());
        server
    }

    /// The connection to a backend: the one there is, or a new one. `None`: the source may have no more connections.
    pub(super) fn to(&self, proxy: &Arc<Proxy>, target: &Target) -> Option<Arc<Server>> {
        let at = target.leg.destination;
        let mut list = self.list();
        // What leads to a backend that has left the Service takes nothing new, and ends with its last stream.
        let stays = |at: SocketAddr| match &target.service {
            Some(vip) => vip.group_of(at).is_some(),
            None => at == target.leg.destination,
        };
        list.retain(|server| !server.is_gone() && stays(server.at));
        if let Some(server) = list.iter().find(|server| server.at == at) {
            return Some(server.clone());
        }
        let more = || proxy.place(&proxy.state.view(), &target.leg).ok();
        let place = match list.len() {
            0 => None,
            length => {
                let another = if length < UPSTREAMS { more() } else { None };
                match another {
                    Some(place) => Some(place),
                    None => make_way(&mut list).or_else(|| more().map(Some))?,
                }
            }
        };
        let server = Server::new(at, CancellationToken::new(), place);
        list.push(server.clone());
        Some(server)
    }

    /// Forgets a connection: it ends with its last stream.
    pub(super) fn forget(&self, server: &Arc<Server>) {
        self.list().retain(|other| !Arc::ptr_eq(other, server));
    }
}

/// Closes a connection on which there is no stream, if there is one; its place is free.
fn make_way(list: &mut Vec<Arc<Server>>) -> Option<Option<Place>> {
    // Who holds a server has taken it from the list, which is ours alone now.
    let idle = list.iter().position(|server| Arc::strong_count(server) == 1)?;
    Arc::into_inner(list.remove(idle)).map(|server| server.place)
}
