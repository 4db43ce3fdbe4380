//! Arbitrary bytes over TCP or UDP, an ICMP echo, and what came back.
//!
//! Called by `sluice-peer` and by tests; it is also how attacks are sent.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Most bytes kept of an answer.
const MAX_ANSWER: usize = 1024 * 1024;

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawAnswer {
    /// Whether a connection was had; for UDP, whether the datagram was sent.
    pub connected: bool,
    /// The bytes that came.
    pub received: Vec<u8>,
    /// Whether the other end closed.
    pub closed: bool,
    /// What went wrong, as the kernel calls it.
    pub error: Option<String>,
}

impl RawAnswer {
    fn failed(connected: bool, error: &std::io::Error) -> Self {
        Self { connected, error: Some(error.kind().to_string()), ..Self::default() }
    }

    /// The bytes as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.received).into_owned()
    }
}

/// Connects, sends, and reads until the other end closes, `enough` bytes came or the deadline is over.
#[must_use]
pub fn tcp(target: SocketAddr, payload: &[u8], enough: usize, deadline: Duration) -> RawAnswer {
    let end = Instant::now() + deadline;
    let mut stream = match TcpStream::connect_timeout(&target, deadline) {
        Ok(stream) => stream,
        Err(error) => return RawAnswer::failed(false, &error),
    };
    if let Err(error) = stream.write_all(payload) {
        return RawAnswer::failed(true, &error);
    }
    let mut answer = RawAnswer { connected: true, ..RawAnswer::default() };
    let mut buffer = [0; 16 * 1024];
    while answer.received.len() < enough.min(MAX_ANSWER) {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let read = stream.set_read_timeout(Some(left)).and_then(|()| stream.read(&mut buffer));
        match read {
            Ok(0) => {
                answer.closed = true;
                break;
            }
            Ok(read) => answer.received.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                answer.error = Some(error.kind().to_string());
                break;
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    answer
}

/// Sends one datagram and waits for one.
///
/// # Errors
/// When no socket can be had.
pub fn udp(target: SocketAddr, payload: &[u8], deadline: Duration) -> Result<RawAnswer> {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0".parse()? } else { "[::]:0".parse()? };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(deadline))?;
    if let Err(error) = socket.connect(target).and_then(|()| socket.send(payload)) {
        return Ok(RawAnswer::failed(false, &error));
    }
    let mut buffer = vec![0; 64 * 1024];
    Ok(match socket.recv(&mut buffer) {
        Ok(read) => RawAnswer { connected: true, received: buffer[..read].to_vec(), ..RawAnswer::default() },
        Err(error) => RawAnswer::failed(true, &error),
    })
}

/// Sends one echo request and waits for its reply.
///
/// # Errors
/// When no raw socket can be had.
pub fn icmp(target: IpAddr, deadline: Duration) -> Result<RawAnswer> {
    let (domain, protocol, request) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    let id = u16::try_from(std::process::id() & 0xffff)?.to_be_bytes();
    // Type, code, checksum, identifier, sequence; the kernel fills in ICMPv6's checksum.
    let mut packet = vec![request, 0, 0, 0, id[0], id[1], 0, 1];
    packet.extend_from_slice(b"sluice-peer");
    if target.is_ipv4() {
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    if let Err(error) = socket.send_to(&packet, &SocketAddr::new(target, 0).into()) {
        return Ok(RawAnswer::failed(false, &error));
    }
    let end = Instant::now() + deadline;
    let mut socket: std::fs::File = std::os::fd::OwnedFd::from(socket).into();
    let mut buffer = [0; 2048];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(RawAnswer {
                connected: true,
                error: Some("timed out".to_owned()),
                ..RawAnswer::default()
            });
        }
        socket2::SockRef::from(&socket).set_read_timeout(Some(left))?;
        let Ok(read) = socket.read(&mut buffer) else { continue };
        // A raw IPv4 socket gives the IP header too; its length is in the low half of the first byte.
        let skip = if target.is_ipv4() { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
        let reply = buffer.get(skip..read).unwrap_or_default();
        let kind = if target.is_ipv4() { 0 } else { 129 };
        if reply.first() == Some(&kind) && reply.get(4..6) == Some(&id) && reply.ends_with(b"sluice-peer") {
            return Ok(RawAnswer { connected: true, received: reply.to_vec(), ..RawAnswer::default() });
        }
    }
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}
