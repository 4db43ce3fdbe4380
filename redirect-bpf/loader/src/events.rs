//! Events: what the kernel tells of flows, with the numbers of its maps turned into what they stand for.
//!
//! The ring outlives the loader: what was told while nobody read is read by whoever comes next, as far as there was
//! room; what did not fit the kernel counts (`event_lost`). Knows nothing of records or of who wants them. Opened by
//! `node`, read by the agent.

use crate::error::SetupError;
use crate::origins::{Book, Origin};
use crate::plain::Plain;
use aya::maps::{Map, MapData, RingBuf};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::time::{ClockId, clock_gettime};
use sluice_bpf_abi::{
    Address, Counter, Event, EventVerdict, FlowKind, HOST_CLASS, RowKey, SERVICE_CLASS, map,
};
use sluice_policy::{ClassId, Direction, Endpoint, Protocol};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What the kernel looked a peer up as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A class of the snapshot; the one of nobody as well where no row was asked.
    Class(ClassId),
    /// A process of the node itself, at an address of this class; of nobody's where no object names the address.
    Host(ClassId),
    /// A port of a Service.
    Service,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// When.
    pub time: SystemTime,
    /// The generation that it was judged under. `None` of one that is long past, or that another process put in force.
    pub generation: Option<u64>,
    /// The node's end of the endpoint's veth.
    pub device: u32,
    /// Whose hook it was. `None` where nobody has the device, or the generation is not known.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Whether the flow is opened to the endpoint or by it.
    pub direction: Direction,
    /// The IP protocol; 0 where the packet was not read so far, and of ARP.
    pub protocol: u8,
    /// Who opened the flow, as far as that could be read.
    pub source: Option<IpAddr>,
    /// To whom.
    pub destination: Option<IpAddr>,
    /// The opener's port; of an ICMP request its identifier.
    pub source_port: u16,
    /// The other port.
    pub destination_port: u16,
    /// What rows are asked for: the destination's port, of ICMP the number of its type, else 0.
    pub number: u16,
    /// What the other end was looked up as.
    pub peer: Peer,
    /// What happened.
    pub verdict: EventVerdict,
    /// Why.
    pub reason: Counter,
    /// What the row names.
    pub origin: Option<Origin>,
    /// The packet's bytes.
    pub length: u32,
    /// It was answered.
    pub answered: bool,
}

impl FlowEvent {
    /// The protocol as rows have it.
    #[must_use]
    pub const fn row_protocol(&self) -> Protocol {
        match RowKey::protocol_of(self.protocol) {
            RowKey::TCP => Protocol::Tcp,
            RowKey::UDP => Protocol::Udp,
            RowKey::SCTP => Protocol::Sctp,
            RowKey::ICMP => Protocol::Icmp,
            _ => Protocol::Other,
        }
    }
}

/// The events of a node, in the order in which they happened. Readable when its descriptor is: read until there are
/// none, then wait.
pub struct Events {
    ring: RingBuf<MapData>,
    book: Arc<Book>,
    /// Whoever reads takes away what is read: one process at a time.
    _alone: OwnedFd,
}

impl Events {
    pub(crate) fn open(maps: &Path, book: Arc<Book>) -> Result<Self, SetupError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let alone = rustix::fs::open(maps, flags, Mode::empty());
        let alone = alone.and_then(|fd| flock(&fd, FlockOperation::NonBlockingLockExclusive).map(|()| fd));
        let alone = alone.map_err(|error| SetupError::Cannot {
            what: "read the events alone".to_owned(),
            remedy: "another process of this node reads them; they wait until it has ended",
            source: error.into(),
        })?;
        let failed = |reason: String| SetupError::Map { what: "open", map: map::EVENTS, reason };
        let data = MapData::from_pin(maps.join(map::EVENTS)).map_err(|error| failed(error.to_string()))?;
        let ring = Map::from_map_data(data)
            .and_then(RingBuf::try_from)
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { ring, book, _alone: alone })
    }

    /// The next one that is there already.
    #[expect(clippy::should_implement_trait, reason = "there may be more after the last one")]
    pub fn next(&mut self) -> Option<FlowEvent> {
        loop {
            let event = read(&self.ring.next()?);
            // Of another build, which pins elsewhere: cannot be.
            if let Some(event) = event.and_then(|event| self.translate(&event)) {
                return Some(event);
            }
        }
    }

    fn translate(&self, event: &Event) -> Option<FlowEvent> {
        let verdict = verdict(event.verdict)?;
        let reason = *Counter::ALL.get(event.reason as usize)?;
        let known = self.book.known(event.epoch, event.key.ifindex, event.rule);
        let (sport, dport) = (u16::from_be_bytes(event.key.sport), u16::from_be_bytes(event.key.dport));
        let row_protocol = RowKey::protocol_of(event.key.protocol);
        Some(FlowEvent {
            time: time(event.time),
            generation: known.generation,
            device: event.key.ifindex,
            endpoint: known.endpoint,
            direction: match event.key.kind {
                kind if kind == FlowKind::Ingress as u8 => Direction::Ingress,
                _ => Direction::Egress,
            },
            protocol: event.key.protocol,
            source: address(event.key.src),
            destination: address(event.key.dst),
            source_port: sport,
            destination_port: dport,
            number: match row_protocol {
                RowKey::ICMP => u16::from_be_bytes(event.key.icmp),
                protocol if RowKey::has_ports(protocol) => dport,
                _ => 0,
            },
            peer: match event.class {
                class if class & SERVICE_CLASS != 0 => Peer::Service,
                class if class & HOST_CLASS != 0 => Peer::Host(ClassId(class & !HOST_CLASS)),
                class => Peer::Class(ClassId(class)),
            },
            verdict,
            reason,
            origin: known.origin,
            length: event.length,
            answered: event.answered != 0,
        })
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("fd", &self.as_raw_fd()).finish_non_exhaustive()
    }
}

fn read(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: there are as many bytes, and every pattern of them is an event: see `plain.rs`.
    let Plain(event) = unsafe { bytes.as_ptr().cast::<Plain<Event>>().read_unaligned() };
    Some(event)
}

const fn verdict(number: u8) -> Option<EventVerdict> {
    Some(match number {
        1 => EventVerdict::Allow,
        2 => EventVerdict::Deny,
        3 => EventVerdict::ToProxy,
        4 => EventVerdict::Audit,
        5 => EventVerdict::Cut,
        _ => return None,
    })
}

/// `None` of what was not read: the address of nobody.
fn address(bytes: Address) -> Option<IpAddr> {
    let address = Ipv6Addr::from(bytes).to_canonical();
    (!address.is_unspecified()).then_some(address)
}

/// The kernel stamps with the time since it started, which goes on while it sleeps not.
fn time(monotonic: u64) -> SystemTime {
    let now = clock_gettime(ClockId::Monotonic);
    let now = Duration::try_from(now).unwrap_or_default();
    SystemTime::now() - now.saturating_sub(Duration::from_nanos(monotonic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_event_is_none() {
        assert_eq!(read(&[0; 79]), None);
        assert!(read(&[0; 80]).is_some());
        assert_eq!(verdict(0), None);
        assert_eq!(verdict(6), None);
        assert_eq!(address(Ipv6Addr::from(0xffff_0000_0000_u128).octets()), None);
    }
}
