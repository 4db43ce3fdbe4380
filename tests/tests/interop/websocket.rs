//! WebSocket: the library websockets, client and server.

use crate::parts::{python, test};
use crate::stage::{Stage, port};
use anyhow::Result;
use libtest_mimic::Trial;
use sluice_tests::world::Family;

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("websockets over HTTP/1.1", &[], websockets)]
}

fn websockets(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let at = stage.cart(family, port::WEBSOCKET).to_string();
        python(stage, "shop/frontend", "websocket_client.py", &[&at])?;
    }
    Ok(())
}
