//! Packets that the kernel would not send: with any source, ports and numbers; and who sees what arrives.

use crate::peers::SILENCE;
use anyhow::{Context, Result, ensure};
use sluice_tests::world::Netns;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

/// What an attack carries.
pub(crate) const SECRET: &[u8] = b"SECRET-OUT";
/// The number of ICMP.
pub(crate) const ICMP: i32 = 1;
/// The number of `ICMPv6`.
pub(crate) const ICMPV6: i32 = 58;
const RAW: i32 = 255;
const HEADERS: usize = 40;
const ACK_PUSH: u8 = 0x18;

/// Sends an IP packet as it is from the namespace of this thread.
pub(crate) fn raw(target: IpAddr, bytes: &[u8]) -> Result<()> {
    let socket = Socket::new(Domain::for_address((target, 0).into()), Type::RAW, Some(Protocol::from(RAW)))?;
    match target {
        IpAddr::V4(_) => socket.set_header_included_v4(true)?,
        IpAddr::V6(_) => socket.set_header_included_v6(true)?,
    }
    let sent =
        socket.send_to(bytes, &SockAddr::from(SocketAddr::new(target, 0))).context("send a forged packet")?;
    ensure!(sent == bytes.len(), "only {sent} bytes were sent");
    Ok(())
}

/// An IPv4 packet of UDP with this fragment field.
pub(crate) fn fragment(source: Ipv4Addr, target: Ipv4Addr, field: u16) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 28, 0, 7, 0, 0, 64, 17, 0, 0];
    bytes[6..8].copy_from_slice(&field.to_be_bytes());
    bytes.extend(source.octets());
    bytes.extend(target.octets());
    bytes.extend([0x0f, 0xa0, 0, 53, 0, 8, 0, 0]);
    bytes
}

/// An IPv6 packet whose first header is this one.
pub(crate) fn headers(source: Ipv6Addr, target: Ipv6Addr, next: u8, rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, length[0], length[1], next, 64];
    bytes.extend(source.octets());
    bytes.extend(target.octets());
    bytes.extend(rest);
    bytes
}

/// A TCP segment over IPv4.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) source: SocketAddrV4,
    pub(crate) target: SocketAddrV4,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) payload: &'static [u8],
}

impl Segment {
    /// Sends it from the namespace of this thread.
    pub(crate) fn send(&self) -> Result<()> {
        raw((*self.target.ip()).into(), &self.bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        let length = HEADERS + self.payload.len();
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
        ip[2..4].copy_from_slice(&u16::try_from(length).expect("short").to_be_bytes());
        ip.extend(self.source.ip().octets());
        ip.extend(self.target.ip().octets());
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.target.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([0x50, ACK_PUSH, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(self.payload);
        let mut pseudo = [self.source.ip().octets(), self.target.ip().octets()].concat();
        pseudo.extend([0, 6]);
        pseudo.extend(u16::try_from(tcp.len()).expect("short").to_be_bytes());
        let sum = checksum(&[pseudo, tcp.clone()].concat());
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        ip.extend(tcp);
        ip
    }
}

/// The internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The numbers of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
}

/// Sees every TCP segment that comes into a namespace.
pub(crate) fn sniffer(netns: &Netns) -> Result<Socket> {
    let socket = netns.inside(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)))??;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    Ok(socket)
}

/// What the other end of a connection expects and has sent, by the last segment seen of it.
pub(crate) fn last_acknowledgement(
    sniffer: &Socket,
    from: Ipv4Addr,
    sport: u16,
    dport: u16,
) -> Result<Numbers> {
    let mut last = None;
    let mut buffer = [0; 2048];
    let mut reader = sniffer;
    while let Ok(length) = reader.read(&mut buffer) {
        let packet = &buffer[..length];
        let at = usize::from(packet[0] & 0x0f) * 4;
        let tcp = &packet[at..];
        let ports = (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]));
        if packet[12..16] != from.octets() || ports != (sport, dport) {
            continue;
        }
        let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        let payload = length - at - usize::from(tcp[12] >> 4) * 4;
        let sequence = number(4).wrapping_add(u32::try_from(payload)?);
        last = Some(Numbers { sequence, acknowledged: number(8) });
    }
    last.context("no segment of the connection was seen")
}

/// An ICMPv6 packet with its checksum.
pub(crate) fn icmp6(src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, mut body: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(0).to_be_bytes();
    let pseudo = [&src.octets()[..], &dst.octets(), &length, &[0, 0, 0, 58], &body].concat();
    body[2..4].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    let mut packet = headers(src, dst, 58, &body);
    packet[7] = hop_limit;
    packet
}

/// The body of an ICMP packet with its checksum.
pub(crate) fn icmp4(mut body: Vec<u8>) -> Vec<u8> {
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    body
}

/// An IPv4 packet.
pub(crate) fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, ttl: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + body.len()).unwrap_or(0).to_be_bytes();
    let mut head = vec![0x45, 0, length[0], length[1], 0, 9, 0x40, 0, ttl, protocol, 0, 0];
    head.extend(src.octets());
    head.extend(dst.octets());
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    head.extend(body);
    head
}

/// A raw socket of a pod. It sees what arrives, with its IPv4 header.
pub(crate) struct Sniffer(Socket);

impl Sniffer {
    /// Of a protocol.
    pub(crate) fn start(netns: &Netns, domain: Domain, protocol: i32) -> Result<Self> {
        let socket = netns.inside(|| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(Self(socket))
    }

    /// The first packet that `wanted` takes, within a time.
    pub(crate) fn wait(&self, within: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let end = Instant::now() + within;
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            if let Ok(length) = (&self.0).read(&mut buffer)
                && wanted(&buffer[..length])
            {
                return Some(buffer[..length].to_vec());
            }
        }
        None
    }

    /// Whether what an attack carries came.
    pub(crate) fn saw_secret(&self) -> bool {
        self.wait(SILENCE, |packet| packet.windows(SECRET.len()).any(|window| window == SECRET)).is_some()
    }
}
