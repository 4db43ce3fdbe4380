//! What talks in these tests: servers that say who reached them, clients with deadlines, and a transparent
//! proxy that only carries bytes.

use anyhow::{Context, Result, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_tests::Pod;
use sluice_tests::world::Netns;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// What is allowed answers within this.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// What is denied is silent for this long: two of TCP's attempts.
pub(crate) const SILENCE: Duration = Duration::from_millis(1300);

/// The length after which what a bulk transfer sends begins again: a prime.
const PATTERN: usize = 65_521;
/// The most that is read at once of it.
const READ: usize = 256 * 1024;

/// Serves TCP on a port of a pod until dropped: says `<peer's address>\n` and then echoes.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    at: SocketAddr,
    netns: Netns,
    /// How many connections it has had.
    pub(crate) connections: Arc<AtomicUsize>,
    /// Every byte it was ever sent.
    pub(crate) received: Arc<Mutex<Vec<u8>>>,
    /// Those that are open.
    streams: Arc<Mutex<Vec<Weak<TcpStream>>>>,
}

impl Server {
    /// On both families.
    pub(crate) fn start(netns: &Netns, port: u16) -> Result<Self> {
        let listener = netns.inside(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))??;
        let server = Self {
            stop: Arc::default(),
            at: SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
            netns: netns.clone(),
            connections: Arc::default(),
            received: Arc::default(),
            streams: Arc::default(),
        };
        let streams = Arc::clone(&server.streams);
        let (stop, connections, received) =
            (Arc::clone(&server.stop), Arc::clone(&server.connections), Arc::clone(&server.received));
        std::thread::spawn(move || {
            while let Ok((stream, peer)) = listener.accept() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                connections.fetch_add(1, Ordering::SeqCst);
                let received = Arc::clone(&received);
                let stream = Arc::new(stream);
                streams.lock().expect("not poisoned").push(Arc::downgrade(&stream));
                std::thread::spawn(move || serve(&stream, peer.ip().to_canonical(), &received));
            }
        });
        Ok(server)
    }

    /// Sends a line to every client that it has, unasked.
    pub(crate) fn say(&self, text: &str) -> Result<()> {
        let streams = self.streams.lock().expect("not poisoned");
        let line = format!("{text}\n");
        let mut open = streams.iter().filter_map(Weak::upgrade);
        open.try_for_each(|stream| Ok((&*stream).write_all(line.as_bytes())?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let at = self.at;
        let _ = self.netns.inside(|| TcpStream::connect_timeout(&at, SOON));
    }
}

fn serve(mut stream: &TcpStream, peer: IpAddr, received: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    stream.write_all(format!("{peer}\n").as_bytes())?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        received.lock().expect("not poisoned").extend_from_slice(&buffer[..read]);
        stream.write_all(&buffer[..read])?;
    }
}

/// An open connection of a pod.
pub(crate) struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    /// The client's address as the server saw it.
    pub(crate) seen: IpAddr,
}

impl Connection {
    /// Connects and reads who the server says we are.
    pub(crate) fn open(netns: &Netns, target: SocketAddr) -> Result<Self> {
        let stream = netns.inside(|| TcpStream::connect_timeout(&target, SOON))?.context("connect")?;
        Self::greet(stream)
    }

    /// The same from a port of our choice.
    pub(crate) fn open_from(netns: &Netns, local: SocketAddr, target: SocketAddr) -> Result<Self> {
        let connect = || -> std::io::Result<TcpStream> {
            let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&local.into())?;
            socket.connect_timeout(&target.into(), SOON)?;
            Ok(socket.into())
        };
        let end = Instant::now() + SOON;
        loop {
            match netns.inside(connect)? {
                // A process that another test is just starting may hold a copy of the socket that had the port.
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable && Instant::now() < end => {}
                done => return Self::greet(done.with_context(|| format!("from {local} to {target}"))?),
            }
        }
    }

    /// Sends this many bytes and reads them back, both at once.
    pub(crate) fn bulk(&mut self, bytes: usize) -> Result<()> {
        self.stream.set_read_timeout(Some(SOON))?;
        self.stream.set_write_timeout(Some(SOON))?;
        let mut writer = self.stream.try_clone()?;
        // Of no length that packets or buffers have, so that what is lost, doubled or moved shows.
        let pattern: Vec<u8> = (0..PATTERN).map(|at| (at * at % 251) as u8).collect();
        let doubled = pattern.repeat(2 + READ.div_ceil(PATTERN));
        let sending = std::thread::spawn(move || {
            let mut left = bytes;
            while left > 0 {
                let part = left.min(pattern.len());
                writer.write_all(&pattern[..part])?;
                left -= part;
            }
            Ok::<(), std::io::Error>(())
        });
        let mut buffer = vec![0; READ];
        let mut read = 0;
        while read < bytes {
            let some =
                self.reader.read(&mut buffer).with_context(|| format!("after {read} of {bytes} bytes"))?;
            ensure!(some > 0, "closed after {read} of {bytes} bytes");
            let expected = &doubled[read % PATTERN..][..some];
            ensure!(buffer[..some] == *expected, "bytes {read} to {} are not what was sent", read + some);
            read += some;
        }
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        Ok(())
    }

    /// A connection that was made, and has not been greeted.
    pub(crate) fn greet(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(SOON))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line).context("the greeting")?;
        let seen = line.trim().parse().with_context(|| format!("the greeting {line:?}"))?;
        Ok(Self { stream, reader, seen })
    }

    /// Sends a line and reads it back.
    pub(crate) fn echo(&mut self, text: &str, deadline: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(deadline))?;
        self.stream.write_all(format!("{text}\n").as_bytes())?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(line.trim() == text, "sent {text:?}, came back {line:?}");
        Ok(())
    }

    /// Reads a line that the server says unasked.
    pub(crate) fn hear(&mut self, text: &str, deadline: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(deadline))?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        ensure!(line.trim() == text, "{line:?} came, and not {text:?}");
        Ok(())
    }

    /// That nothing comes back any more.
    pub(crate) fn is_dead(&mut self) -> Result<()> {
        match self.echo("are you there?", SILENCE) {
            Err(_) => Ok(()),
            Ok(()) => bail!("the connection still carries data"),
        }
    }

    /// That it ends at once, by the other side's word.
    pub(crate) fn is_reset(&mut self) -> Result<()> {
        let start = Instant::now();
        match self.echo("are you there?", SOON) {
            Ok(()) => bail!("the connection still carries data"),
            Err(_) => ensure!(start.elapsed() < SOON, "the connection ended in silence"),
        }
        Ok(())
    }

    /// That it is reset without a word from us.
    pub(crate) fn was_reset(&mut self) -> Result<()> {
        self.stream.set_read_timeout(Some(SOON))?;
        match self.reader.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => bail!("it was not reset: {other:?}"),
        }
    }

    /// That the other side has closed it in order.
    pub(crate) fn is_closed(&mut self) -> Result<()> {
        self.stream.set_read_timeout(Some(SOON))?;
        let more = self.reader.read(&mut [0])?;
        ensure!(more == 0, "the connection still carries data");
        Ok(())
    }

    /// Ends it with a reset, so that its port is free at once.
    pub(crate) fn reset(self) -> Result<()> {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }

    /// Our side of it.
    pub(crate) fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }
}

/// That a pod reaches a server, which sees the pod's own address.
pub(crate) fn reaches(from: &Pod, target: SocketAddr) -> Result<()> {
    let what = || format!("{} should reach {target}", from.name);
    let mut connection = Connection::open(&from.netns, target).with_context(what)?;
    connection.echo("hello", SOON).with_context(what)?;
    let own = if target.is_ipv4() { IpAddr::V4(from.v4) } else { IpAddr::V6(from.v6) };
    ensure!(connection.seen == own, "{target} saw {} and not {own}", connection.seen);
    Ok(())
}

/// That a pod does not reach a server.
pub(crate) fn is_refused(from: &Pod, target: SocketAddr) -> Result<()> {
    let result = from.netns.inside(|| TcpStream::connect_timeout(&target, SILENCE))?;
    ensure!(result.is_err(), "{} should not reach {target}", from.name);
    Ok(())
}

/// One datagram there and back; false if there is silence.
pub(crate) fn datagram(
    netns: &Netns,
    local: SocketAddr,
    target: SocketAddr,
    deadline: Duration,
) -> Result<bool> {
    netns.inside(|| -> Result<bool> {
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(deadline))?;
        socket.send_to(b"ping", target)?;
        let mut buffer = [0; 16];
        match socket.recv_from(&mut buffer) {
            Ok((4, from)) if from == target && &buffer[..4] == b"ping" => Ok(true),
            Ok(other) => bail!("an answer of {other:?}"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error.into()),
        }
    })?
}

/// Echoes datagrams until dropped.
pub(crate) struct UdpServer {
    stop: Arc<AtomicBool>,
    /// How many datagrams came.
    pub(crate) datagrams: Arc<AtomicUsize>,
}

impl UdpServer {
    /// On one address.
    pub(crate) fn start(netns: &Netns, at: SocketAddr) -> Result<Self> {
        let socket = netns.inside(|| UdpSocket::bind(at))??;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let server = Self { stop: Arc::default(), datagrams: Arc::default() };
        let (stop, datagrams) = (Arc::clone(&server.stop), Arc::clone(&server.datagrams));
        std::thread::spawn(move || {
            let mut buffer = [0; 9_216];
            while !stop.load(Ordering::SeqCst) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    datagrams.fetch_add(1, Ordering::SeqCst);
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Ok(server)
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// One echo request there and back.
pub(crate) fn ping(from: &Pod, target: IpAddr) -> Result<bool> {
    let text = target.to_string();
    Ok(from.netns.output(&["ping", "-c", "1", "-W", "1", &text])?.status.success())
}

/// A transparent proxy that carries bytes, in the place of the real one.
pub(crate) struct Proxy {
    stop: Arc<AtomicBool>,
    at: Vec<SocketAddr>,
    threads: Vec<std::thread::JoinHandle<()>>,
    netns: OwnedFd,
    /// What it accepted: client and original destination.
    pub(crate) accepted: Arc<Mutex<Vec<(SocketAddr, SocketAddr)>>>,
}

impl Proxy {
    /// Takes the listeners of a node.
    pub(crate) fn start(node: &sluice_redirect::Node) -> Result<Self> {
        Self::choosing(node, |_, target| Some(target))
    }

    /// The same, and says for each client and original destination whom to connect to.
    pub(crate) fn choosing(
        node: &sluice_redirect::Node,
        choose: impl Fn(SocketAddr, SocketAddr) -> Option<SocketAddr> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::carrying(node, node.listeners()?, choose)
    }

    /// On listeners that somebody else has too.
    pub(crate) fn on(node: &sluice_redirect::Node, listeners: &[TcpListener]) -> Result<Self> {
        let listeners = listeners.iter().map(TcpListener::try_clone).collect::<std::io::Result<_>>()?;
        Self::carrying(node, listeners, |_, target| Some(target))
    }

    fn carrying(
        node: &sluice_redirect::Node,
        listeners: Vec<TcpListener>,
        choose: impl Fn(SocketAddr, SocketAddr) -> Option<SocketAddr> + Send + Sync + 'static,
    ) -> Result<Self> {
        let choose = Arc::new(choose);
        let mut proxy = Self {
            stop: Arc::default(),
            at: listeners.iter().map(TcpListener::local_addr).collect::<std::io::Result<_>>()?,
            threads: Vec::new(),
            netns: node.proxy_netns().try_clone_to_owned()?,
            accepted: Arc::default(),
        };
        for listener in listeners {
            let netns = node.proxy_netns().try_clone_to_owned()?;
            let (stop, accepted) = (Arc::clone(&proxy.stop), Arc::clone(&proxy.accepted));
            let choose = Arc::clone(&choose);
            proxy.threads.push(std::thread::spawn(move || {
                enter(netns.as_fd()).expect("the proxy's namespace");
                while let Ok((stream, client)) = listener.accept() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let target = stream.local_addr().expect("the original destination");
                    accepted.lock().expect("not poisoned").push((client, target));
                    let Some(target) = choose(client, target) else { continue };
                    // Threads are born in their parent's namespace.
                    std::thread::spawn(move || carry(stream, client, target));
                }
            }));
        }
        Ok(proxy)
    }

    /// How many connections it accepted.
    pub(crate) fn count(&self) -> usize {
        self.accepted.lock().expect("not poisoned").len()
    }

    /// Closes the listeners and waits until they are closed.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.shut()
    }

    fn shut(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        let (netns, at) = (self.netns.as_fd(), &self.at);
        std::thread::scope(|scope| {
            let wake = scope.spawn(move || -> Result<()> {
                enter(netns)?;
                at.iter().try_for_each(|at| Ok(TcpStream::connect_timeout(at, SOON).map(drop)?))
            });
            wake.join().unwrap_or_else(|_| bail!("the thread that stops the proxy panicked"))
        })?;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            let _ = self.shut();
        }
    }
}

/// Runs in a namespace, on a thread of its own.
pub(crate) fn within<T: Send>(netns: OwnedFd, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(move || enter(netns.as_fd()).and_then(|()| work()));
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter(netns: BorrowedFd<'_>) -> Result<()> {
    Ok(move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?)
}

fn carry(client: TcpStream, from: SocketAddr, target: SocketAddr) -> Result<()> {
    let upstream = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    upstream.set_ip_transparent_v4(true)?;
    upstream.bind(&SockAddr::from(SocketAddr::new(from.ip(), 0)))?;
    upstream.connect_timeout(&target.into(), SOON)?;
    let upstream = TcpStream::from(upstream);
    let (mut a, mut b) = (client.try_clone()?, upstream.try_clone()?);
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut b, &mut a);
        let _ = a.shutdown(Shutdown::Both);
        let _ = b.shutdown(Shutdown::Both);
    });
    let (mut a, mut b) = (client, upstream);
    let _ = std::io::copy(&mut a, &mut b);
    let _ = b.shutdown(Shutdown::Write);
    let _ = back.join();
    Ok(())
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + SOON;
    while !holds()? {
        ensure!(Instant::now() < end, "did not come true: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
