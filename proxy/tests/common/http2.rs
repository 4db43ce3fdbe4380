//! The two ends of HTTP/2 for the attacks: a server that hands its streams to the test, and frames written by hand.

use super::{CLIENT, World, soon};
use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::Request;
use std::net::{IpAddr, SocketAddr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A stream as the server got it.
pub struct Served {
    pub request: Request<RecvStream>,
    pub respond: h2::server::SendResponse<Bytes>,
}

pub async fn server() -> (SocketAddr, mpsc::Receiver<Served>) {
    server_at(IpAddr::from([127, 0, 0, 3])).await
}

pub async fn server_at(address: IpAddr) -> (SocketAddr, mpsc::Receiver<Served>) {
    served_by(address, h2::server::Builder::new()).await
}

/// One that takes extended CONNECT.
pub async fn upgrading_server() -> (SocketAddr, mpsc::Receiver<Served>) {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    served_by(IpAddr::from([127, 0, 0, 3]), builder).await
}

async fn served_by(address: IpAddr, builder: h2::server::Builder) -> (SocketAddr, mpsc::Receiver<Served>) {
    let listener = TcpListener::bind(SocketAddr::new(address, 0)).await.expect("a free port");
    let at = listener.local_addr().expect("bound");
    let (streams, served) = mpsc::channel(256);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (streams, builder) = (streams.clone(), builder.clone());
            tokio::spawn(async move {
                stream.set_nodelay(true).expect("an option");
                let Ok(mut connection) = builder.handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    if streams.send(Served { request, respond }).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (at, served)
}

pub async fn connect(world: &World) -> SendRequest<Bytes> {
    let stream = world.connect_from(CLIENT).await;
    let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
    tokio::spawn(async move { drop(connection.await) });
    send
}

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The error code of the RST_STREAM that comes for a stream before anything else of it does; `None` if it is answered.
pub async fn reset_of(stream: &mut TcpStream, id: u32) -> Option<u32> {
    soon("the stream's end", async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.expect("the connection stays");
            let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let mut payload = vec![0; usize::try_from(number(0) >> 8).expect("24 bits")];
            stream.read_exact(&mut payload).await.expect("the connection stays");
            match (head[3], number(5)) {
                (RST_STREAM, of) if of == id => {
                    return Some(u32::from_be_bytes(payload.try_into().expect("four")));
                }
                (HEADERS | DATA, of) if of == id => return None,
                _ => {}
            }
        }
    })
    .await
}

/// A header block of literals, in this order, as no library would write it.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).expect("short"));
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

pub async fn raw_http2(world: &World) -> TcpStream {
    let mut stream = world.connect_from(CLIENT).await;
    let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    hello.extend(frame(SETTINGS, 0, 0, b""));
    stream.write_all(&hello).await.expect("sent");
    stream
}

/// The first frame of one of these kinds, by kind; `None` if the connection ends before.
pub async fn first(stream: &mut TcpStream, kinds: &[u8]) -> Option<u8> {
    soon("a frame", async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).expect("24 bits")];
            stream.read_exact(&mut payload).await.ok()?;
            if kinds.contains(&head[3]) {
                return Some(head[3]);
            }
        }
    })
    .await
}
