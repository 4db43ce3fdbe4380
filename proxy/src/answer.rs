//! The one module that words a refusal, for HTTP/1, HTTP/2 and gRPC.
//!
//! Knows nothing of connections: it gives bytes or header blocks. `denyDetail` is `None`: an answer names the kind
//! of the reason and nothing of any policy.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use sluice_policy::Reason;

/// Why a request is not forwarded, or has no answer of the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The verdict.
    Denied(Reason),
    /// Not HTTP as everybody reads it.
    Malformed(&'static str),
    /// The target is too long.
    TargetTooLong,
    /// The head is too large.
    HeadTooLarge,
    /// The head did not come in time.
    HeadTimeout,
    /// The server could not be reached.
    Unreachable,
    /// The server did not accept the connection in time.
    Timeout,
    /// The server's answer is no HTTP, or none came.
    BadAnswer(&'static str),
}

/// gRPC status codes that a refusal uses.
const GRPC_PERMISSION_DENIED: u32 = 7;
const GRPC_INTERNAL: u32 = 13;
const GRPC_UNAVAILABLE: u32 = 14;

impl Refusal {
    /// The HTTP status.
    #[must_use]
    pub const fn status(self) -> StatusCode {
        match self {
            Self::Denied(_) => StatusCode::FORBIDDEN,
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::BadAnswer(_) => StatusCode::BAD_GATEWAY,
        }
    }

    /// The gRPC status.
    #[must_use]
    pub const fn grpc_status(self) -> u32 {
        match self {
            Self::Denied(_) => GRPC_PERMISSION_DENIED,
            Self::Unreachable | Self::Timeout | Self::BadAnswer(_) => GRPC_UNAVAILABLE,
            Self::Malformed(_) | Self::TargetTooLong | Self::HeadTooLarge | Self::HeadTimeout => {
                GRPC_INTERNAL
            }
        }
    }

    /// The kind of the error, for records; empty for a denial, which is no error.
    #[must_use]
    pub const fn error(self) -> &'static str {
        match self {
            Self::Denied(_) => "",
            Self::Malformed(_) => "malformed_request",
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::BadAnswer(_) => "bad_answer",
        }
    }

    /// One line for people.
    fn text(self) -> String {
        match self {
            Self::Denied(reason) => format!("access denied: {}", reason.as_str()),
            Self::Malformed(what) => format!("bad request: {what}"),
            Self::TargetTooLong => "bad request: the target is too long".to_owned(),
            Self::HeadTooLarge => "bad request: the header section is too large".to_owned(),
            Self::HeadTimeout => "bad request: the header section did not come in time".to_owned(),
            Self::Unreachable => "the server could not be reached".to_owned(),
            Self::Timeout => "the server did not accept the connection in time".to_owned(),
            Self::BadAnswer(what) => format!("bad answer of the server: {what}"),
        }
    }

    /// The whole HTTP/1 answer. `to_head`: the request was HEAD, so the body is not sent.
    #[must_use]
    pub fn http1(self, close: bool, to_head: bool) -> Bytes {
        let status = self.status();
        let body = self.text() + "\n";
        let connection = if close { "connection: close\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{connection}\r\n",
            status.as_str(),
            status.canonical_reason().unwrap_or_default(),
            body.len(),
        );
        Bytes::from(if to_head { head } else { head + &body })
    }

    /// The HTTP/2 answer, and its body if it has one. gRPC gets trailers alone, under HTTP 200.
    #[must_use]
    pub fn http2(self, grpc: bool, to_head: bool) -> (Response<()>, Option<Bytes>) {
        let mut response = Response::new(());
        let headers = response.headers_mut();
        if grpc {
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.extend(self.grpc_trailers());
            return (response, None);
        }
        let body = self.text() + "\n";
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        headers.insert("content-length", HeaderValue::from(body.len()));
        *response.status_mut() = self.status();
        (response, (!to_head).then(|| Bytes::from(body)))
    }

    /// The gRPC status as trailers: for a stream that is closed while it runs, too.
    #[must_use]
    pub fn grpc_trailers(self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from(self.grpc_status()));
        // Percent-encoding (gRPC over HTTP/2, "Status-Message") is needed for none of our texts.
        if let Ok(message) = HeaderValue::from_str(&self.text()) {
            trailers.insert("grpc-message", message);
        }
        trailers
    }
}
