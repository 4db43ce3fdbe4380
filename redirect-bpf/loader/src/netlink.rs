//! Blocking route netlink, as little of it as the loader needs.
//!
//! A socket belongs to the network namespace of the thread that opened it. Knows nothing of eBPF or of what
//! the devices are for. Used by `helper`, `discover` and `tc`.

mod routes;

pub(crate) use routes::{Metrics, Way};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// The kernel fills at most this much per answer.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Answers to one dump: far more than a node with thousands of devices gives.
const MAX_ANSWERS: usize = 16 * 1024;
const HEADER: usize = 16;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;

const REQUEST: u16 = 1;
pub(crate) const ACK: u16 = 4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE_NEW: u16 = 0x600;
pub(crate) const CREATE_OR_REPLACE: u16 = 0x500;

const NESTED: u16 = 1 << 15;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_GENEVE_PORT: u16 = 5;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const SCOPE_HOST: u8 = 254;
const IFA_F_NODAD: u8 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// A device as the kernel tells of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) kind: String,
    /// The other end of a veth, by its number in its own namespace.
    pub(crate) peer: Option<u32>,
    /// The namespace of the other end, as this one numbers it; `None` if it is this one.
    pub(crate) peer_nsid: Option<i32>,
    /// The device that this one is a part of.
    pub(crate) master: Option<u32>,
    /// Its hardware address, if it is one of Ethernet's length.
    pub(crate) mac: Option<Mac>,
    /// Of a tunnel over UDP the port.
    pub(crate) tunnel: Option<u16>,
    /// Whether it is switched on.
    pub(crate) up: bool,
    /// The longest packet.
    pub(crate) mtu: u32,
    /// The kernel's number of its XDP program.
    pub(crate) xdp: Option<u32>,
}

impl Link {
    /// Whether it is a veth whose other end is in another namespace.
    pub(crate) fn is_pods(&self) -> bool {
        self.kind == "veth" && self.peer_nsid.is_some() && self.alias != crate::helper::ALIAS
    }
}

/// One end of a veth to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) name: &'a str,
    pub(crate) mac: Mac,
}

/// A netlink socket of one network namespace.
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    /// In the namespace of this thread.
    pub(crate) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0, the default.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// The same for netfilter's messages.
    pub(crate) fn open_netfilter() -> io::Result<Self> {
        let netfilter = Some(rustix::net::netlink::NETFILTER);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, netfilter)?;
        Ok(Self { socket })
    }

    /// The same for the messages about sockets.
    pub(crate) fn open_sockets() -> io::Result<Self> {
        let sockets = Some(rustix::net::netlink::SOCK_DIAG);
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, sockets)?;
        Ok(Self { socket })
    }

    /// Every device.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let mut links = Vec::new();
        self.ask(Message::new(RTM_GETLINK, DUMP).bytes(&[0; 16]), |body| {
            links.extend(parse_link(body));
        })?;
        Ok(links)
    }

    /// A device by its name.
    pub(crate) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    /// Every address, with its device's number.
    pub(crate) fn addresses(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut addresses = Vec::new();
        self.ask(Message::new(RTM_GETADDR, DUMP).bytes(&[0; 8]), |body| {
            addresses.extend(parse_address(body));
        })?;
        Ok(addresses)
    }

    /// Makes a veth: one end here, the other in another namespace.
    pub(crate) fn add_veth(&self, here: End<'_>, there: End<'_>, netns: BorrowedFd<'_>) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, ACK | CREATE_NEW).bytes(&[0; 16]);
        message.text(IFLA_IFNAME, here.name);
        message.attribute(IFLA_ADDRESS, &here.mac);
        message.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| {
                    peer.raw(&[0; 16]);
                    peer.text(IFLA_IFNAME, there.name);
                    peer.attribute(IFLA_ADDRESS, &there.mac);
                    peer.attribute(IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.order(message)
    }

    /// Names a device's owner, and sets its MTU and hardware address.
    pub(crate) fn describe(&self, index: u32, alias: &str, mtu: u32, mac: Mac) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, ACK).bytes(&link_header(index, 0, 0));
        message.text(IFLA_IFALIAS, alias);
        message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        message.attribute(IFLA_ADDRESS, &mac);
        self.order(message)
    }

    /// Gives a device an address that is no other's source: its scope is the host. Whether it had none.
    pub(crate) fn add_address(&self, device: u32, address: Ipv4Addr) -> io::Result<bool> {
        let mut header = [AF_INET, 32, 0, SCOPE_HOST, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&device.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, ACK | CREATE_NEW).bytes(&header);
        message.attribute(IFA_LOCAL, &address.octets());
        message.attribute(IFA_ADDRESS, &address.octets());
        is_new(self.order(message))
    }

    /// Gives a device an address of the world's, which is not asked for first.
    pub(crate) fn add_global_address(&self, device: u32, address: IpAddr) -> io::Result<()> {
        let length = if address.is_ipv6() { 128 } else { 32 };
        let mut header = [family(address), length, IFA_F_NODAD, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&device.to_ne_bytes());
        let mut message = Message::new(RTM_NEWADDR, ACK | CREATE_OR_REPLACE).bytes(&header);
        message.address(IFA_LOCAL, address);
        message.address(IFA_ADDRESS, address);
        self.order(message)
    }

    /// Brings a device up.
    pub(crate) fn up(&self, index: u32) -> io::Result<()> {
        self.order(Message::new(RTM_NEWLINK, ACK).bytes(&link_header(index, IFF_UP, IFF_UP)))
    }

    /// Removes a device.
    pub(crate) fn remove(&self, index: u32) -> io::Result<()> {
        self.order(Message::new(RTM_DELLINK, ACK).bytes(&link_header(index, 0, 0)))
    }

    /// Gives another namespace a number in this one.
    pub(crate) fn set_nsid(&self, netns: BorrowedFd<'_>, id: i32) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWNSID, ACK).bytes(&[0; 4]);
        message.attribute(NETNSA_NSID, &id.to_ne_bytes());
        message.attribute(NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
        self.order(message)
    }

    /// The number of another namespace in this one.
    pub(crate) fn nsid(&self, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let mut message = Message::new(RTM_GETNSID, 0).bytes(&[0; 4]);
        message.attribute(NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
        let mut id = None;
        self.ask(message, |body| {
            id = attributes(body, 4).find(|a| a.0 == NETNSA_NSID).map(|a| number(a.1) as i32);
        })?;
        Ok(id.filter(|id| *id >= 0))
    }

    pub(crate) fn order(&self, message: Message) -> io::Result<()> {
        self.ask(message, |_| ())
    }

    /// Sends a request and hands each answer's body on until the last.
    pub(crate) fn ask(&self, message: Message, mut answer: impl FnMut(&[u8])) -> io::Result<()> {
        let dump = message.flags & DUMP == DUMP;
        let acked = message.flags & ACK != 0;
        send(&self.socket, &message.finish(), SendFlags::empty())?;
        let mut buffer = vec![0; RECEIVE_BYTES];
        for _ in 0..MAX_ANSWERS {
            let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while rest.len() >= HEADER {
                let size = (number(&rest[0..4]) as usize).clamp(HEADER, rest.len());
                let body = &rest[HEADER..size];
                match u16::from_ne_bytes([rest[4], rest[5]]) {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        return match number(body.get(..4).unwrap_or(&[0; 4])) as i32 {
                            0 => Ok(()),
                            error => Err(io::Error::from_raw_os_error(-error)),
                        };
                    }
                    _ => answer(body),
                }
                if !dump && !acked {
                    return Ok(());
                }
                rest = &rest[size.next_multiple_of(4).min(rest.len())..];
            }
        }
        Err(io::Error::other("the kernel's answer never ended"))
    }
}

/// Whether something was made; that it is there already is no error.
fn is_new(made: io::Result<()>) -> io::Result<bool> {
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        other => other.map(|()| true),
    }
}

pub(crate) struct Message {
    bytes: Vec<u8>,
    flags: u16,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let flags = flags | REQUEST;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        Self { bytes, flags }
    }

    pub(crate) fn bytes(mut self, body: &[u8]) -> Self {
        self.raw(body);
        self
    }

    fn raw(&mut self, body: &[u8]) {
        self.bytes.extend_from_slice(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        // Every value here is a number, a name or an address: far below the 64 KiB of the length field.
        let length = (value.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }

    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub(crate) fn address(&mut self, kind: u16, address: IpAddr) {
        match address {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

fn link_header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv6() { AF_INET6 } else { AF_INET }
}

/// The first four bytes as a number; 0 where there are fewer.
pub(crate) fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |four| u32::from_ne_bytes(*four))
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

pub(crate) fn attributes(body: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(header..).unwrap_or(&[]);
    std::iter::from_fn(move || {
        let head = rest.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & !NESTED;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let mut link = Link {
        index: number(body.get(4..8)?),
        up: number(body.get(8..12)?) & IFF_UP != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(body, 16) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_LINK => link.peer = Some(number(value)).filter(|peer| *peer != 0),
            IFLA_MTU => link.mtu = number(value),
            IFLA_XDP => {
                let program = attributes(value, 0).find(|xdp| xdp.0 == IFLA_XDP_PROG_ID);
                link.xdp = program.map(|(_, id)| number(id)).filter(|id| *id != 0);
            }
            IFLA_MASTER => link.master = Some(number(value)),
            IFLA_ADDRESS => link.mac = value.try_into().ok(),
            IFLA_LINK_NETNSID => link.peer_nsid = Some(number(value) as i32),
            IFLA_LINKINFO => {
                link.kind = attributes(value, 0)
                    .find(|info| info.0 == IFLA_INFO_KIND)
                    .map(|info| text(info.1))
                    .unwrap_or_default();
                link.tunnel = parse_tunnel(&link.kind, value);
            }
            _ => {}
        }
    }
    Some(link)
}

/// The UDP port of a device that carries frames in datagrams.
fn parse_tunnel(kind: &str, info: &[u8]) -> Option<u16> {
    let wanted = match kind {
        "vxlan" => IFLA_VXLAN_PORT,
        "geneve" => IFLA_GENEVE_PORT,
        _ => return None,
    };
    let (_, data) = attributes(info, 0).find(|info| info.0 == IFLA_INFO_DATA)?;
    let (_, port) = attributes(data, 0).find(|data| data.0 == wanted)?;
    Some(u16::from_be_bytes(*port.first_chunk()?))
}

fn parse_address(body: &[u8]) -> Option<(u32, IpAddr)> {
    let index = number(body.get(4..8)?);
    let mut found = None;
    for (kind, value) in attributes(body, 8) {
        // Of a point-to-point IPv4 device IFA_ADDRESS is the other side; IFA_LOCAL is always ours.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && found.is_none()) {
            found = match value.len() {
                4 => value.first_chunk::<4>().map(|b| IpAddr::V4(Ipv4Addr::from(*b))),
                16 => value.first_chunk::<16>().map(|b| IpAddr::V6(Ipv6Addr::from(*b))),
                _ => found,
            };
        }
    }
    found.map(|address| (index, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_a_round_trip_and_a_cut() {
        let mut message = Message::new(1, 0);
        message.text(3, "eth0");
        message.nest(18, |info| info.text(1, "veth"));
        let bytes = message.finish();
        let all: Vec<_> = attributes(&bytes, HEADER).map(|a| a.0).collect();
        assert_eq!(all, [3, 18]);
        let nested =
            attributes(&bytes, HEADER).last().map(|a| attributes(a.1, 0).map(|b| text(b.1)).collect());
        assert_eq!(nested, Some(vec!["veth".to_owned()]));
        for cut in HEADER..bytes.len() {
            assert!(attributes(&bytes[..cut], HEADER).count() <= 2, "a cut message must not panic");
        }
    }

    #[test]
    fn a_tunnel_has_its_port_in_network_order() {
        for (kind, attribute) in [("vxlan", IFLA_VXLAN_PORT), ("geneve", IFLA_GENEVE_PORT), ("veth", 15)] {
            let mut message = Message::new(RTM_NEWLINK, 0).bytes(&link_header(7, 0, 0));
            message.attribute(IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]);
            message.nest(IFLA_LINKINFO, |info| {
                info.text(IFLA_INFO_KIND, kind);
                info.nest(IFLA_INFO_DATA, |data| data.attribute(attribute, &8472_u16.to_be_bytes()));
            });
            let bytes = message.finish();
            let link = parse_link(&bytes[HEADER..]).unwrap_or_default();
            assert_eq!((link.index, link.mac), (7, Some([2, 0, 0, 0, 0, 1])));
            assert_eq!(link.tunnel, (kind != "veth").then_some(8472));
        }
    }

    #[test]
    fn an_address_prefers_the_local_one() {
        let mut message = Message::new(1, 0).bytes(&[0, 0, 0, 0, 7, 0, 0, 0]);
        message.attribute(IFA_ADDRESS, &[10, 0, 0, 2]);
        message.attribute(IFA_LOCAL, &[10, 0, 0, 1]);
        let bytes = message.finish();
        let address: IpAddr = Ipv4Addr::new(10, 0, 0, 1).into();
        assert_eq!(parse_address(&bytes[HEADER..]), Some((7, address)));
    }
}
