//! Dials the server that a connection was meant for, in the client's name.
//!
//! Knows nothing of HTTP or of policy. Must be called in the network namespace whose routes lead on.

use crate::limits::{DIAL_TIMEOUT, KEEPALIVE};
use crate::service::route::Target;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::net::{TcpSocket, TcpStream};

/// Probes that tell a peer that vanished from one that says nothing.
#[must_use]
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

/// How servers are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialer {
    /// From the client's own address (`IP_TRANSPARENT`), so that the server sees who calls. Needs `CAP_NET_ADMIN`.
    Transparent,
    /// From the client's own address, but to this server: for tests on loopback, where nothing redirects and every
    /// address is local.
    Loopback(SocketAddr),
    /// From the client's own address, on loopback: for tests with several servers.
    Local,
}

impl Dialer {
    /// Connects to the target's server from the address that it is to see and a free port.
    ///
    /// # Errors
    /// What the kernel says, or that it took longer than [`DIAL_TIMEOUT`]; and for what is no address of a server: in
    /// the proxy's own namespace that would be the proxy.
    pub async fn dial(self, target: &Target) -> io::Result<TcpStream> {
        let to = match self {
            Self::Loopback(server) => server,
            Self::Transparent | Self::Local => target.leg.destination,
        };
        let nobody = self == Self::Transparent && (to.ip().is_loopback() || is_no_host(to.ip()));
        if !target.reachable || nobody {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let socket = TcpSocket::from_std_stream(self.socket(target.from, to)?.into());
        match tokio::time::timeout(DIAL_TIMEOUT, socket.connect(to)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server did not answer")),
        }
    }

    fn socket(self, client: IpAddr, to: SocketAddr) -> io::Result<Socket> {
        let domain = Domain::for_address(to);
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        match self {
            Self::Transparent if domain == Domain::IPV6 => socket.set_ip_transparent_v6(true)?,
            Self::Transparent => socket.set_ip_transparent_v4(true)?,
            Self::Loopback(_) | Self::Local => {}
        }
        // The port is the kernel's to choose (the client's own may still be in use by the other leg), and not before
        // it knows the server: chosen at bind, it would be unique among all connections of the client, and a busy
        // pod would run out of ports (IP_BIND_ADDRESS_NO_PORT; IPv6 sockets take it at the same level).
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddr::new(client, 0).into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())?;
        Ok(socket)
    }
}

/// Whether an address is of no single host. `EndpointSlice`s are written by tenants.
fn is_no_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_unspecified() || address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unspecified() || address.is_multicast(),
    }
}
