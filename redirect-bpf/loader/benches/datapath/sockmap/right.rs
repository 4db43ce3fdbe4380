//! Whether what was sent arrives: whole, in order, with its end, and no faster than it is read.
//!
//! The client's first byte says what the server is to do. Called by the trial of joined legs.

use super::Stage;
use crate::relay::Relay;
use crate::traffic::PORT;
use crate::world::within;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// The heads of the columns that [`row`] fills.
pub(super) const HEAD: &str = "\n**Whether it is right**\n\n| bytes go by | transfers that begin at once | transfers that begin when the legs are joined | answers to what \
    was sent before the legs were joined | connections reset by the client: their end at the server | MB taken from \
    a client whose server reads nothing | and what arrived when it read |\n|---|---|---|---|---|--:|---|\n";

const TRANSFERS: usize = 500;
const AT_ONCE: usize = 8;
/// A transfer has up to so many bytes each way.
const LONGEST: u64 = 512 * 1024;
const EARLY: usize = 200;
const RESETS: usize = 50;
const PIECE: usize = 1024;
/// Whatever takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long the server reads nothing.
const PAUSE: Duration = Duration::from_millis(1500);
/// The client sends no more than this: memory is finite here as well.
const FLOOD: usize = 256 * 1024 * 1024;

/// What one of the ways does to a stream.
pub(super) fn row(stage: &Stage) -> Result<String> {
    let relay = stage.relay(1)?;
    let (told, ends) = channel();
    let stop = AtomicBool::new(false);
    let listener = within(&stage.server, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
    listener.set_nonblocking(true)?;
    let row = std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&listener, &stop, &told));
        let row = within(&stage.client, move || ask(stage, &ends));
        stop.store(true, Ordering::Relaxed);
        let _ = server.join();
        row
    })?;
    relay.map(Relay::stop).transpose()?;
    row
}

fn ask(stage: &Stage, ends: &Receiver<String>) -> Result<String> {
    let connect = || -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&(stage.target, PORT).into(), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let (at_once, joined) = (transfers(connect, false), transfers(connect, true));
    let early = count((0..EARLY).map(|_| early(connect()?)));
    let mut resets = BTreeMap::new();
    for _ in 0..RESETS {
        let end = connect().and_then(reset).map_or_else(
            |error| reason(&error),
            |()| ends.recv_timeout(PATIENCE).unwrap_or_else(|_| "none".to_owned()),
        );
        *resets.entry(end).or_default() += 1;
    }
    let (taken, arrived) = flood(connect()?)?;
    Ok(format!(
        "| {} | {at_once} | {joined} | {early} | {} | {:.1} | {arrived} |\n",
        stage.way.name(),
        told(&resets),
        taken as f64 / 1e6
    ))
}

fn told(counts: &BTreeMap<String, usize>) -> String {
    counts.iter().map(|(what, many)| format!("{many} {what}")).collect::<Vec<_>>().join(", ")
}

/// How many were good, and of the others what they were.
fn count(all: impl Iterator<Item = Result<()>>) -> String {
    let mut counts = BTreeMap::new();
    for one in all {
        *counts.entry(one.map_or_else(|error| reason(&error), |()| "good".to_owned())).or_default() += 1;
    }
    told(&counts)
}

fn reason(error: &anyhow::Error) -> String {
    match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(ErrorKind::WouldBlock | ErrorKind::TimedOut) => "hung".to_owned(),
        Some(ErrorKind::UnexpectedEof) => "cut short".to_owned(),
        Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => "reset".to_owned(),
        Some(kind) => kind.to_string(),
        None => error.to_string(),
    }
}

/// Many at once, each with its own length; the client ends its half before the server answers. `joined`: one byte went
/// there and back before, so that the proxy has done what it does first.
fn transfers(connect: impl Fn() -> Result<TcpStream> + Sync, joined: bool) -> String {
    let next = AtomicUsize::new(0);
    let (done, all) = channel();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            let (connect, next, done) = (&connect, &next, done.clone());
            // The threads that a thread in a namespace starts are in it too.
            scope.spawn(move || {
                while let number @ 0..TRANSFERS = next.fetch_add(1, Ordering::Relaxed) {
                    let _ = done.send(connect().and_then(|stream| transfer(stream, number as u64, joined)));
                }
            });
        }
    });
    drop(done);
    count(all.iter())
}

fn transfer(mut stream: TcpStream, number: u64, joined: bool) -> Result<()> {
    if joined {
        stream.write_all(b"W")?;
        stream.read_exact(&mut [0])?;
    }
    let length = Bytes(number + 1).next() % LONGEST;
    stream.write_all(b"T")?;
    stream.write_all(&number.to_be_bytes())?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&Bytes(number).take(length))?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.first() != Some(&b'-'), "wrong bytes");
    ensure!(answer.first() == Some(&b'+'), "cut short");
    let back = Bytes(!number).take(length);
    ensure!(back.starts_with(&answer[1..]), "wrong bytes");
    ensure!(back.len() == answer.len() - 1, "cut short");
    Ok(())
}

/// Something is sent at once, and nothing more until it is answered.
fn early(mut stream: TcpStream) -> Result<()> {
    let mut piece = [b'E'; PIECE];
    stream.write_all(&piece)?;
    stream.read_exact(&mut piece)?;
    Ok(())
}

fn reset(mut stream: TcpStream) -> Result<()> {
    let mut piece = [b'R'; PIECE];
    stream.write_all(&piece)?;
    stream.read_exact(&mut piece)?;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

/// How much is taken of what the server does not read, and whether all of it arrives in the end.
fn flood(mut stream: TcpStream) -> Result<(usize, String)> {
    stream.write_all(b"B")?;
    stream.set_nonblocking(true)?;
    let (end, piece) = (Instant::now() + PAUSE / 2, vec![7; 64 * PIECE]);
    let mut taken = 0;
    while Instant::now() < end && taken < FLOOD {
        match stream.write(&piece) {
            Ok(some) => taken += some,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE / 100),
            Err(error) => return Ok((taken, error.kind().to_string())),
        }
    }
    stream.set_nonblocking(false)?;
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    let arrived = match stream.read_exact(&mut count) {
        Ok(()) if u64::from_be_bytes(count) == taken as u64 => "all".to_owned(),
        Ok(()) => format!("{:.1} MB", u64::from_be_bytes(count) as f64 / 1e6),
        Err(error) => reason(&error.into()),
    };
    Ok((taken, arrived))
}

fn serve(listener: &TcpListener, stop: &AtomicBool, told: &Sender<String>) {
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    scope.spawn(|| answer(stream, told));
                }
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    });
}

fn answer(mut stream: TcpStream, told: &Sender<String>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut order = [0];
    stream.read_exact(&mut order)?;
    if order == *b"W" {
        stream.write_all(&order)?;
        stream.read_exact(&mut order)?;
    }
    match order[0] {
        b'T' => take(stream),
        b'B' => {
            std::thread::sleep(PAUSE);
            let (mut buffer, mut all) = (vec![0; 64 * PIECE], 0_u64);
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    some => all += some as u64,
                }
            }
            Ok(stream.write_all(&all.to_be_bytes())?)
        }
        order => {
            let mut piece = [order; PIECE];
            stream.read_exact(&mut piece[1..])?;
            stream.write_all(&piece)?;
            let end = stream.read(&mut piece);
            if order == b'R' {
                let end = end
                    .map_err(anyhow::Error::from)
                    .map_or_else(|error| reason(&error), |_| "ended".to_owned());
                told.send(end).context("nobody asks")?;
            }
            Ok(())
        }
    }
}

fn take(mut stream: TcpStream) -> Result<()> {
    let (mut number, mut length) = ([0; 8], [0; 8]);
    stream.read_exact(&mut number)?;
    stream.read_exact(&mut length)?;
    let (number, length) = (u64::from_be_bytes(number), u64::from_be_bytes(length));
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let sent = Bytes(number).take(length);
    if all != sent {
        let verdict = if sent.starts_with(&all) { b"<" } else { b"-" };
        return Ok(stream.write_all(verdict)?);
    }
    stream.write_all(b"+")?;
    Ok(stream.write_all(&Bytes(!number).take(length))?)
}

/// Bytes that no two transfers share (xorshift).
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        let mut x = self.0 | 1 << 40;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.0 = x;
        x
    }

    fn take(mut self, length: u64) -> Vec<u8> {
        let length = usize::try_from(length).unwrap_or(0);
        let mut all = Vec::with_capacity(length + 8);
        while all.len() < length {
            all.extend(self.next().to_be_bytes());
        }
        all.truncate(length);
        all
    }
}
