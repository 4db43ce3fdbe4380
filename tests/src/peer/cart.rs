//! The cart service: what a gRPC server of the shop would be.
//!
//! Called by the server, which hands it the requests whose content type is gRPC's.

use crate::peer::ledger::{Ledger, canonical};
use crate::proto::shop::cart_server::{Cart, CartServer};
use crate::proto::shop::{CartReply, DeleteItemRequest, GetCartRequest, WatchCartRequest};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Replies that wait for a slow reader before the stream pauses.
const STREAM_BUFFER: usize = 4;

/// Whom a connection is with: put into each request's extensions by the server.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The port the server listens on.
    pub port: u16,
    /// The address the server sees.
    pub peer: SocketAddr,
}

/// The service.
#[derive(Debug)]
pub struct CartService {
    ledger: Arc<Ledger>,
}

impl CartService {
    /// The service as tonic serves it.
    #[must_use]
    pub fn server(ledger: Arc<Ledger>) -> CartServer<Self> {
        CartServer::new(Self { ledger })
    }

    fn reply<T>(&self, request: &Request<T>, method: &str, cart: &str) -> Result<CartReply, Status> {
        let caller = request.extensions().get::<Caller>();
        let caller = caller.ok_or_else(|| Status::internal("the server does not know the caller"))?;
        let what = json!({"method": "POST", "path": format!("/shop.v1.Cart/{method}"), "grpc": true});
        let count = self.ledger.request(caller.port, caller.peer, &what);
        Ok(CartReply { cart: cart.to_owned(), count, peer: canonical(caller.peer) })
    }
}

#[tonic::async_trait]
impl Cart for CartService {
    async fn get_cart(&self, request: Request<GetCartRequest>) -> Result<Response<CartReply>, Status> {
        Ok(Response::new(self.reply(&request, "GetCart", &request.get_ref().cart)?))
    }

    type WatchCartStream = ReceiverStream<Result<CartReply, Status>>;

    async fn watch_cart(
        &self,
        request: Request<WatchCartRequest>,
    ) -> Result<Response<Self::WatchCartStream>, Status> {
        let reply = self.reply(&request, "WatchCart", &request.get_ref().cart)?;
        let WatchCartRequest { count, interval_ms, .. } = request.into_inner();
        let (sender, receiver) = mpsc::channel(STREAM_BUFFER);
        tokio::spawn(async move {
            let mut sent = 0;
            while count == 0 || sent < count {
                if sender.send(Ok(reply.clone())).await.is_err() {
                    return;
                }
                sent += 1;
                tokio::time::sleep(Duration::from_millis(u64::from(interval_ms))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delete_item(&self, request: Request<DeleteItemRequest>) -> Result<Response<CartReply>, Status> {
        Ok(Response::new(self.reply(&request, "DeleteItem", &request.get_ref().cart)?))
    }
}
