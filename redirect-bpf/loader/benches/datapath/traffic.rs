//! Traffic between two network namespaces, and what it cost: operations, time, and CPU time of both ends.
//!
//! A veth's packets are handled in the softirq of whoever sends them, so a thread's CPU time has the whole way in it.
//! Knows nothing of what judges the packets. Called by the benchmark.

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The port of every server.
pub(crate) const PORT: u16 = 5201;
/// What netperf and iperf3 write at once.
const CHUNK: usize = 128 * 1024;
/// A small packet's payload.
const SMALL: usize = 64;
/// A server that hears nothing for this long has heard everything.
const QUIET: Duration = Duration::from_millis(50);
/// Nothing may take longer.
const STUCK: Duration = Duration::from_secs(10);

/// What is done, by the names that netperf gave them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Workload {
    /// One byte there and back over one connection.
    TcpRr,
    /// As many bytes as fit, one way.
    TcpStream,
    /// Datagrams of 64 bytes, one way.
    Udp,
    /// A connection, one byte there and back, and its end.
    TcpCrr,
}

impl Workload {
    /// All.
    pub(crate) const ALL: [Self; 4] = [Self::TcpRr, Self::TcpStream, Self::Udp, Self::TcpCrr];

    /// The name, and what is counted.
    pub(crate) const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::TcpRr => ("TCP_RR", "transactions"),
            Self::TcpStream => ("TCP_STREAM", "MB"),
            Self::Udp => ("UDP, 64 bytes", "datagrams"),
            Self::TcpCrr => ("TCP_CRR", "connections"),
        }
    }

    /// The CPU of each end. Who waits for the other shares a CPU with it: to wake another CPU of a virtual machine
    /// takes longer than everything that is measured.
    pub(crate) const fn cpus(self) -> (usize, usize) {
        match self {
            Self::TcpRr | Self::TcpCrr => (0, 0),
            Self::TcpStream | Self::Udp => (0, 1),
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// How many of what the workload counts.
    pub(crate) operations: f64,
    /// In this time.
    pub(crate) elapsed: Duration,
    /// CPU time of both ends together.
    pub(crate) cpu: Duration,
    /// How long each took, where one waits for the other.
    pub(crate) delays: Vec<Duration>,
}

impl Sample {
    /// A second.
    pub(crate) fn rate(&self) -> f64 {
        self.operations / self.elapsed.as_secs_f64()
    }

    /// Nanoseconds of CPU time for one.
    pub(crate) fn nanos(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.operations.max(1.0)
    }
}

/// What one end did: how much, in which time, with which CPU time.
pub(crate) type Told = Result<(f64, Duration, Duration)>;

/// Runs a workload from one namespace to an address, behind which is the server in the other.
pub(crate) fn run(
    workload: Workload,
    from: &File,
    to: &File,
    at: Ipv4Addr,
    time: Duration,
) -> Result<Sample> {
    let target = SocketAddr::from((at, PORT));
    let (client_cpu, server_cpu) = workload.cpus();
    std::thread::scope(|scope| {
        let (ready, listens) = mpsc::channel();
        let server = scope.spawn(move || -> Told {
            settle(to, server_cpu)?;
            serve(workload, SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), &ready)
        });
        // If it does not listen, its own error says why.
        let _ = listens.recv();
        let client = scope.spawn(move || -> Result<_> {
            settle(from, client_cpu)?;
            let mut delays = Vec::new();
            let told = measured(|| call(workload, target, time, &mut delays))?;
            Ok((told, delays))
        });
        let ((sent, elapsed, client_cpu), delays) =
            client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        let (received, _, server_cpu) =
            server.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
        let arrives = matches!(workload, Workload::Udp | Workload::TcpStream);
        let operations = if arrives { received } else { sent };
        Ok(Sample { operations, elapsed, cpu: client_cpu + server_cpu, delays })
    })
}

/// Takes this thread into a namespace and onto a CPU.
pub(crate) fn settle(netns: &File, cpu: usize) -> Result<()> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
        .context("enter a namespace")?;
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(None, &one)?;
    Ok(())
}

pub(crate) fn measured(work: impl FnOnce() -> Result<f64>) -> Told {
    let cpu = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
    };
    let (start, before) = (Instant::now(), cpu());
    let operations = work()?;
    Ok((operations, start.elapsed(), cpu().saturating_sub(before)))
}

fn serve(workload: Workload, at: SocketAddr, ready: &mpsc::Sender<()>) -> Told {
    if workload == Workload::Udp {
        let socket = UdpSocket::bind(at)?;
        socket.set_read_timeout(Some(QUIET))?;
        let _ = ready.send(());
        return measured(|| hear(&socket));
    }
    let listener = TcpListener::bind(at)?;
    // A client that failed says why; its server ends as well.
    socket2::SockRef::from(&listener).set_read_timeout(Some(STUCK))?;
    let _ = ready.send(());
    measured(|| match workload {
        Workload::TcpRr => answer(&accept(&listener)?),
        Workload::TcpStream => swallow(&accept(&listener)?),
        _ => loop {
            let mut stream = accept(&listener)?;
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            stream.write_all(&byte)?;
            // The client ends it first, and keeps what TIME_WAIT keeps.
            let _ = stream.read(&mut [0])?;
            if byte == *b"q" {
                return Ok(0.0);
            }
        },
    })
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STUCK))?;
    Ok(stream)
}

fn answer(mut stream: &TcpStream) -> Result<f64> {
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        stream.write_all(&byte)?;
    }
    Ok(0.0)
}

fn swallow(mut stream: &TcpStream) -> Result<f64> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0_u64;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes as f64 / 1e6),
            some => bytes += some as u64,
        }
    }
}

fn hear(socket: &UdpSocket) -> Result<f64> {
    let mut buffer = [0; SMALL * 2];
    let (mut count, start) = (0_u64, Instant::now());
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => count += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if count > 0 || start.elapsed() > STUCK {
                    return Ok(count as f64);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn call(workload: Workload, target: SocketAddr, time: Duration, delays: &mut Vec<Duration>) -> Result<f64> {
    let mut now = Instant::now();
    let end = now + time;
    let mut done = 0_u64;
    let mut lap = || {
        let then = std::mem::replace(&mut now, Instant::now());
        delays.push(now - then);
        now
    };
    match workload {
        Workload::TcpRr => {
            let mut stream = connect(target)?;
            let mut byte = [7];
            while lap() < end {
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                done += 1;
            }
        }
        Workload::TcpStream => {
            let mut stream = connect(target)?;
            let chunk = vec![7; CHUNK];
            while Instant::now() < end {
                stream.write_all(&chunk)?;
            }
            stream.shutdown(Shutdown::Write)?;
            // Until the last byte is there.
            let _ = stream.read(&mut [0]);
        }
        Workload::Udp => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(target)?;
            while Instant::now() < end {
                // A full queue is a datagram that nobody counts.
                let _ = socket.send(&[7; SMALL]);
                done += 1;
            }
        }
        Workload::TcpCrr => {
            let mut last = false;
            while !last {
                last = lap() >= end;
                let mut stream = connect(target)?;
                let mut byte = if last { *b"q" } else { [7] };
                stream.write_all(&byte)?;
                stream.read_exact(&mut byte)?;
                done += 1;
            }
        }
    }
    Ok(done as f64)
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream =
        TcpStream::connect_timeout(&target, STUCK).with_context(|| format!("connect to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STUCK))?;
    Ok(stream)
}
