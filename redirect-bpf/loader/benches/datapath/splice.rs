//! Two legs joined by splice(2): bytes go through a pipe in the kernel, and this thread only says so.
//!
//! Called by the relay.

use anyhow::Result;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use std::net::Shutdown;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe holds unless told otherwise.
const PIPE: usize = 64 * 1024;

/// Both directions, each to its own end.
pub(crate) async fn both(a: &TcpStream, b: &TcpStream) -> Result<()> {
    tokio::try_join!(one_way(a, b), one_way(b, a))?;
    Ok(())
}

async fn one_way(from: &TcpStream, to: &TcpStream) -> Result<()> {
    let (out, into) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        let mut held =
            from.async_io(Interest::READABLE, || again(splice(from, None, &into, None, PIPE, flags))).await?;
        if held == 0 {
            // The other direction goes on.
            let _ = socket2::SockRef::from(to).shutdown(Shutdown::Write);
            return Ok(());
        }
        while held > 0 {
            held -=
                to.async_io(Interest::WRITABLE, || again(splice(&out, None, to, None, held, flags))).await?;
        }
    }
}

fn again(done: Result<usize, Errno>) -> std::io::Result<usize> {
    done.map_err(std::io::Error::from)
}
