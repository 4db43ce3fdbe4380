//! What each endpoint of the node holds of the worker: connections, HTTP/2 streams, and bytes that were read and have
//! not gone on.
//!
//! The endpoint is the pod on this node that a connection is of: its client, where that is one, else its server. So a
//! tenant is charged for what it opens, and for what is opened to it, and no other tenant is. A connection's first
//! [`CONNECTION_BYTES`] are in its own price; what it holds beyond them is its endpoint's. Knows nothing of protocols,
//! sockets or verdicts. Called by [`Proxy`](crate::proxy::Proxy) and by the servers of the protocols.

use crate::judge::Leg;
use crate::limits::{
    CONNECTION_BYTES, CONNECTION_STREAMS, CONNECTIONS, CONNECTIONS_PER_ENDPOINT, CONNECTIONS_PER_SOURCE,
    ENDPOINT_BYTES, ENDPOINT_STREAMS, STREAMS_AT_ONCE,
};
use crate::state::View;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why there is no place for another connection. Told in its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The source has as many as it may.
    Source,
    /// The endpoint has.
    Endpoint,
    /// The worker has.
    Worker,
}

impl Full {
    /// As a record says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source_connections",
            Self::Endpoint => "endpoint_connections",
            Self::Worker => "connections",
        }
    }
}

/// What one endpoint holds.
#[derive(Debug, Default)]
struct Share {
    bytes: AtomicUsize,
    streams: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    all: usize,
    sources: HashMap<IpAddr, u32>,
    endpoints: HashMap<IpAddr, (u32, Arc<Share>)>,
}

/// What every endpoint holds, of all threads. Who has no connection is not in it. Its lock is taken when a connection begins
/// and when it ends, never for a request.
#[derive(Debug, Default)]
pub struct Shares(Mutex<Table>);

impl Shares {
    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere leaves the counts whole: each change is done before anything can fail.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more connection.
    ///
    /// # Errors
    /// Who has none left.
    pub fn place(self: &Arc<Self>, view: &View, leg: &Leg) -> Result<Place, Full> {
        let (source, endpoint) = (leg.source.ip(), endpoint(view, leg));
        let mut table = self.table();
        if table.all >= CONNECTIONS {
            return Err(Full::Worker);
        }
        if table.sources.get(&source).is_some_and(|count| *count >= CONNECTIONS_PER_SOURCE) {
            return Err(Full::Source);
        }
        let (count, share) = table.endpoints.entry(endpoint).or_default();
        if *count >= CONNECTIONS_PER_ENDPOINT {
            return Err(Full::Endpoint);
        }
        *count += 1;
        let share = share.clone();
        *table.sources.entry(source).or_default() += 1;
        table.all += 1;
        drop(table);
        Ok(Place { shares: self.clone(), source, endpoint, share })
    }

    /// How many streams the connections of an endpoint have beyond their own.
    #[must_use]
    pub fn streams_of(&self, endpoint: IpAddr) -> usize {
        let table = self.table();
        table.endpoints.get(&endpoint).map_or(0, |(_, share)| share.streams.load(Ordering::Relaxed))
    }

    /// How many connections an endpoint has, by its first address, and how many bytes it holds.
    #[must_use]
    pub fn of(&self, endpoint: IpAddr) -> (u32, usize) {
        let table = self.table();
        let held = table.endpoints.get(&endpoint);
        held.map_or((0, 0), |(count, share)| (*count, share.bytes.load(Ordering::Relaxed)))
    }
}

/// Whose a connection is: an endpoint with several addresses is one.
fn endpoint(view: &View, leg: &Leg) -> IpAddr {
    let known = |address: IpAddr| {
        let found = view.snapshot.endpoint_at(address)?;
        Some(found.addresses.first().copied().unwrap_or(address))
    };
    let (source, destination) = (leg.source.ip(), leg.destination.ip());
    known(source).or_else(|| known(destination)).unwrap_or(destination)
}

/// One connection's place.
#[derive(Debug)]
pub struct Place {
    shares: Arc<Shares>,
    source: IpAddr,
    endpoint: IpAddr,
    share: Arc<Share>,
}

impl Place {
    /// Whose it is, by its first address.
    #[must_use]
    pub const fn endpoint(&self) -> IpAddr {
        self.endpoint
    }

    /// What the connection holds, to be kept up to date by whoever serves it.
    #[must_use]
    pub fn charge(&self) -> Charge {
        Charge { share: self.share.clone(), charged: 0 }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.shares.table();
        table.all -= 1;
        if let Some(count) = table.sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                table.sources.remove(&self.source);
            }
        }
        if let Some((count, _)) = table.endpoints.get_mut(&self.endpoint) {
            *count -= 1;
            if *count == 0 {
                table.endpoints.remove(&self.endpoint);
            }
        }
    }
}

/// What one connection holds of its endpoint's bytes.
#[derive(Debug, Default)]
pub struct Charge {
    share: Arc<Share>,
    charged: usize,
}

impl Charge {
    /// The connection holds so many bytes now. `false`: more than its own, and its endpoint holds too many: it may take
    /// no more until it has fewer.
    pub fn set(&mut self, held: usize) -> bool {
        let beyond = held.saturating_sub(CONNECTION_BYTES);
        // Nearly always: a connection that goes well keeps nothing, and touches nothing that others touch.
        if beyond == 0 && self.charged == 0 {
            return true;
        }
        let before = if beyond >= self.charged {
            self.share.bytes.fetch_add(beyond - self.charged, Ordering::Relaxed)
        } else {
            self.share.bytes.fetch_sub(self.charged - beyond, Ordering::Relaxed)
        };
        let all = (before + beyond).saturating_sub(self.charged);
        self.charged = beyond;
        beyond == 0 || all <= ENDPOINT_BYTES
    }

    /// What the connection has of its endpoint's streams.
    #[must_use]
    pub fn streams(&self) -> Streams {
        Streams { share: self.share.clone(), taken: 0 }
    }

    /// Its endpoint's, for those who serve several streams at once.
    #[must_use]
    pub fn crowd(&self) -> Crowd {
        Crowd(self.share.clone())
    }
}

/// What an endpoint holds, as those see it who charge it piece by piece.
#[derive(Clone, Debug)]
pub struct Crowd(Arc<Share>);

impl Crowd {
    /// Charges so many bytes for as long as what is returned lives. `None`: the endpoint holds too many.
    #[must_use]
    pub fn hold(&self, bytes: usize) -> Option<Charge> {
        let all = self.0.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let charge = Charge { share: self.0.clone(), charged: bytes };
        (all <= ENDPOINT_BYTES).then_some(charge)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What one connection has of its endpoint's streams.
#[derive(Debug, Default)]
pub struct Streams {
    share: Arc<Share>,
    /// Beyond its own, in whole [`STREAMS_AT_ONCE`].
    taken: usize,
}

impl Streams {
    /// The connection has so many open now. `false`: more than before, and its endpoint has too many: it may not.
    pub fn set(&mut self, open: usize) -> bool {
        let beyond = open.saturating_sub(CONNECTION_STREAMS);
        // Some are kept for the next, but not by a connection that is nearly idle.
        let spare = if open * 2 > CONNECTION_STREAMS { 2 * STREAMS_AT_ONCE } else { 1 };
        if beyond <= self.taken && self.taken < beyond + spare {
            return true;
        }
        let wanted = beyond.next_multiple_of(STREAMS_AT_ONCE);
        if let Some(more) = wanted.checked_sub(self.taken) {
            let all = self.share.streams.fetch_add(more, Ordering::Relaxed) + more;
            if all > ENDPOINT_STREAMS {
                self.share.streams.fetch_sub(more, Ordering::Relaxed);
                return false;
            }
        } else {
            self.share.streams.fetch_sub(self.taken - wanted, Ordering::Relaxed);
        }
        self.taken = wanted;
        true
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.set(0);
    }
}
