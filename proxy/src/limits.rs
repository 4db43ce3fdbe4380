//! Every bound of the proxy, by name, with the attack or failure it bounds.
//!
//! Knows nothing of who reads it. A queue, buffer, map or wait anywhere in this crate has its bound here.

use std::time::Duration;

/// How long a client may say nothing before a connection that needs no reading is passed on raw. Server-first
/// protocols (MySQL, SMTP) wait for the server: without this they would stall.
pub const DETECT_WINDOW: Duration = Duration::from_millis(100);

/// From the first byte of a request head to its last. Slow headers (Slowloris) hold a connection no longer.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest TLS ClientHello, in bytes: what is read of a connection before its server name is known. With
/// post-quantum key shares and an encrypted hello beside them they have about 4 KiB.
pub const CLIENT_HELLO_BYTES: usize = 16 * 1024;

/// The most records that a ClientHello may be cut into: some clients cut it in two or three, and each has a header.
pub const CLIENT_HELLO_RECORDS: usize = 64;

/// The longest server name (RFC 1035 §2.3.4), with a trailing dot.
pub const SERVER_NAME_BYTES: usize = 254;

/// How long a connection may idle between requests. Connections that nobody uses must not add up for ever; their
/// number is bounded by [`CONNECTIONS_PER_SOURCE`] as well.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// The longest HTTP/1 head, in bytes. Endless headers would fill memory.
pub const HEAD_BYTES: usize = 64 * 1024;

/// The most header fields of one HTTP/1 message. Many tiny headers cost more to match than to send.
pub const HEAD_FIELDS: usize = 128;

/// The longest request target. Every reading of a path is a copy of it.
pub const TARGET_BYTES: usize = 16 * 1024;

/// The longest method that detection takes for one; longer words are no HTTP.
pub const METHOD_BYTES: usize = 32;

/// The longest chunk-size line, extensions included (CVE-2023-39326: extensions that never end).
pub const CHUNK_LINE_BYTES: usize = 256;

/// The longest trailer section of a chunked body.
pub const TRAILER_BYTES: usize = 16 * 1024;

/// The most interim (1xx) answers before the final one: a server must not feed a client for ever.
pub const INTERIM_ANSWERS: usize = 16;

/// How long the body of a request with `Expect: 100-continue` waits for its server to want it (RFC 9110 §10.1.1: not for
/// ever; as long as curl waits). A server that answers at once, and takes the body that it did not want for a request,
/// gets none.
pub const EXPECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What one direction of a connection buffers.
pub const BUFFER_BYTES: usize = 16 * 1024;

/// How much of a refused request's body is read and thrown away to keep its connection.
pub const DISCARD_BYTES: u64 = 64 * 1024;

/// How long a closing connection may take to hear its last answer.
pub const LINGER: Duration = Duration::from_secs(1);

/// How long dialling a server may take; a black-holed address must not hold a request for ever.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Between TCP keep-alive probes: a peer that vanished without a word must not hold its connection for ever.
pub const KEEPALIVE: Duration = Duration::from_secs(60);

/// Open connections of one source address: one tenant's flood must leave room for the others.
pub const CONNECTIONS_PER_SOURCE: u32 = 4096;

/// Open connections of one endpoint of the node, its own and those to it: many sources may come to one pod, and must
/// leave room for the node's other pods.
pub const CONNECTIONS_PER_ENDPOINT: u32 = 16 * 1024;

/// What one connection may hold of bytes that were read and have not gone on, in its own right: about one read.
pub const CONNECTION_BYTES: usize = 16 * 1024;

/// What the connections of one endpoint may hold beyond that, together. Without it a hundred streams of each of thousands
/// of connections, whose reader never opens a window, hold [`H2_STREAM_WINDOW`] each: gigabytes, of the memory of all.
pub const ENDPOINT_BYTES: usize = 64 * 1024 * 1024;

/// How long a peer may take nothing of what is sent to it over HTTP/1 (slow reads), and a client may say nothing in the
/// middle of a body that it sends (slow bodies). Both hold two sockets and an open flow.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// Open HTTP/2 streams that one connection may have in its own right, whatever its endpoint has.
pub const CONNECTION_STREAMS: usize = 8;

/// Open HTTP/2 streams that the connections of one endpoint may have beyond that, together. Without it
/// [`CONNECTIONS_PER_ENDPOINT`] with [`H2_STREAMS`] each are 1.6 million, of a kilobyte or two, and each is judged again
/// when a policy changes. Many times what a server takes at once.
pub const ENDPOINT_STREAMS: usize = 32 * 1024;

/// So many of them are taken and given back at once: threads that serve the same endpoint do not meet for each request.
pub const STREAMS_AT_ONCE: usize = 16;

/// From the head of a request to the head of its answer, whatever comes between: a body that drips in under
/// [`STALL_TIMEOUT`], a server that never answers. As Envoy's `timeout` of a route, but only to the answer's head: what
/// streams after it is not cut, nor is a tunnel, which has its answer when it begins. Not of gRPC, whose servers may
/// have nothing to say for hours, and whose clients say how long they wait (`grpc-timeout`). An hour: long polls take
/// minutes, and large uploads some more.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long a tunnel may be silent both ways: as long as Linux's connection tracking keeps an established connection
/// (`nf_conntrack_tcp_timeout_established`, five days). Databases' connections idle for hours.
pub const TUNNEL_IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 24 * 3600);

/// Accept queues of each address family, shared out among the worker's threads as evenly as their number goes. Always as
/// many, whatever a node's CPUs: the kernel gives a connection to a queue by its ends, and queues that come and go would
/// lose what waits in them, or what SYN cookies stand for.
pub const QUEUES: u8 = sluice_redirect::MAX_QUEUES;

/// Threads that serve: no more than there are queues.
pub const THREADS: u8 = QUEUES;

/// Turns that an endpoint's tasks have in one pass while nobody else has any: whoever comes waits for no more of them.
/// Fewer would make a busy thread look for what is ready as often as it serves.
pub const TURNS: u32 = 8;

/// The same while others have turns as well: what they wait for each busy endpoint, tens of microseconds each.
pub const TURNS_SHARED: u32 = 2;

/// Passes that others are remembered for after their last turn: tens of milliseconds of a thread that is busy.
pub const TURNS_MEMORY: u64 = 1024;

/// Open connections in all: twice as many descriptors, and some memory each.
pub const CONNECTIONS: usize = 100_000;

/// The wait after `accept` failed for want of descriptors, so that the loop does not spin.
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// The longest HTTP/2 header list (CONTINUATION flood, HPACK bombs).
pub const H2_HEADER_LIST_BYTES: u32 = 32 * 1024;

/// The table that a sender's header blocks build (HPACK): the size that RFC 9113 §6.5.2 starts with, and no more. It is
/// held for each end of each connection.
pub const H2_TABLE_BYTES: usize = 4096;

/// The longest header block, as it is sent. Compressed or not, a list of fields within [`H2_HEADER_LIST_BYTES`] fits;
/// more would be kept only to be refused (CVE-2024-27316, CONTINUATION flood).
pub const H2_BLOCK_BYTES: usize = 48 * 1024;

/// The most frames of one header block: what [`H2_BLOCK_BYTES`] needs in frames of the least size that everybody takes,
/// and some for those who send less in each. Empty ones cost nothing but time (CVE-2024-27316).
pub const H2_BLOCK_FRAMES: u32 = 16;

/// The largest frame that is taken: the least that RFC 9113 §4.2 lets one ask for, and so what everybody may be sent.
pub const H2_FRAME_BYTES: usize = 16 * 1024;

/// Open streams of one HTTP/2 connection: the least that RFC 9113 §6.5.2 recommends. Each may hold a window.
pub const H2_STREAMS: u32 = 100;

/// Streams that were reset before anybody accepted them (rapid reset, CVE-2023-44487).
pub const H2_PENDING_RESETS: usize = 32;

/// Streams that are remembered after we reset them.
pub const H2_RESET_STREAMS: usize = 64;

/// Resets that a peer may provoke by protocol errors before the connection goes (CVE-2025-8671, "MadeYouReset").
pub const H2_LOCAL_ERROR_RESETS: usize = 256;

/// The flow-control window of one HTTP/2 stream: what a slow reader makes us hold of it.
pub const H2_STREAM_WINDOW: u32 = 64 * 1024;

/// The flow-control window of one HTTP/2 connection: streams that nobody reads must not stop the others.
pub const H2_CONNECTION_WINDOW: u32 = H2_STREAMS * H2_STREAM_WINDOW;

/// What one HTTP/2 stream may have waiting to be sent.
pub const H2_SEND_BUFFER: usize = 256 * 1024;

/// So many at once, and then so many a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// Once the burst is used up.
    pub per_second: u32,
}

/// Streams that one end of an HTTP/2 connection may reset, or make us reset (rapid reset, CVE-2023-44487; CVE-2025-8671,
/// "MadeYouReset"): each is judged and costs the server a request. A client may cancel all that it has open, and again.
pub const H2_RESETS: Rate = Rate { burst: 1000, per_second: 100 };

/// PINGs that are answered (CVE-2019-9512): clients of gRPC send one a round trip while they measure.
pub const H2_PINGS: Rate = Rate { burst: 1000, per_second: 100 };

/// SETTINGS that are answered (CVE-2019-9515): each may change every open stream.
pub const H2_SETTINGS: Rate = Rate { burst: 100, per_second: 10 };

/// Frames that carry nothing: empty DATA (CVE-2019-9518), PRIORITY (CVE-2019-9513), WINDOW_UPDATE beyond
/// [`H2_UPDATES_PER_DATA`], and kinds that nobody here knows.
pub const H2_CONTROL_FRAMES: Rate = Rate { burst: 10_000, per_second: 1000 };

/// WINDOW_UPDATE frames that a frame of DATA may be answered with: one for its stream and one for the connection would
/// do.
pub const H2_UPDATES_PER_DATA: u32 = 4;

/// What may wait to be written to one end of an HTTP/2 connection before nothing more is read that adds to it: an end
/// that does not read must not fill the memory with answers.
pub const H2_OUT_BYTES: usize = 64 * 1024;

/// How long one end of an HTTP/2 connection may take nothing at all of what waits for it. Streams that nobody reads have
/// their windows; an end that does not even read its socket would hold its connection, and what waits, for ever.
pub const H2_STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// How long what waits for the window of one stream may wait (CVE-2019-9511, CVE-2019-9517: windows that never open): a
/// reader that is only slow takes something before.
pub const H2_WINDOW_TIMEOUT: Duration = Duration::from_secs(300);

/// How often in a row one HTTP/2 connection reads and writes before the others of its thread have their turn.
pub const H2_TURNS: u32 = 16;

/// How long an upgrade to a new HTTP/2 connection may take (preface and SETTINGS from both ends).
pub const H2_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest value that a record carries of a path, a host or a method: records are bounded in size too.
pub const RECORD_VALUE_BYTES: usize = 1024;

/// Records that wait for the agent, of all threads, in bytes: some ten thousand of them. More are dropped and counted.
pub const RECORD_BYTES: usize = 4 * 1024 * 1024;

/// What each thread has of it at least: what comes in a few milliseconds, while its reader waits for a CPU.
pub const RECORD_BYTES_OF_ONE: usize = 512 * 1024;

/// Records that are worth taking at once: more would be taken out of memory, and not out of the cache.
pub const RECORDS_WORTH: usize = 128;

/// How long a record may wait until [`RECORDS_WORTH`] go together. [`RECORD_BYTES`] take what comes meanwhile, at
/// 500,000 requests a second.
pub const RECORD_LULL: Duration = Duration::from_millis(20);

/// How long a client over HTTP/2 that was told to go may take to say that it has heard it (RFC 9113 §6.8: a round trip).
/// What it sent by then is served; of what comes later it is told that nobody looked at it, and may send it elsewhere. A
/// client that lives answers at once, however busy it is within this.
pub const H2_LAST_CALL: Duration = Duration::from_secs(5);

/// The longest frame between agent and worker: a snapshot.
pub const FRAME_BYTES: usize = 64 * 1024 * 1024;

/// How long a connection without a request stays once told to stop. Its client cannot know, and a request that crosses
/// the closing is lost (RFC 9112 §9.6): so the next one is served and says that it is the last. Who asks less often than
/// this hits the closing as rarely as that of any idle timeout.
pub const DRAIN_LULL: Duration = Duration::from_secs(2);

/// The same where another agent has the node and nobody waits for this one's end: longer than most
/// clients keep a connection that they do not use (90 s in Go's net/http), so that they close it themselves, or send the
/// request that is answered with `Connection: close`, and none crosses a closing of ours.
pub const HANDED_OVER_LULL: Duration = Duration::from_secs(95);

/// How long connections may drain once told to stop. Kubernetes gives 30 s by default; the agent needs a few.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Groups of a Service's backends that rules can tell apart, for each of which a request is judged once: a Service
/// whose backends each have a class of their own must not make a request cost a thousand walks. The backends of the
/// largest groups are taken, the others get nothing.
pub const BACKEND_GROUPS: usize = 64;

/// Connections to backends of one Service that one connection of a client may have. The first is as any other
/// connection's; each more counts as a connection of its source ([`CONNECTIONS_PER_SOURCE`]), else one client could
/// make the proxy dial every backend of the cluster. An HTTP/2 connection whose streams are all busy elsewhere may have
/// one for each of them.
pub const UPSTREAMS: usize = 16;

/// Times that a choice of a backend is made again because the snapshot changed under it. Each needs a change within
/// microseconds; after so many the request is refused.
pub const CHOICES: usize = 16;

/// Clients whose backend is remembered under `sessionAffinity: ClientIP`: the nodes' pods times the Services that they
/// call, with much room; beyond it the hash alone decides.
pub const AFFINITIES: usize = 64 * 1024;

/// Between two searches of the full table for clients that have been silent too long.
pub const AFFINITY_REST: Duration = Duration::from_secs(1);

/// Backends that are known to refuse connections. More than that is a network that is down, and all are alike.
pub const REFUSING: usize = 4096;

/// How long a backend that refused a connection is passed over: about as long as it takes until it is not ready any
/// more and leaves the Service, and short enough that one that has come back is not missed.
pub const REFUSED_FOR: Duration = Duration::from_secs(2);

/// How long the connections of an agent that has handed its node over may live: to their end, but a stream that never
/// ends must not keep an old version for ever. SIGTERM leaves them [`DRAIN_TIMEOUT`].
pub const HANDED_OVER_TIMEOUT: Duration = Duration::from_secs(3600);
