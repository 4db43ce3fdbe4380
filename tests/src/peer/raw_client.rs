//! Arbitrary bytes over TCP or UDP, and what came back.
//!
//! Called by `sluice-peer` and by tests; it is also how attacks are sent.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
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
