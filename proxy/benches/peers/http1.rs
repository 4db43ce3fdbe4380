//! HTTP/1.1 as the client has it: one request at a time, its answer read to its last byte.

use crate::client::{Clock, Shared};
use anyhow::{Context as _, Result, ensure};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What is read at once.
const BUFFER: usize = 64 * 1024;

/// A request with the fields that clients send.
pub(crate) fn request(method: &str, path: &str, close: bool) -> Vec<u8> {
    let close = if close { "Connection: close\r\n" } else { "" };
    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n{length}{close}\r\n"
    )
    .into_bytes()
}

/// One connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buf: Vec<u8>,
}

impl Connection {
    /// From the client's namespace, where this thread is.
    pub(crate) async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buf: vec![0; BUFFER] })
    }

    async fn read(&mut self, from: usize) -> Result<usize> {
        let length = self.stream.read(&mut self.buf[from..]).await?;
        ensure!(length > 0, "the connection ended");
        Ok(length)
    }

    /// Asks, reads the answer, returns its status.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let end = loop {
            filled += self.read(filled).await?;
            if let Some(end) = self.buf[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = std::str::from_utf8(&self.buf[..end])?;
        let status = head.get(9..12).and_then(|status| status.parse().ok()).context("no status")?;
        let length = |line: &str| -> Option<usize> {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        };
        let mut left = head.lines().find_map(length).context("no length")?;
        left = left.checked_sub(filled - end).context("more than the answer")?;
        while left > 0 {
            let length = self.read(0).await?;
            left = left.checked_sub(length).context("more than the answer")?;
        }
        Ok(status)
    }

    /// Asks as fast as answers come.
    pub(crate) async fn load(mut self, shared: Rc<Shared>, request: Vec<u8>) -> Result<()> {
        while !shared.stop.get() {
            let began = Instant::now();
            ensure!(self.ask(&request).await? == 200, "refused");
            shared.done(began.elapsed());
        }
        Ok(())
    }

    /// Asks at set times; the next waits for its answer, and is late then.
    pub(crate) async fn paced(
        mut self,
        shared: Rc<Shared>,
        request: Vec<u8>,
        first: Duration,
        every: Duration,
    ) -> Result<()> {
        let mut clock = Clock::new(first, every)?;
        while !shared.stop.get() {
            for began in clock.due().await? {
                ensure!(self.ask(&request).await? == 200, "refused");
                shared.done(began.elapsed());
            }
        }
        Ok(())
    }
}

/// A connection for each request, to its end.
pub(crate) async fn churn(to: SocketAddr, shared: Rc<Shared>, request: Vec<u8>) -> Result<()> {
    while !shared.stop.get() {
        let began = Instant::now();
        let mut connection = Connection::open(to).await?;
        ensure!(connection.ask(&request).await? == 200, "refused");
        ensure!(connection.stream.read(&mut connection.buf).await? == 0, "it does not end");
        shared.done(began.elapsed());
    }
    Ok(())
}
