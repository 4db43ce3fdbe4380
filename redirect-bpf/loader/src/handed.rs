//! The proxy's listeners: made where the kernel's programs look for them, or taken from a running process.
//!
//! Knows nothing of how they were handed over. Called by the node that begins.

use crate::error::SetupError;
use crate::families::has_v6;
use rustix::io::Errno;
use sluice_bpf_abi::MAX_QUEUES;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// Connections that wait to be accepted, or to be whole, in all of one address's queues: what a flood of SYNs makes the
/// kernel keep (some 300 bytes each) before it answers by cookies.
const WAITING: i32 = 16 * 1024;
/// The same in one queue, where there are few: the kernel's own limit (`net.core.somaxconn`) where it is lower.
const WAITING_IN_ONE: i32 = 4_096;

/// Where the listeners are: for each queue one of each family that the kernel has.
pub(crate) fn addresses(port: u16, queues: u8) -> Vec<SocketAddr> {
    let of = |queue: u8| {
        let port = port.saturating_add(u16::from(queue));
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        std::iter::once(v4).chain(has_v6().then(|| (Ipv6Addr::LOCALHOST, port).into()))
    };
    (0..queues).flat_map(of).collect()
}

/// That there is a listener of each family where every version's hook C looks for one, and none where no version's does.
/// Of the other queues any may be missing: another version has fewer.
pub(crate) fn check(listeners: &[TcpListener], port: u16) -> Result<(), SetupError> {
    let found =
        listeners.iter().map(listening).collect::<io::Result<Vec<_>>>().map_err(SetupError::cannot(
            "ask the listeners that were handed over for their addresses",
            "stop the process that runs first",
        ))?;
    let ours = |at: &Option<SocketAddr>| {
        at.is_some_and(|at| at.port() >= port && at.port() - port < u16::from(MAX_QUEUES))
    };
    if found.iter().all(ours) && addresses(port, 1).iter().all(|address| found.contains(&Some(*address))) {
        return Ok(());
    }
    Err(SetupError::Config {
        what: format!("no listeners on port {port} were handed over, but on {found:?}"),
        remedy: "give both processes the same --listen-port; or stop the one that runs first",
    })
}

/// Those that were handed over and those that are missing beside them, in the order of their queues. To be called in the
/// proxy's namespace.
pub(crate) fn complete(handed: Vec<TcpListener>, port: u16, queues: u8) -> io::Result<Vec<TcpListener>> {
    let mut all = handed;
    for address in addresses(port, queues) {
        if !all.iter().any(|listener| listener.local_addr().is_ok_and(|at| at == address)) {
            all.push(listen(address, (WAITING / i32::from(queues)).min(WAITING_IN_ONE))?);
        }
    }
    // An earlier version takes the first two of what it is handed.
    all.sort_by_key(|listener| listener.local_addr().ok().map(|at| (at.port(), at.is_ipv6())));
    Ok(all)
}

fn listening(listener: &TcpListener) -> io::Result<Option<SocketAddr>> {
    let listens = SockRef::from(listener).is_listener()?;
    Ok(if listens { Some(listener.local_addr()?) } else { None })
}

fn listen(address: SocketAddr, waiting: i32) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_ip_transparent_v4(true).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::PERM.raw_os_error() => {
            io::Error::new(error.kind(), "IP_TRANSPARENT is refused")
        }
        _ => error,
    })?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(waiting)?;
    Ok(socket.into())
}
