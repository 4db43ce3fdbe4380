//! A proxy that reads nothing: it takes connections and passes bytes on, one thread on one CPU.
//!
//! Knows nothing of how a connection came to its listener. Called by the trials.

use crate::join::Joint;
use crate::splice;
use crate::traffic::settle;
use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// What a copying proxy reads at once.
pub(crate) const CHUNK: usize = 64 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// How bytes go from one leg to the other.
#[derive(Clone)]
pub(crate) enum How {
    /// Read and written again.
    Copy,
    /// By splice(2), through a pipe.
    Splice,
    /// In the kernel, from one socket to the other.
    Joined(Arc<Joint>),
}

/// Where the server is, for the proxy.
#[derive(Clone, Copy)]
pub(crate) enum Dial {
    /// Where the client wanted to go, from the client's own address; the sockets have this mark.
    Transparent(u32),
    /// There.
    Fixed(SocketAddr),
}

/// The proxy, while it runs.
pub(crate) struct Relay {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<Duration>>,
}

impl Relay {
    /// Starts it in a namespace, on a CPU.
    pub(crate) fn start(
        netns: &File,
        listener: &TcpListener,
        cpu: usize,
        (how, dial): (How, Dial),
    ) -> Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let (netns, listener) = (netns.try_clone()?, listener.try_clone()?);
        let thread = std::thread::spawn(move || {
            settle(&netns, cpu)?;
            listener.set_nonblocking(true)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let before = clock_gettime(ClockId::ThreadCPUTime);
            runtime.block_on(async {
                tokio::select! {
                    taken = take(listener, how, dial) => taken,
                    _ = stopped => Ok(()),
                }
            })?;
            let after = clock_gettime(ClockId::ThreadCPUTime);
            let time = |at: rustix::time::Timespec| {
                Duration::new(at.tv_sec.unsigned_abs(), u32::try_from(at.tv_nsec).unwrap_or(0))
            };
            Ok(time(after).saturating_sub(time(before)))
        });
        Ok(Self { stop, thread })
    }

    /// Ends it and everything that it has open; the CPU time that it took.
    pub(crate) fn stop(self) -> Result<Duration> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow::anyhow!("the proxy panicked"))?.context("the proxy")
    }
}

/// The listener of a transparent proxy, on loopback. To be called in the proxy's namespace.
pub(crate) fn listen(at: SocketAddr, mark: u32) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_ip_transparent_v4(true)?;
    socket.set_mark(mark)?;
    socket.bind(&at.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn take(listener: TcpListener, how: How, dial: Dial) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (client, from) = listener.accept().await?;
        // A connection that breaks is its own end's matter.
        tokio::spawn(serve(client, from.ip(), how.clone(), dial));
    }
}

async fn serve(mut client: TcpStream, from: IpAddr, how: How, dial: Dial) -> Result<()> {
    client.set_nodelay(true)?;
    let mut server = match dial {
        Dial::Fixed(to) => TcpStream::connect(to).await?,
        Dial::Transparent(mark) => leg(from, mark)?.connect(client.local_addr()?).await?,
    };
    server.set_nodelay(true)?;
    match how {
        How::Copy => {
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, CHUNK, CHUNK).await?;
        }
        How::Splice => splice::both(&client, &server).await?,
        How::Joined(joint) => joint.serve(&client, &server).await?,
    }
    Ok(())
}

fn leg(from: IpAddr, mark: u32) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    let options = SockRef::from(&socket);
    options.set_ip_transparent_v4(true)?;
    options.set_mark(mark)?;
    late_port(&options)?;
    options.bind(&SocketAddr::new(from, 0).into())?;
    Ok(socket)
}

/// The port is chosen when the server is known, as the real proxy has it.
fn late_port(socket: &Socket) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int, and it lives for the call.
    let done = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}
