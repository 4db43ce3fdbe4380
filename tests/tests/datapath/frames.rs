//! Whole frames: sent by a pod's device as they are, and seen at the other end as they come. Below the sockets of IP,
//! so that no stack corrects, refuses or completes what a test sends.
//!
//! Knows nothing of rules and counters. Used by the tests of fragments and forged frames, and by the fuzzer.

use crate::forge::checksum;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use sluice_tests::world::Netns;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// A hardware address.
pub(crate) type Mac = [u8; 6];
/// To everybody on the link.
pub(crate) const BROADCAST: Mac = [0xff; 6];
/// The node's end of a routed veth, as the world gives it.
pub(crate) const GATEWAY: Mac = [0xee; 6];
/// The kinds of frames.
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;
pub(crate) const ARP: u16 = 0x0806;
/// The protocols.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// `ETH_P_ALL`, in network order.
const EVERYTHING: i32 = 0x0300;
/// What a sniffer may hold back unread: a fuzzer's whole run.
const BACKLOG: usize = 16 << 20;

/// A device that frames go out by.
pub(crate) struct Wire {
    socket: Socket,
    device: SockaddrStorage,
    /// Its own address.
    pub(crate) mac: Mac,
}

impl Wire {
    /// The device of this name in a namespace.
    pub(crate) fn open(netns: &Netns, name: &str) -> Result<Self> {
        netns.inside(|| -> Result<Self> {
            let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
            let device = nix::ifaddrs::getifaddrs()?
                .filter(|found| found.interface_name == name)
                .find_map(|found| found.address.filter(|address| address.as_link_addr().is_some()))
                .with_context(|| format!("no device {name}"))?;
            let mac = device.as_link_addr().and_then(nix::sys::socket::LinkAddr::addr);
            Ok(Self { socket, device, mac: mac.context("no hardware address")? })
        })?
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = sendto(self.socket.as_raw_fd(), frame, &self.device, MsgFlags::empty())?;
        ensure!(sent == frame.len(), "only {sent} bytes were sent");
        Ok(())
    }
}

/// Sees every frame that comes into a namespace, or leaves it.
pub(crate) struct Tap(Socket);

impl Tap {
    /// From now on.
    pub(crate) fn start(netns: &Netns) -> Result<Self> {
        let socket =
            netns.inside(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(EVERYTHING))))??;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BACKLOG)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self(socket))
    }

    /// The next frame, if one comes within the socket's patience.
    pub(crate) fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = [0; 9_216];
        match (&self.0).read(&mut buffer) {
            Ok(length) => Ok(Some(buffer[..length].to_vec())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a frame with these bytes comes within a time.
    pub(crate) fn sees(&self, wanted: &[u8], within: Duration) -> Result<bool> {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if self.next()?.is_some_and(|frame| contains(&frame, wanted)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether these bytes are in there.
pub(crate) fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// A frame.
pub(crate) fn frame(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), body].concat()
}

/// The kind of frame that an address goes in.
pub(crate) const fn kind(address: IpAddr) -> u16 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

/// A UDP datagram with its checksum.
pub(crate) fn udp(src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("short").to_be_bytes();
    let ports = [src.port().to_be_bytes(), dst.port().to_be_bytes(), length, [0, 0]];
    sealed(src.ip(), dst.ip(), UDP, 6, [&ports.concat(), payload].concat())
}

/// A TCP segment with these flags, without options.
pub(crate) fn tcp(src: SocketAddr, dst: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    sealed(src.ip(), dst.ip(), TCP, 16, bytes)
}

/// Puts the checksum of a transport in its place (RFC 768, RFC 8200, section 8.1).
pub(crate) fn sealed(src: IpAddr, dst: IpAddr, protocol: u8, at: usize, mut bytes: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
    let pseudo = [&octets(src)[..], &octets(dst), &length, &[0, 0, 0, protocol], &bytes].concat();
    bytes[at..at + 2].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    bytes
}

/// An address as it is in a header.
pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A packet of either family.
pub(crate) fn packet(src: IpAddr, dst: IpAddr, protocol: u8, body: &[u8]) -> Vec<u8> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => crate::forge::ipv4(src, dst, protocol, 64, body),
        (IpAddr::V6(src), IpAddr::V6(dst)) => crate::forge::headers(src, dst, protocol, body),
        _ => panic!("one family"),
    }
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) id: u16,
    /// In bytes.
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

/// A fragment of a packet of either family.
pub(crate) fn part(src: IpAddr, dst: IpAddr, protocol: u8, place: Place, body: &[u8]) -> Vec<u8> {
    let offset = u16::try_from(place.offset).expect("short");
    let [high, low] = place.id.to_be_bytes();
    if src.is_ipv6() {
        let [a, b] = (offset | u16::from(place.more)).to_be_bytes();
        return packet(src, dst, 44, &[&[protocol, 0, a, b, 0, 0, high, low], body].concat());
    }
    let mut bytes = packet(src, dst, protocol, body);
    let field = (offset / 8) | if place.more { 0x2000 } else { 0 };
    bytes[4..6].copy_from_slice(&[high, low]);
    bytes[6..8].copy_from_slice(&field.to_be_bytes());
    summed(bytes)
}

/// An IPv4 packet with its header's checksum made right.
pub(crate) fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let header = usize::from(bytes[0] & 0x0f) * 4;
    bytes[10..12].fill(0);
    let sum = checksum(&bytes[..header.min(bytes.len())]);
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes
}
