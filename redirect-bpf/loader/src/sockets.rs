//! Ends connections in the proxy's namespace, as `ss -K` does: what is open with an address that is another's by now.
//!
//! Both legs of a proxied connection have the addresses of both ends. The kernel resets them, whoever holds them: an
//! idle one, one that was not accepted yet, one that its process has closed and that still sends what is left. Knows
//! nothing of snapshots or of what is said on them. Called by the node at each generation that addresses have left.

use crate::error::SetupError;
use crate::netlink::{ACK, DUMP, Message, Netlink};
use crate::netns;
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::sync::Once;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
/// Every state but that of a listener (10).
const STATES: u32 = !(1 << 10);
/// `struct inet_diag_sockid`: ports, both addresses, device, cookie.
const ID: usize = 48;
/// Before it, in what the kernel says: family, state, timer, retransmissions.
const BEFORE: usize = 4;
/// Within it: where the addresses begin, and how long each is.
const ADDRESSES: usize = 4;
const ADDRESS: usize = 16;

/// A connection, as the kernel names it.
#[derive(Clone, Copy)]
struct Named {
    family: u8,
    id: [u8; ID],
}

/// Resets every connection of a namespace that one of these addresses has an end of; how many.
pub(crate) fn end(netns: BorrowedFd<'_>, addresses: &HashSet<IpAddr>) -> Result<usize, SetupError> {
    static TOLD: Once = Once::new();
    if addresses.is_empty() {
        return Ok(0);
    }
    let ended = netns::within(netns, || {
        let netlink = Netlink::open_sockets()?;
        let mut found = connections(&netlink, AF_INET, addresses)?;
        found.extend(connections(&netlink, AF_INET6, addresses)?);
        // First the legs to those who are still there: whoever holds the other leg of one would close it, when that goes,
        // and a close can look like an end in order.
        found.sort_by_key(|socket| addresses.contains(&socket.ends()[1]));
        let mut ended = 0;
        for socket in &found {
            ended += usize::from(destroy(&netlink, socket)?);
        }
        Ok(ended)
    });
    match ended {
        Err(error) if is_lacking(&error) => {
            TOLD.call_once(|| {
                tracing::warn!(
                    "this kernel ends no connection for anybody (CONFIG_INET_DIAG_DESTROY): what a pod that is gone \
                     had open through the proxy and idle ends when its other end says something, or by time"
                );
            });
            Ok(0)
        }
        other => other.map_err(SetupError::cannot(
            "end the connections of pods that are gone",
            "CAP_NET_ADMIN is needed, and the module tcp_diag",
        )),
    }
}

/// No such subsystem, or it tells and does not end.
fn is_lacking(error: &io::Error) -> bool {
    let lacking = [Errno::OPNOTSUPP, Errno::PROTONOSUPPORT, Errno::NOENT];
    lacking.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn connections(netlink: &Netlink, family: u8, addresses: &HashSet<IpAddr>) -> io::Result<Vec<Named>> {
    let mut found = Vec::new();
    let every = Named { family, id: [0; ID] };
    netlink.ask(Message::new(SOCK_DIAG_BY_FAMILY, DUMP).bytes(&every.asked()), |body| {
        let named =
            body.get(BEFORE..).and_then(|id| id.first_chunk()).map(|id| Named { family: body[0], id: *id });
        found.extend(named.filter(|named| named.ends().iter().any(|end| addresses.contains(end))));
    })?;
    Ok(found)
}

/// Whether it was there.
fn destroy(netlink: &Netlink, socket: &Named) -> io::Result<bool> {
    match netlink.order(Message::new(SOCK_DESTROY, ACK).bytes(&socket.asked())) {
        // It has ended meanwhile.
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(false),
        other => other.map(|()| true),
    }
}

impl Named {
    /// `struct inet_diag_req_v2`.
    fn asked(&self) -> [u8; 8 + ID] {
        let mut request = [0; 8 + ID];
        (request[0], request[1]) = (self.family, TCP);
        request[4..8].copy_from_slice(&STATES.to_ne_bytes());
        request[8..].copy_from_slice(&self.id);
        request
    }

    /// Ours, then the other side's.
    fn ends(&self) -> [IpAddr; 2] {
        let at = |place: usize| {
            let bytes: [u8; ADDRESS] = self.id[place..].first_chunk().copied().unwrap_or_default();
            match self.family {
                AF_INET => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
                _ => IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical(),
            }
        };
        [at(ADDRESSES), at(ADDRESSES + ADDRESS)]
    }
}
