//! That a connection which always has something to read gives way to the others of its thread.

use super::*;
use crate::fuzzing::{CLIENT, SERVER, proxy};
use crate::http2::frame::{PREFACE, write_settings, write_settings_ack};
use crate::judge::Leg;
use crate::limits::H2_TURNS;
use crate::service::route::Client;
use futures_util::task::{ArcWake, waker};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

/// What waits in the socket: as much as twice the rounds read.
const WAITING: usize = 2 * H2_TURNS as usize * READ_BYTES;

struct Woken(AtomicBool);

impl ArcWake for Woken {
    fn wake_by_ref(woken: &Arc<Self>) {
        woken.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_connection_that_always_has_something_gives_way_after_so_many_rounds() {
    let socket = TcpSocket::new_v4().expect("a socket");
    // Taken over by what it accepts; more than any process may ask for, but root.
    setsockopt(&socket, RcvBufForce, &(2 * WAITING)).expect("the tests run as root");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(1).expect("a listener");
    let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("a connection");
    let (stream, _) = listener.accept().await.expect("the client");
    // What is read and answered by nothing, and what there may be any number of.
    let mut flood = PREFACE.to_vec();
    write_settings(&mut flood, &[]);
    while flood.len() < WAITING {
        write_settings_ack(&mut flood);
    }
    tokio::time::timeout(std::time::Duration::from_secs(10), client.write_all(&flood))
        .await
        .expect("the socket takes it all")
        .expect("sent");
    stream.readable().await.expect("something to read");

    let leg = Leg::new(SocketAddr::new(CLIENT, 40_000), SocketAddr::new(SERVER, 8080));
    let (proxy, _records) = proxy();
    let charge = Charge::default();
    let relay = Relay::new(proxy, Client { leg, service: false }, charge.streams(), Instant::now());
    let sleep = Box::pin(tokio::time::sleep_until(relay.deadline()));
    let mut io = Io { relay, charge, client: stream, server: None, sleep };
    let woken = Arc::new(Woken(AtomicBool::new(false)));
    let waker = waker(woken.clone());
    let polled = io.turn(std::pin::pin!(std::future::pending()), &mut Context::from_waker(&waker));
    assert!(polled.is_pending() && !io.relay.over);
    assert!(woken.0.load(Ordering::SeqCst), "it goes on when the others had their turn");
    let mut left = 0;
    let mut piece = vec![0; READ_BYTES];
    while let Ok(length @ 1..) = io.client.try_read(&mut piece) {
        left += length;
    }
    let taken = flood.len() - left;
    let most = H2_TURNS as usize * READ_BYTES;
    assert!((most / 2..=most).contains(&taken), "{taken} of {} in one turn", flood.len());
}
