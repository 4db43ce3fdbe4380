//! A way to an API server that can be cut: connections through it are passed on, or broken and refused.
//!
//! Knows nothing of what passes. Called by tests of a control plane that loses its API server.

use anyhow::Result;
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// One way. It lives as long as the process; what passes ends with either side.
#[derive(Clone)]
pub struct Link {
    port: u16,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: bool,
    /// Connections that ever passed.
    passed: u64,
    open: HashMap<u64, (TcpStream, TcpStream)>,
}

impl Link {
    /// A way to a port of loopback.
    ///
    /// # Errors
    /// No port is free.
    pub fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let link = Self { port: listener.local_addr()?.port(), state: Arc::default() };
        let serving = link.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                serving.serve(client, target);
            }
        });
        Ok(link)
    }

    /// Where it begins.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Breaks what passes, and refuses what comes.
    pub fn cut(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.cut = true;
        for (client, server) in state.open.drain().map(|(_, pair)| pair) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// Lets pass again.
    pub fn mend(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).cut = false;
    }

    fn serve(&self, client: TcpStream, target: u16) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.cut {
            return;
        }
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) else { return };
        let copies = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
        let (Ok(to_client), Ok(to_server), Ok(kept), Ok(kept_too)) = copies else { return };
        state.passed += 1;
        let number = state.passed;
        state.open.insert(number, (kept, kept_too));
        drop(state);
        let ended = self.clone();
        thread::spawn(move || {
            let back = thread::spawn(move || pass(server, to_client));
            pass(client, to_server);
            let _ = back.join();
            ended.state.lock().unwrap_or_else(PoisonError::into_inner).open.remove(&number);
        });
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
