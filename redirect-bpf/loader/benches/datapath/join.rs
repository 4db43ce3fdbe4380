//! Two legs joined by a sockmap: the kernel redirects what arrives at one socket to the other's way out.
//!
//! What was in a socket's queue before is read here and written to the other leg; so is the end of a stream, which no
//! sockmap passes on. Called by the relay.

use crate::trials;
use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, SockHash};
use aya::programs::{CgroupAttachMode, SkSkb, SockOps};
use socket2::SockRef;
use std::fs::File;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// What is read at once of what the kernel did not redirect.
const LEFT_OVER: usize = 64 * 1024;

/// Sizes and places in `struct tcp_info`, which libc knows an older one of.
const TCP_INFO: usize = 216;
const BYTES_RECEIVED: usize = 128;
const BYTES_SENT: usize = 200;
const BYTES_RETRANS: usize = 208;
/// How often the counters are looked at, and for how long.
const LOOK: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(3);

/// The maps that joined sockets are in.
pub(crate) struct Joint {
    socks: Mutex<SockHash<MapData, u64>>,
    peers: Mutex<HashMap<MapData, u64, u64>>,
    /// A sockops program puts sockets into the map, as soon as they are connected.
    enrolled: bool,
    /// The programs live as long.
    _ebpf: Ebpf,
}

impl Joint {
    /// Sockets are put there from here; or, with a cgroup and a namespace's cookie, by a program for the sockets of
    /// that namespace whose process is in that cgroup.
    pub(crate) fn new(enrol: Option<(&File, u64)>) -> Result<Self> {
        let mut ebpf = trials()?;
        let socks = SockHash::try_from(ebpf.take_map("SOCKS").context("SOCKS")?)?;
        let peers = HashMap::try_from(ebpf.take_map("PEERS").context("PEERS")?)?;
        let join: &mut SkSkb = ebpf.program_mut("join").context("join")?.try_into()?;
        join.load()?;
        let fd = socks.fd().try_clone()?;
        join.attach(&fd)?;
        if let Some((cgroup, netns)) = enrol {
            let mut own: Array<_, u64> = Array::try_from(ebpf.map_mut("NETNS").context("NETNS")?)?;
            own.set(0, netns, 0)?;
            let program: &mut SockOps = ebpf.program_mut("enrol").context("enrol")?.try_into()?;
            program.load()?;
            program.attach(cgroup, CgroupAttachMode::Single)?;
        }
        let (socks, peers) = (Mutex::new(socks), Mutex::new(peers));
        Ok(Self { socks, peers, enrolled: enrol.is_some(), _ebpf: ebpf })
    }

    /// Joins two connections until both directions have ended.
    pub(crate) async fn serve(&self, a: &TcpStream, b: &TcpStream) -> Result<()> {
        let (one, other) = (SockRef::from(a).cookie()?, SockRef::from(b).cookie()?);
        let joined = self.join((one, a), (other, b));
        let done = match joined {
            Ok(()) => tokio::try_join!(rest(a, b), rest(b, a)).map(|_| ()),
            Err(error) => Err(error),
        };
        let mut peers = lock(&self.peers);
        let _ = (peers.remove(&one), peers.remove(&other));
        done
    }

    fn join(&self, (one, a): (u64, &TcpStream), (other, b): (u64, &TcpStream)) -> Result<()> {
        if !self.enrolled {
            let mut socks = lock(&self.socks);
            socks.insert(one, a.as_raw_fd(), 0).map_err(|error| anyhow!("insert: {error:?}"))?;
            socks.insert(other, b.as_raw_fd(), 0).map_err(|error| anyhow!("insert: {error:?}"))?;
        }
        // Both are there: what is redirected finds where to go.
        let mut peers = lock(&self.peers);
        peers.insert(one, other, 0)?;
        peers.insert(other, one, 0)?;
        Ok(())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the kernel left to us, and the end.
async fn rest(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let mut buffer = vec![0; LEFT_OVER];
    loop {
        from.readable().await?;
        match from.try_read(&mut buffer) {
            Ok(0) => {
                drained(from, to).await?;
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Ok(());
            }
            Ok(some) => write(to, &buffer[..some]).await?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until everything that came in has gone out. What the kernel redirects waits in a queue that nothing tells of,
/// and is lost where the end overtakes it; so the counters of both connections are compared.
async fn drained(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        // The end of a stream counts as a byte.
        if Counts::of(to)?.sent >= Counts::of(from)?.received.saturating_sub(1) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// What a connection has carried, as `TCP_INFO` has it (Linux 4.19).
struct Counts {
    received: u64,
    /// Payload, what was sent twice counted once.
    sent: u64,
}

impl Counts {
    fn of(stream: &TcpStream) -> Result<Self> {
        let (mut info, mut size) = ([0_u8; TCP_INFO], TCP_INFO as libc::socklen_t);
        // SAFETY: the kernel writes at most `size` bytes into the array, which lives for the call.
        let done = unsafe {
            let value = info.as_mut_ptr().cast();
            libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut size)
        };
        if done != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let word = |at: usize| info[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        Ok(Self {
            received: word(BYTES_RECEIVED),
            sent: word(BYTES_SENT).saturating_sub(word(BYTES_RETRANS)),
        })
    }
}

/// All of it.
async fn write(to: &TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(some) => bytes = &bytes[some..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
