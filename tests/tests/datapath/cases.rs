//! The forged frames of `table.rs`, and what must come of each. Made by hand from the RFCs; knows nothing of the programs.

#[path = "cases/v4.rs"]
mod v4;
#[path = "cases/v6.rs"]
mod v6;

use crate::frames::{Mac, TCP, UDP, frame, kind, packet, sealed, tcp, udp};
use sluice_redirect::Counter;
use sluice_tests::world::Family;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What a pod sends.
pub(crate) const FROM_POD: &str = "from the pod";
/// What a pod is sent.
pub(crate) const TO_POD: &str = "to the pod";

/// Who speaks to whom, and who else there is.
pub(crate) struct Ends {
    pub(crate) from: Mac,
    pub(crate) to: Mac,
    pub(crate) src: SocketAddr,
    /// Port 53, which is open.
    pub(crate) dst: SocketAddr,
    /// Another pod of the node.
    pub(crate) other: IpAddr,
    /// A pod of another node.
    pub(crate) remote: IpAddr,
    pub(crate) node: IpAddr,
    /// Another node.
    pub(crate) far: IpAddr,
    /// The port of the nodes' tunnels.
    pub(crate) tunnel: u16,
    pub(crate) bridge: Mac,
}

/// What must come of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Want {
    /// It comes out as it is.
    Arrives,
    /// It passes, to where nobody looks.
    Counted(Counter),
    /// It is dropped for this.
    Dropped(Counter),
}

/// Makes a frame for some ends.
type Make = Box<dyn Fn(&Ends) -> Vec<u8>>;

/// A frame.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// One hook's alone.
    pub(crate) hook: Option<&'static str>,
    pub(crate) want: Want,
    pub(crate) frame: Make,
}

fn case(name: &'static str, want: Want, frame: impl Fn(&Ends) -> Vec<u8> + 'static) -> Case {
    Case { name, hook: None, want, frame: Box::new(frame) }
}

fn drop(name: &'static str, reason: Counter, frame: impl Fn(&Ends) -> Vec<u8> + 'static) -> Case {
    case(name, Want::Dropped(reason), frame)
}

fn pass(name: &'static str, frame: impl Fn(&Ends) -> Vec<u8> + 'static) -> Case {
    case(name, Want::Arrives, frame)
}

impl Case {
    fn at(mut self, hook: &'static str) -> Self {
        self.hook = Some(hook);
        self
    }
}

impl Ends {
    /// Around an IP packet.
    fn wrap(&self, packet: &[u8]) -> Vec<u8> {
        frame(self.to, self.from, kind(self.src.ip()), packet)
    }

    /// Around a transport's bytes.
    fn carry(&self, protocol: u8, body: &[u8]) -> Vec<u8> {
        self.wrap(&packet(self.src.ip(), self.dst.ip(), protocol, body))
    }

    /// The same between others.
    fn between(&self, src: IpAddr, dst: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
        self.wrap(&packet(src, dst, protocol, body))
    }

    fn udp(&self) -> Vec<u8> {
        udp(self.src, self.dst, b"table")
    }

    fn tcp(&self, flags: u8) -> Vec<u8> {
        tcp(self.src, SocketAddr::new(self.dst.ip(), 80), flags, &[])
    }

    /// A datagram to somebody.
    fn to(&self, dst: IpAddr, port: u16) -> Vec<u8> {
        let dst = SocketAddr::new(dst, port);
        self.between(self.src.ip(), dst.ip(), UDP, &udp(self.src, dst, b"table"))
    }

    /// A datagram from somebody.
    fn as_of(&self, src: IpAddr) -> Vec<u8> {
        self.between(src, self.dst.ip(), UDP, &udp(SocketAddr::new(src, 4000), self.dst, b"table"))
    }
}

/// A transport's bytes with one changed.
fn with(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

/// Both families' and the family's own.
pub(crate) fn all(family: Family) -> Vec<Case> {
    let own = match family {
        Family::V4 => [v4::options(), v4::parts_v4(), v4::arp()],
        Family::V6 => [v6::extensions(), v6::more_extensions(), v6::neighbours()],
    };
    let shared = [transports(), flags(), addresses(family), links(), tunnels()];
    shared.into_iter().chain(own).flatten().collect()
}

fn transports() -> Vec<Case> {
    use Counter::Malformed;
    vec![
        pass("a datagram", |ends| ends.carry(UDP, &ends.udp())),
        pass("an empty datagram", |ends| ends.carry(UDP, &udp(ends.src, ends.dst, b""))),
        pass("UDP with options behind it", |ends| {
            ends.carry(UDP, &[udp(ends.src, ends.dst, b"short"), vec![1; 8]].concat())
        }),
        drop("UDP that is shorter than its header", Malformed, |ends| {
            ends.carry(UDP, &with(ends.udp(), 5, 7))
        }),
        drop("UDP that is longer than its packet", Malformed, |ends| {
            ends.carry(UDP, &with(ends.udp(), 4, 1))
        }),
        drop("UDP of no length", Malformed, |ends| ends.carry(UDP, &with(ends.udp(), 5, 0))),
        drop("half a header of UDP", Malformed, |ends| ends.carry(UDP, &ends.udp()[..7])),
        drop("half a header of TCP", Malformed, |ends| ends.carry(TCP, &ends.tcp(2)[..19])),
        drop("half a header of ICMP", Malformed, |ends| {
            ends.carry(
                if ends.src.is_ipv4() { 1 } else { 58 },
                &[if ends.src.is_ipv4() { 8 } else { 128 }; 7],
            )
        }),
        drop("half a header of SCTP", Malformed, |ends| ends.carry(132, &ends.tcp(2)[..12])),
        drop("TCP's data in its header", Malformed, |ends| ends.carry(TCP, &with(ends.tcp(2), 12, 0x40))),
        drop("TCP's header behind its end", Malformed, |ends| ends.carry(TCP, &with(ends.tcp(2), 12, 0xf0))),
        drop("ICMP of the other family", Malformed, |ends| {
            ends.carry(if ends.src.is_ipv4() { 58 } else { 1 }, &[8, 0, 0, 0, 0, 1, 0, 1])
        }),
        pass("an echo request", |ends| {
            if ends.src.is_ipv4() {
                return ends.carry(1, &crate::forge::icmp4(vec![8, 0, 0, 0, 0, 9, 0, 1]));
            }
            let echo = vec![128, 0, 0, 0, 0, 9, 0, 1];
            ends.carry(58, &sealed(ends.src.ip(), ends.dst.ip(), 58, 2, echo))
        }),
        pass("ESP, which is a protocol of its own", |ends| ends.carry(50, &[0x5a; 24])),
        drop("AH, which hides the ports", Counter::Extension, |ends| {
            ends.carry(51, &[UDP, 4, 0, 0, 0, 0, 0, 1])
        }),
        pass("padding behind the packet", |ends| {
            [ends.carry(UDP, &udp(ends.src, ends.dst, b"padded")), vec![0; 18]].concat()
        }),
        drop("a packet that is longer than its frame", Malformed, |ends| {
            let whole = ends.carry(UDP, &ends.udp());
            whole[..whole.len() - 1].to_vec()
        }),
        drop("another version than the frame's", Malformed, |ends| {
            with(ends.carry(UDP, &ends.udp()), 14, 0x55)
        }),
        drop("to the very port that it comes from", Malformed, |ends| {
            ends.between(ends.src.ip(), ends.src.ip(), UDP, &udp(ends.src, ends.src, b"land"))
        }),
    ]
}

fn flags() -> Vec<Case> {
    const SENT: [(&str, u8); 3] = [("SYN", 0x02), ("SYN ECE CWR", 0xc2), ("ACK PSH", 0x18)];
    const NEVER: [(&str, u8); 8] = [
        ("no flag", 0x00),
        ("SYN FIN", 0x03),
        ("SYN RST", 0x06),
        ("FIN alone", 0x01),
        ("FIN PSH URG", 0x29),
        ("FIN RST ACK", 0x15),
        ("URG alone", 0x20),
        ("every flag", 0x3f),
    ];
    let sent = SENT.map(|(name, flags)| pass(name, move |ends| ends.carry(TCP, &ends.tcp(flags))));
    let never = NEVER
        .map(|(name, flags)| drop(name, Counter::Malformed, move |ends| ends.carry(TCP, &ends.tcp(flags))));
    sent.into_iter().chain(never).collect()
}

fn addresses(family: Family) -> Vec<Case> {
    use Counter::{BadAddress, Malformed, NotMine, Spoofed};
    let pick = move |v4: [u8; 4], v6: &str| -> IpAddr {
        let v6: Ipv6Addr = v6.parse().expect("an address");
        family.pick(Ipv4Addr::from(v4), v6)
    };
    let loopback = pick([127, 0, 0, 1], "::1");
    let group = pick([224, 0, 0, 251], "ff02::fb");
    let nobody = pick([0, 0, 0, 0], "::");
    let mut cases = vec![
        drop("another pod's address", Spoofed, |ends| ends.as_of(ends.other)),
        drop("the node's address", Spoofed, |ends| ends.as_of(ends.node)).at(FROM_POD),
        drop("loopback's address", BadAddress, move |ends| ends.as_of(loopback)),
        drop("to loopback", BadAddress, move |ends| ends.to(loopback, 53)),
        drop("a group's address", BadAddress, move |ends| ends.as_of(group)),
        drop("nobody's address", BadAddress, move |ends| ends.as_of(nobody)),
        drop("TCP to a group", Malformed, move |ends| {
            let dst = SocketAddr::new(group, 80);
            ends.between(ends.src.ip(), group, TCP, &tcp(ends.src, dst, 2, &[]))
        }),
        pass("a datagram to a group", move |ends| ends.to(group, 53)),
        drop("what a bridge brings for another", NotMine, |ends| ends.to(ends.other, 53)),
    ];
    if family == Family::V4 {
        let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
        cases.extend([
            pass("a datagram to everybody on the link", move |ends| ends.to(broadcast, 53)),
            drop("to everybody on the link, a closed port", Counter::Denied, move |ends| {
                ends.to(broadcast, 54)
            }),
            drop("to everybody of a network", NotMine, |ends| {
                let IpAddr::V4(dst) = ends.dst.ip() else { return Vec::new() };
                let [a, b, c, _] = dst.octets();
                ends.to(Ipv4Addr::new(a, b, c, 255).into(), 53)
            }),
            drop("everybody's address", BadAddress, move |ends| ends.as_of(broadcast)),
            drop("a request for an address", BadAddress, move |ends| {
                let (src, dst) = (SocketAddr::new(nobody, 68), SocketAddr::new(broadcast, 67));
                ends.between(src.ip(), dst.ip(), UDP, &udp(src, dst, &[1; 240]))
            }),
        ]);
    } else {
        let local = "fe80::1234".parse::<IpAddr>().expect("an address");
        let mapped = "::ffff:10.77.1.10".parse::<Ipv6Addr>().expect("an address");
        cases.extend([
            drop("a datagram from a link-local address", Spoofed, move |ends| ends.as_of(local)).at(FROM_POD),
            drop("a datagram to a link-local address", NotMine, move |ends| ends.to(local, 53)),
            drop("an IPv4 address in IPv6", BadAddress, move |ends| ends.as_of(IpAddr::V6(mapped))),
            drop("to an IPv4 address in IPv6", BadAddress, move |ends| ends.to(IpAddr::V6(mapped), 53)),
        ]);
    }
    cases
}

fn links() -> Vec<Case> {
    use Counter::{NotIp, SpoofedMac, Vlan};
    fn tagged(ends: &Ends, tags: &[u16]) -> Vec<u8> {
        let mut bytes = ends.carry(UDP, &ends.udp());
        let tags: Vec<u8> = tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0, 7]].concat()).collect();
        bytes.splice(12..12, tags);
        bytes
    }
    fn of_kind(ends: &Ends, kind: u16) -> Vec<u8> {
        frame(ends.to, ends.from, kind, &[0x42; 46])
    }
    vec![
        drop("a VLAN tag", Vlan, |ends| tagged(ends, &[0x8100])),
        drop("a service tag", Vlan, |ends| tagged(ends, &[0x88a8])),
        drop("two tags", Vlan, |ends| tagged(ends, &[0x88a8, 0x8100])),
        drop("a bridge's own word (802.1D)", NotIp, |ends| of_kind(ends, 38)),
        drop("PPP over Ethernet", NotIp, |ends| of_kind(ends, 0x8864)),
        drop("MPLS", NotIp, |ends| of_kind(ends, 0x8847)),
        drop("a protocol of nobody", NotIp, |ends| of_kind(ends, 0x88b5)),
        drop("another hardware address", SpoofedMac, |ends| {
            with(ends.carry(UDP, &ends.udp()), 11, ends.from[5] ^ 1)
        })
        .at(FROM_POD),
        drop("the bridge's hardware address", SpoofedMac, |ends| {
            frame(
                ends.to,
                ends.bridge,
                kind(ends.src.ip()),
                &packet(ends.src.ip(), ends.dst.ip(), UDP, &ends.udp()),
            )
        })
        .at(FROM_POD),
    ]
}

fn tunnels() -> Vec<Case> {
    use Counter::{Denied, Encapsulated};
    let mut cases = vec![
        drop("the tunnel's port, to the node", Encapsulated, |ends| ends.to(ends.node, ends.tunnel))
            .at(FROM_POD),
        drop("the tunnel's port, to another node", Encapsulated, |ends| ends.to(ends.far, ends.tunnel))
            .at(FROM_POD),
        drop("the tunnel's port, to a pod", Denied, |ends| ends.to(ends.dst.ip(), ends.tunnel)),
        case("another port, to another node", Want::Counted(Counter::Allowed), |ends| {
            with_bridge(ends, ends.to(ends.far, 4789))
        })
        .at(FROM_POD),
    ];
    for (name, protocol) in
        [("IP in IP, to another node", 4), ("6in4, to another node", 41), ("GRE, to another node", 47)]
    {
        cases.push(
            drop(name, Encapsulated, move |ends| {
                ends.between(ends.src.ip(), ends.far, protocol, &[0x45; 40])
            })
            .at(FROM_POD),
        );
    }
    cases
}

/// By way of the node.
fn with_bridge(ends: &Ends, mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[..6].copy_from_slice(&ends.bridge);
    bytes
}
