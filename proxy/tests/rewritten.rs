//! The tests of HTTP/2 once more, on the path that builds every message anew: both must behave alike.

#![allow(clippy::duplicate_mod)]

#[path = "attacks_http2.rs"]
mod attacks_http2;
#[path = "http2.rs"]
mod http2;
#[path = "smuggling.rs"]
mod smuggling;
#[path = "upstream.rs"]
mod upstream;
#[path = "websocket_http2.rs"]
mod websocket_http2;
