//! Which of the backends that are allowed is taken: the one of two at random that has less to do.
//!
//! Power of two choices by open requests, as linkerd2-proxy and Envoy's `LEAST_REQUEST` have it: it needs no clock and
//! no history, sees a slow backend at once, and a long gRPC stream weighs as long as it lasts (kube-proxy's random
//! choice sees neither). A backend that has just refused a connection is passed over for a moment, else it would look
//! idle and draw more than its share. Under `sessionAffinity: ClientIP` a client's first backend comes from a hash of
//! both addresses, so that it is the same after a restart, and is remembered, so that a backend that joins later takes
//! no client from another. Knows nothing of policy: it is given who is allowed.

use super::vip::Vip;
use crate::limits::{AFFINITIES, AFFINITY_REST, REFUSED_FOR, REFUSING};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::time::Instant;

/// Shards of the table of loads, for those who serve by several threads.
const SHARDS: usize = 16;

/// A client of one port of a Service.
type Client = (IpAddr, SocketAddr);

/// What the choices so far have left behind: those of one thread, and what it shares with the others.
#[derive(Debug, Default)]
pub struct Balance {
    key: RandomState,
    next: AtomicU64,
    /// Open requests and tunnels; whoever has none is not in it, so it is no larger than the table of open flows. The
    /// thread's own: a backend that is slow is slow to each, and what each spreads evenly is even.
    loads: [Mutex<HashMap<SocketAddr, u32>>; SHARDS],
    common: Arc<Common>,
}

/// What all threads know.
#[derive(Debug)]
struct Common {
    /// What the clock begins with.
    since: Instant,
    /// When a backend refused last, in milliseconds, from 1 on: as long as nobody has for a while, nobody asks who.
    refused: AtomicU64,
    refusing: RwLock<HashMap<SocketAddr, Instant>>,
    /// Asked for Services with `sessionAffinity: ClientIP` alone, once for each choice.
    affinities: Mutex<Affinities>,
}

impl Default for Common {
    fn default() -> Self {
        let (refusing, affinities) = (RwLock::default(), Mutex::default());
        Self { since: Instant::now(), refused: AtomicU64::new(0), refusing, affinities }
    }
}

impl Common {
    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

/// Where each client was sent, and until when that is remembered.
#[derive(Debug, Default)]
struct Affinities {
    by_client: HashMap<Client, (SocketAddr, Instant)>,
    /// When the table was last gone through: it is large, and must not be for each client that comes.
    forgot: Option<Instant>,
}

impl Affinities {
    /// Makes room for one more, if there is any to be made.
    fn has_room(&mut self, now: Instant) -> bool {
        let rested = self.forgot.is_none_or(|at| now.duration_since(at) >= AFFINITY_REST);
        if self.by_client.len() >= AFFINITIES && rested {
            self.forgot = Some(now);
            self.by_client.retain(|_, (_, until)| *until > now);
        }
        self.by_client.len() < AFFINITIES
    }
}

/// One open request or tunnel at a backend.
#[derive(Debug)]
pub struct Load {
    balance: Arc<Balance>,
    backend: SocketAddr,
}

impl Drop for Load {
    fn drop(&mut self) {
        let mut loads = self.balance.loads(self.backend);
        if let Some(count) = loads.get_mut(&self.backend) {
            *count -= 1;
            if *count == 0 {
                loads.remove(&self.backend);
            }
        }
    }
}

/// The backends that may be taken, in pieces.
#[derive(Debug, Default)]
pub struct Allowed<'a>(Vec<&'a [SocketAddr]>);

impl<'a> Allowed<'a> {
    /// These pieces; no backend is in two.
    #[must_use]
    pub const fn of(pieces: Vec<&'a [SocketAddr]>) -> Self {
        Self(pieces)
    }

    /// How many.
    fn len(&self) -> usize {
        self.0.iter().map(|piece| piece.len()).sum()
    }

    fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.0.iter().flat_map(|piece| piece.iter().copied())
    }

    fn nth(&self, mut place: usize) -> Option<SocketAddr> {
        for piece in &self.0 {
            match piece.get(place) {
                Some(backend) => return Some(*backend),
                None => place -= piece.len(),
            }
        }
        None
    }
}

impl Balance {
    /// Another thread's, which knows the same of clients and of backends that refuse.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { common: self.common.clone(), ..Self::default() }
    }

    /// The backend that a client was sent to last, if it is still remembered.
    #[must_use]
    pub fn remembered(&self, client: IpAddr, vip: &Vip) -> Option<SocketAddr> {
        vip.affinity?;
        let affinities = self.common.affinities.lock().unwrap_or_else(PoisonError::into_inner);
        let (backend, until) = affinities.by_client.get(&(client, vip.affinity_of))?;
        (*until > Instant::now()).then_some(*backend)
    }

    /// Remembers where a client was sent; each time begins the timeout anew, as kube-proxy has it. A table that is
    /// full forgets who has been silent for too long, and then takes nobody: the hash still gives each client one
    /// backend, which another may take when backends join.
    pub fn remember(&self, client: IpAddr, vip: &Vip, backend: SocketAddr) {
        let Some(timeout) = vip.affinity else { return };
        let (key, now) = ((client, vip.affinity_of), Instant::now());
        let mut affinities = self.common.affinities.lock().unwrap_or_else(PoisonError::into_inner);
        if affinities.by_client.contains_key(&key) || affinities.has_room(now) {
            affinities.by_client.insert(key, (backend, now + timeout));
        }
    }

    /// The backend of a client whom nobody remembers: by rendezvous hashing, so that each backend's clients stay its
    /// own when another goes.
    #[must_use]
    pub fn by_hash(client: IpAddr, allowed: &Allowed<'_>) -> Option<SocketAddr> {
        allowed.iter().max_by_key(|backend| {
            let mut hasher = DefaultHasher::new();
            (client, backend).hash(&mut hasher);
            hasher.finish()
        })
    }

    /// Two at random, the one with fewer open requests; those that have just refused only where no other is.
    #[must_use]
    pub fn by_load(&self, allowed: &Allowed<'_>) -> Option<SocketAddr> {
        let count = allowed.len();
        let first = self.below(count)?;
        let second = match self.below(count - 1) {
            Some(other) if other >= first => other + 1,
            Some(other) => other,
            None => first,
        };
        let (first, second) = (allowed.nth(first)?, allowed.nth(second)?);
        let fewer = if self.load(second) < self.load(first) { second } else { first };
        let other = if fewer == first { second } else { first };
        if !self.is_refusing(fewer) {
            return Some(fewer);
        }
        if !self.is_refusing(other) {
            return Some(other);
        }
        let willing: Vec<_> = allowed.iter().filter(|backend| !self.is_refusing(*backend)).collect();
        Some(self.below(willing.len()).map_or(fewer, |place| willing[place]))
    }

    /// A number below `count`, evenly enough: `count` is far from 2^64.
    fn below(&self, count: usize) -> Option<usize> {
        let word = self.key.hash_one(self.next.fetch_add(1, Ordering::Relaxed));
        usize::try_from(word.checked_rem(count as u64)?).ok()
    }

    /// Counts a request or tunnel at a backend, until what this returns is dropped.
    #[must_use]
    pub fn open(self: &Arc<Self>, backend: SocketAddr) -> Load {
        *self.loads(backend).entry(backend).or_insert(0) += 1;
        Load { balance: self.clone(), backend }
    }

    /// How many requests and tunnels are open at a backend through this proxy, as far as they came by a Service.
    #[must_use]
    pub fn load(&self, backend: SocketAddr) -> u32 {
        self.loads(backend).get(&backend).copied().unwrap_or(0)
    }

    /// The backend could not be reached.
    pub fn refused(&self, backend: SocketAddr) {
        let now = Instant::now();
        self.common.refused.store(self.common.now(), Ordering::Relaxed);
        let mut refusing = self.common.refusing.write().unwrap_or_else(PoisonError::into_inner);
        if refusing.len() >= REFUSING {
            refusing.retain(|_, since| now.duration_since(*since) < REFUSED_FOR);
        }
        if refusing.len() < REFUSING {
            refusing.insert(backend, now);
        }
    }

    fn is_refusing(&self, backend: SocketAddr) -> bool {
        let last = self.common.refused.load(Ordering::Relaxed);
        if last == 0 || u128::from(self.common.now() - last.min(self.common.now())) > REFUSED_FOR.as_millis()
        {
            return false;
        }
        let refusing = self.common.refusing.read().unwrap_or_else(PoisonError::into_inner);
        refusing.get(&backend).is_some_and(|since| since.elapsed() < REFUSED_FOR)
    }

    fn loads(&self, backend: SocketAddr) -> MutexGuard<'_, HashMap<SocketAddr, u32>> {
        let shard = usize::try_from(self.key.hash_one(backend)).unwrap_or(0) % SHARDS;
        // A panic elsewhere leaves the map whole: each change is one call.
        self.loads[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
