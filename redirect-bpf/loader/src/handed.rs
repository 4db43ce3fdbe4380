//! What a running process hands over: listeners that must be the ones the kernel's programs look for.
//!
//! Knows nothing of how they were handed over. Called by the node that adopts them.

use crate::error::SetupError;
use crate::families::has_v6;
use socket2::SockRef;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// Where the listeners are, one of each family that the kernel has.
pub(crate) fn addresses(port: u16) -> Vec<SocketAddr> {
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    std::iter::once(v4).chain(has_v6().then(|| (Ipv6Addr::LOCALHOST, port).into())).collect()
}

/// That there is a listener of each family, where hook C looks for it.
pub(crate) fn check(listeners: &[TcpListener], port: u16) -> Result<(), SetupError> {
    let wanted = addresses(port);
    let listening = |listener: &TcpListener| -> io::Result<Option<SocketAddr>> {
        let listens = SockRef::from(listener).is_listener()?;
        Ok(if listens { Some(listener.local_addr()?) } else { None })
    };
    let found =
        listeners.iter().map(listening).collect::<io::Result<Vec<_>>>().map_err(SetupError::cannot(
            "ask the listeners that were handed over for their addresses",
            "stop the process that runs first",
        ))?;
    if wanted.iter().all(|address| found.contains(&Some(*address))) {
        return Ok(());
    }
    Err(SetupError::Config {
        what: format!("no listeners on port {port} were handed over, but on {found:?}"),
        remedy: "give both processes the same --listen-port; or stop the one that runs first",
    })
}
