//! HTTP/1 bodies, streamed: nothing of them is kept, and what goes on is framed by us.
//!
//! Chunks are read strictly and written again without extensions, so that no two readers find different ends.
//! Knows nothing of heads or of policy.

use super::head::{Framing, is_shadow};
use crate::judge::Field;
use crate::limits::{BUFFER_BYTES, CHUNK_LINE_BYTES, HEAD_FIELDS, TRAILER_BYTES};
use crate::stall;
use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderValue;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// How a body ended too early.
#[derive(Debug)]
pub enum Broken {
    /// The sender went away.
    Sender,
    /// The sender says nothing in the middle.
    Slow,
    /// The receiver went away, or takes nothing.
    Receiver,
    /// The sender's framing is wrong.
    Framing(&'static str),
}

thread_local! {
    /// What every connection of a thread reads into: one that waits has no buffer of its own.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER_BYTES]);
}

/// What a buffer may keep of its memory while nothing is in it: a small head's worth.
const KEPT_BYTES: usize = 1024;

/// Gives back the memory of a buffer that is empty.
pub fn let_go(buf: &mut BytesMut) {
    if buf.is_empty() && buf.capacity() > KEPT_BYTES {
        *buf = BytesMut::new();
    }
}

/// Reads more, at most [`BUFFER_BYTES`] at a time; nothing is held of it while there is nothing.
pub fn poll_read(
    reader: &mut (impl AsyncRead + Unpin),
    buf: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    SCRATCH.with_borrow_mut(|scratch| {
        let mut read = ReadBuf::new(scratch);
        ready!(Pin::new(reader).poll_read(cx, &mut read))?;
        buf.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    })
}

/// Reads more, at most [`BUFFER_BYTES`] at a time.
///
/// # Errors
/// The socket's.
pub async fn read_more(reader: &mut (impl AsyncRead + Unpin), buf: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|cx| poll_read(reader, buf, cx)).await
}

/// The same of a body, which is large: straight to where it goes on from.
///
/// # Errors
/// The socket's.
pub(crate) async fn read_body(
    reader: &mut (impl AsyncRead + Unpin),
    buf: &mut BytesMut,
) -> io::Result<usize> {
    buf.reserve(BUFFER_BYTES);
    reader.read_buf(buf).await
}

/// Judges the trailers of a body.
pub type Admits<'a> = dyn Fn(Vec<Field>) -> bool + Send + Sync + 'a;

/// One message on its way. What is small goes out together; nothing is kept back while its sender is waited for.
#[expect(missing_debug_implementations, reason = "a closure has nothing to show")]
pub struct Pump<'a, R, W> {
    reader: &'a mut R,
    buf: &'a mut BytesMut,
    writer: &'a mut W,
    count: &'a AtomicU64,
    out: BytesMut,
    admits: Option<&'a Admits<'a>>,
    /// The sender must not pause for long.
    hurries: bool,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Pump<'a, R, W> {
    /// From `reader`, of which `buf` was read already, to `writer`, which gets `head` first. Counts the body's bytes.
    pub fn new(
        reader: &'a mut R,
        buf: &'a mut BytesMut,
        writer: &'a mut W,
        count: &'a AtomicU64,
        head: Bytes,
    ) -> Self {
        Self { reader, buf, writer, count, out: head.into(), admits: None, hurries: false }
    }

    /// Holds the sender to [`STALL_TIMEOUT`](crate::limits::STALL_TIMEOUT) between two words.
    #[must_use]
    pub fn hurrying(mut self) -> Self {
        self.hurries = true;
        self
    }

    /// Lets `admits` decide on trailers.
    #[must_use]
    pub fn admitting(mut self, admits: &'a Admits<'a>) -> Self {
        self.admits = Some(admits);
        self
    }

    /// Moves the head and one body of this framing.
    ///
    /// # Errors
    /// Who broke it.
    pub async fn run(&mut self, framing: Framing) -> Result<(), Broken> {
        match framing {
            Framing::Empty => {}
            Framing::Length(length) => self.exactly(length).await?,
            // Boxed for its size: every message has room for what it might be, and few are this.
            Framing::Chunked => Box::pin(self.chunks()).await?,
            Framing::UntilClose => loop {
                self.write_some(u64::MAX).await?;
                self.flush().await?;
                if read_body(self.reader, self.buf).await.map_err(|_| Broken::Sender)? == 0 {
                    break;
                }
            },
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        stall::write_all(self.writer, &self.out).await.map_err(|_| Broken::Receiver)?;
        self.out.clear();
        Ok(())
    }

    /// Sends bytes, soon or now.
    async fn put(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        self.out.extend_from_slice(bytes);
        if self.out.len() >= BUFFER_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Sends what is there, at most `limit` bytes, and says how many.
    async fn write_some(&mut self, limit: u64) -> Result<u64, Broken> {
        let length = usize::try_from(limit).unwrap_or(usize::MAX).min(self.buf.len());
        let piece = self.buf.split_to(length);
        if self.out.len() + length < BUFFER_BYTES {
            self.out.extend_from_slice(&piece);
        } else {
            // Not copied: large bodies are what takes the time.
            self.flush().await?;
            stall::write_all(self.writer, &piece).await.map_err(|_| Broken::Receiver)?;
        }
        self.count.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length as u64)
    }

    async fn fill(&mut self) -> Result<(), Broken> {
        self.flush().await?;
        let read = match self.hurries {
            true => stall::read_more(self.reader, self.buf).await,
            false => read_body(self.reader, self.buf).await,
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Broken::Slow),
            Ok(0) | Err(_) => Err(Broken::Sender),
            Ok(_) => Ok(()),
        }
    }

    async fn exactly(&mut self, mut left: u64) -> Result<(), Broken> {
        while left > 0 {
            if self.buf.is_empty() {
                self.fill().await?;
            }
            left -= self.write_some(left).await?;
        }
        Ok(())
    }

    async fn chunks(&mut self) -> Result<(), Broken> {
        loop {
            let line = self.line(CHUNK_LINE_BYTES).await?;
            let size = chunk_size(&line)?;
            if size == 0 {
                return self.trailers().await;
            }
            // Small chunks are checked whole before they go on; large ones stream.
            if size <= BUFFER_BYTES as u64 {
                self.small_chunk(usize::try_from(size).unwrap_or(BUFFER_BYTES)).await?;
            } else {
                self.put(format!("{size:x}\r\n").as_bytes()).await?;
                self.exactly(size).await?;
                self.chunk_end().await?;
                self.put(b"\r\n").await?;
            }
        }
    }

    async fn small_chunk(&mut self, size: usize) -> Result<(), Broken> {
        while self.buf.len() < size + 2 {
            self.fill().await?;
        }
        if self.buf[size..size + 2] != *b"\r\n" {
            return Err(Broken::Framing("a chunk is longer than it says"));
        }
        let mut frame = format!("{size:x}\r\n").into_bytes();
        frame.extend_from_slice(&self.buf[..size + 2]);
        self.buf.advance(size + 2);
        self.count.fetch_add(size as u64, Ordering::Relaxed);
        self.put(&frame).await
    }

    async fn chunk_end(&mut self) -> Result<(), Broken> {
        while self.buf.len() < 2 {
            self.fill().await?;
        }
        if self.buf[..2] != *b"\r\n" {
            return Err(Broken::Framing("a chunk is longer than it says"));
        }
        self.buf.advance(2);
        Ok(())
    }

    /// Reads one line, without its end.
    async fn line(&mut self, limit: usize) -> Result<BytesMut, Broken> {
        loop {
            if let Some(end) = self.buf.iter().take(limit).position(|b| *b == b'\n') {
                let mut line = self.buf.split_to(end + 1);
                if !line.ends_with(b"\r\n") {
                    return Err(Broken::Framing("a line feed without carriage return"));
                }
                line.truncate(end - 1);
                if line.contains(&b'\r') {
                    return Err(Broken::Framing("a carriage return inside a line"));
                }
                return Ok(line);
            }
            if self.buf.len() >= limit {
                return Err(Broken::Framing("a line is too long"));
            }
            self.fill().await?;
        }
    }

    async fn trailers(&mut self) -> Result<(), Broken> {
        let mut out = b"0\r\n".to_vec();
        loop {
            let line = self.line(TRAILER_BYTES).await?;
            let last = line.is_empty();
            out.extend_from_slice(&line);
            out.extend_from_slice(b"\r\n");
            if last {
                break;
            }
            if out.len() > TRAILER_BYTES {
                return Err(Broken::Framing("the trailer section is too large"));
            }
        }
        check_trailers(&out[3..], self.admits)?;
        self.put(&out).await
    }
}

/// The size of a chunk: hexadecimal digits, then nothing or extensions, which are dropped.
fn chunk_size(line: &[u8]) -> Result<u64, Broken> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    // 15 digits: no size of any real chunk, and no overflow.
    let plain = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let text = std::str::from_utf8(digits).ok().filter(|_| plain);
    text.and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or(Broken::Framing("a chunk's size"))
}

/// Fields that must not come after a body (RFC 9110 §6.5.1): a server that merges trailers would believe them.
const NEVER_TRAILERS: [&str; 9] = [
    "content-length",
    "transfer-encoding",
    "host",
    "connection",
    "trailer",
    "upgrade",
    "authorization",
    "te",
    "content-type",
];

/// Whether the field must not come after a body.
pub(crate) fn is_no_trailer(name: &str) -> bool {
    is_shadow(name.as_bytes()) || NEVER_TRAILERS.iter().any(|never| never.eq_ignore_ascii_case(name))
}

fn check_trailers(section: &[u8], admits: Option<&Admits<'_>>) -> Result<(), Broken> {
    let mut slots = [httparse::EMPTY_HEADER; HEAD_FIELDS];
    match httparse::parse_headers(section, &mut slots) {
        Ok(httparse::Status::Complete((_, fields))) => {
            if fields.iter().any(|field| is_no_trailer(field.name)) {
                return Err(Broken::Framing("a field that is no trailer"));
            }
            let Some(admits) = admits.filter(|_| !fields.is_empty()) else { return Ok(()) };
            let field = |field: &httparse::Header<'_>| -> Option<Field> {
                Some((field.name.parse().ok()?, HeaderValue::from_bytes(field.value).ok()?))
            };
            let fields = fields.iter().map(field).collect::<Option<Vec<Field>>>();
            if fields.is_some_and(admits) {
                return Ok(());
            }
            Err(Broken::Framing("a trailer that policy does not let through"))
        }
        _ => Err(Broken::Framing("the trailer section")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pump(framing: Framing, input: &[u8]) -> (Result<(), Broken>, Vec<u8>, Vec<u8>) {
        let mut out = Vec::new();
        let mut buf = BytesMut::new();
        let mut reader = input;
        let count = AtomicU64::new(0);
        let mut pump = Pump::new(&mut reader, &mut buf, &mut out, &count, Bytes::new());
        let result = pump.run(framing).await;
        (result, out, buf.to_vec())
    }

    #[tokio::test]
    async fn moves_exactly_one_body() {
        let (result, out, left) = pump(Framing::Length(5), b"helloGET /").await;
        assert!(result.is_ok());
        assert_eq!((out.as_slice(), left.as_slice()), (&b"hello"[..], &b"GET /"[..]));
        let (result, out, left) = pump(Framing::Chunked, b"5;x=y\r\nhello\r\n0\r\nT: v\r\n\r\nGET /").await;
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(
            (out.as_slice(), left.as_slice()),
            (&b"5\r\nhello\r\n0\r\nT: v\r\n\r\n"[..], &b"GET /"[..])
        );
        let large = vec![b'x'; BUFFER_BYTES * 3];
        let mut input = format!("{:X}\r\n", large.len()).into_bytes();
        input.extend_from_slice(&large);
        input.extend_from_slice(b"\r\n0\r\n\r\n");
        let (result, out, left) = pump(Framing::Chunked, &input).await;
        assert!(result.is_ok() && left.is_empty());
        assert!(out.ends_with(b"\r\n0\r\n\r\n") && out.len() == input.len());
    }

    #[tokio::test]
    async fn refuses_chunks_that_readers_end_differently() {
        for input in [
            &b"5\nhello\r\n0\r\n\r\n"[..],
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"\r\nhello\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"1000000000000000\r\n",
            b"5\rX\r\nhello\r\n0\r\n\r\n",
            b"0\r\nContent-Length: 5\r\n\r\n",
            b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"0\r\n bad: x\r\n\r\n",
        ] {
            let (result, _, _) = pump(Framing::Chunked, input).await;
            assert!(matches!(result, Err(Broken::Framing(_))), "{:?}", String::from_utf8_lossy(input));
        }
        let endless = [b"5;".as_slice(), &[b'a'; CHUNK_LINE_BYTES]].concat();
        assert!(matches!(pump(Framing::Chunked, &endless).await.0, Err(Broken::Framing(_))));
        let (result, out, _) = pump(Framing::Chunked, b"5\r\nhel").await;
        assert!(matches!(result, Err(Broken::Sender)));
        assert!(out.is_empty(), "no part of a chunk that did not come");
    }
}
