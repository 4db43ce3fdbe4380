//! The cart service's generated types. Called by the peers and by the tests that call the service.

/// `shop.v1`, generated from `proto/cart.proto`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, reason = "generated")]
pub mod shop {
    tonic::include_proto!("shop.v1");
}
