//! A gRPC client of the cart service, made by tonic.
//!
//! Called by `sluice-peer` and by tests.

use crate::peer::CLIENT_DEADLINE;
use crate::proto::shop::cart_client::CartClient;
use crate::proto::shop::{CartReply, DeleteItemRequest, GetCartRequest, WatchCartRequest};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// What came back of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The status code as a number; 0 is OK.
    pub code: i32,
    /// The status code's name.
    pub name: String,
    /// The status message.
    pub message: String,
    /// The replies, each as `cart/count/peer`.
    pub replies: Vec<Reply>,
    /// Metadata of a refusal.
    pub metadata: BTreeMap<String, String>,
}

/// One reply of the cart service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The cart's name.
    pub cart: String,
    /// How many calls the server has served.
    pub count: u64,
    /// The address the server saw.
    pub peer: String,
}

impl From<CartReply> for Reply {
    fn from(CartReply { cart, count, peer }: CartReply) -> Self {
        Self { cart, count, peer }
    }
}

impl Outcome {
    fn ok(replies: Vec<Reply>) -> Self {
        Self { name: format!("{:?}", Code::Ok), replies, ..Self::default() }
    }

    fn refused(status: &Status, replies: Vec<Reply>) -> Self {
        let ascii = status.metadata().clone().into_headers();
        let metadata = ascii
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let name = format!("{:?}", status.code());
        Self { code: status.code().into(), name, message: status.message().to_owned(), replies, metadata }
    }
}

/// Opens a connection, in the namespace of the calling thread.
///
/// # Errors
/// When it cannot be had in time.
pub async fn connect(target: SocketAddr) -> Result<CartClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{target}"))?.connect_timeout(CLIENT_DEADLINE);
    let channel = endpoint.connect().await.with_context(|| format!("cannot connect to {target}"))?;
    Ok(CartClient::new(channel))
}

/// Calls a method of the cart service once. `count` is for `WatchCart`.
///
/// # Errors
/// When the method is unknown.
pub async fn call(client: &mut CartClient<Channel>, method: &str, cart: &str, count: u32) -> Result<Outcome> {
    let cart = cart.to_owned();
    let unary = match method {
        "GetCart" => client.get_cart(GetCartRequest { cart }).await,
        "DeleteItem" => client.delete_item(DeleteItemRequest { cart, item: "book".to_owned() }).await,
        "WatchCart" => return Ok(watch(client, cart, count).await),
        _ => bail!("the cart service has GetCart, WatchCart and DeleteItem, not {method}"),
    };
    Ok(match unary {
        Ok(reply) => Outcome::ok(vec![reply.into_inner().into()]),
        Err(status) => Outcome::refused(&status, Vec::new()),
    })
}

async fn watch(client: &mut CartClient<Channel>, cart: String, count: u32) -> Outcome {
    let mut stream = match client.watch_cart(WatchCartRequest { cart, count, interval_ms: 10 }).await {
        Ok(response) => response.into_inner(),
        Err(status) => return Outcome::refused(&status, Vec::new()),
    };
    let mut replies = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(reply)) => replies.push(reply.into()),
            Ok(None) => return Outcome::ok(replies),
            Err(status) => return Outcome::refused(&status, replies),
        }
    }
}
