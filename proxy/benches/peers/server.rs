//! The servers: they answer everything at once with the same bytes, so that they are never what is waited for.
//!
//! One port for each peer and each version of HTTP. Reads no more of a request than says where it ends.

use crate::http2::{self, frame};
use crate::peer::Kind;
use crate::world::{LOAD_CORE, World, enter, pin};
use anyhow::{Context as _, Result};
use std::collections::{HashSet, VecDeque};
use std::sync::mpsc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A large body: one MiB.
pub(crate) const LARGE: usize = 1024 * 1024;
/// A small one.
const SMALL: &[u8] = b"{\"items\":[]}\r\n";
/// One gRPC message: its five bytes before it, and a string.
const MESSAGE: &[u8] = b"\0\0\0\0\x07\x0a\x05hello";

/// The port of a peer for HTTP/1.1, and for HTTP/2.
pub(crate) const fn ports(place: u16) -> (u16, u16) {
    (8100 + place, 8200 + place)
}

/// Ends the servers when dropped.
pub(crate) struct Servers(
    #[expect(dead_code, reason = "its end is the sign")] tokio::sync::oneshot::Sender<()>,
);

/// Starts them on a thread of their own.
pub(crate) fn start(world: &World) -> Result<Servers> {
    let netns = world.server.try_clone()?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let begun = || -> Result<tokio::runtime::Runtime> {
            enter(&netns)?;
            pin(LOAD_CORE)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                for place in 0..u16::try_from(Kind::ALL.len())? {
                    let (one, two) = ports(place);
                    tokio::spawn(accept(TcpListener::bind(("0.0.0.0", one)).await?, false));
                    tokio::spawn(accept(TcpListener::bind(("0.0.0.0", two)).await?, true));
                }
                anyhow::Ok(())
            })?;
            Ok(runtime)
        };
        match begun() {
            Ok(runtime) => {
                let _ = tell.send(Ok(()));
                let _ = runtime.block_on(stopped);
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    });
    told.recv().context("the servers' thread")??;
    Ok(Servers(stop))
}

async fn accept(listener: TcpListener, two: bool) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        if two {
            tokio::spawn(async move { drop(Http2::new(stream).serve().await) });
        } else {
            tokio::spawn(async move { drop(http1(stream).await) });
        }
    }
}

fn answer(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

async fn http1(mut stream: TcpStream) -> std::io::Result<()> {
    let small = answer(SMALL);
    let mut large = None;
    let mut buf = vec![0; 16 * 1024];
    let mut filled = 0;
    loop {
        let length = stream.read(&mut buf[filled..]).await?;
        if length == 0 {
            return Ok(());
        }
        filled += length;
        let mut at = 0;
        while let Some(end) = buf[at..filled].windows(4).position(|four| four == b"\r\n\r\n") {
            let head = &buf[at..at + end];
            let close = head.windows(6).any(|six| six == b" close");
            if head.starts_with(b"GET /public/large") {
                stream.write_all(large.get_or_insert_with(|| answer(&vec![b'x'; LARGE]))).await?;
            } else {
                stream.write_all(&small).await?;
            }
            if close {
                return stream.shutdown().await;
            }
            at += end + 4;
        }
        buf.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// One connection. Its blocks put their fields into the table once, and refer to them from then on.
struct Http2 {
    stream: TcpStream,
    out: Vec<u8>,
    /// What the peer takes of bodies.
    room: i64,
    /// Requests that are whole; whether each had a body.
    ready: VecDeque<(u32, bool)>,
    /// Streams that have sent some of a body.
    bodies: HashSet<u32>,
    fields: http2::Fields,
}

impl Http2 {
    fn new(stream: TcpStream) -> Self {
        let mut out = Vec::new();
        http2::greet(&mut out);
        Self {
            stream,
            out,
            room: 65_535,
            ready: VecDeque::new(),
            bodies: HashSet::new(),
            fields: http2::Fields::default(),
        }
    }

    async fn serve(mut self) -> std::io::Result<()> {
        let mut input = Vec::with_capacity(64 * 1024);
        let mut preface = true;
        loop {
            if self.stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            let mut at = 0;
            if preface {
                if input.len() < http2::PREFACE.len() {
                    continue;
                }
                at = http2::PREFACE.len();
                preface = false;
            }
            while let Some((head, payload)) = http2::next(&input[at..]) {
                at += http2::HEAD + payload.len();
                self.take(&head, payload);
            }
            input.drain(..at);
            self.answer();
            self.stream.write_all(&self.out).await?;
            self.out.clear();
        }
    }

    fn take(&mut self, head: &http2::Head, payload: &[u8]) {
        let end = head.flags & http2::END_STREAM != 0;
        match head.kind {
            http2::HEADERS if end => self.ready.push_back((head.stream, false)),
            http2::DATA if end => {
                let body = self.bodies.remove(&head.stream) || !payload.is_empty();
                self.ready.push_back((head.stream, body));
            }
            http2::DATA => drop(self.bodies.insert(head.stream)),
            http2::SETTINGS if !end => {
                self.fields.settings(payload);
                frame(&mut self.out, http2::SETTINGS, http2::ACK, 0, &[]);
            }
            http2::PING if !end => frame(&mut self.out, http2::PING, http2::ACK, 0, payload),
            http2::WINDOW_UPDATE if head.stream == 0 => self.room += http2::number(payload),
            _ => {}
        }
    }

    /// Answers as many as there is room for.
    fn answer(&mut self) {
        while let Some((stream, grpc)) = self.ready.front().copied() {
            let body = if grpc { MESSAGE } else { SMALL };
            if self.room < body.len() as i64 {
                return;
            }
            self.ready.pop_front();
            self.room -= body.len() as i64;
            let mut block = Vec::with_capacity(64);
            self.fields.begin(&mut block);
            // `:status 200`.
            block.push(0x88);
            let kind: &[u8] = if grpc { b"application/grpc" } else { b"application/json" };
            self.fields.write(&mut block, b"content-type", kind);
            self.fields.write(&mut block, b"server", b"bench");
            frame(&mut self.out, http2::HEADERS, http2::END_HEADERS, stream, &block);
            let flags = if grpc { 0 } else { http2::END_STREAM };
            frame(&mut self.out, http2::DATA, flags, stream, body);
            if grpc {
                block.clear();
                self.fields.write(&mut block, b"grpc-status", b"0");
                frame(&mut self.out, http2::HEADERS, http2::END_HEADERS | http2::END_STREAM, stream, &block);
            }
        }
    }
}
