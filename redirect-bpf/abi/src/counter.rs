//! Counters, by reason: every packet that is dropped, redirected or steered says why.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $label:literal),+ $(,)?) => {
        /// Why a packet met its fate. The place in the counters' map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Counter { $($(#[$doc])* $name),+ }

        impl Counter {
            /// All, in order.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name as telemetry writes it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }
        }
    };
}

counters! {
    /// Passed: a row allows the new flow.
    Allowed = "allowed",
    /// Passed: an allowed flow that audited policies would refuse.
    Audited = "audited",
    /// Passed: a packet of a known direct flow.
    Known = "known",
    /// Passed: from a socket of the node itself.
    Host = "host",
    /// Passed: from the proxy.
    FromProxy = "from_proxy",
    /// Passed: ARP, neighbour discovery, multicast listener discovery.
    Neighbour = "neighbour",
    /// Passed: an ICMP error about a known direct flow; in the proxy's namespace, about one of its connections.
    Related = "related",
    /// Passed: a pod talking to itself.
    Itself = "itself",
    /// Passed: only audited policies want the proxy, and there is none.
    FailOpen = "fail_open",
    /// To the proxy: a new flow.
    ToProxy = "to_proxy",
    /// To the proxy: a packet of a flow that it holds.
    ProxiedPacket = "proxied_packet",
    /// To the proxy: a reply to its upstream connection.
    UpstreamReply = "upstream_reply",
    /// Assigned to a listener of the proxy.
    AssignedNew = "assigned_new",
    /// Assigned to a connection of the proxy.
    AssignedKnown = "assigned_known",
    /// Dropped: a row denies the flow.
    Denied = "denied",
    /// Dropped: no row speaks of the flow.
    NoRow = "no_row",
    /// Dropped: nothing is known of the endpoint, or nothing is in force yet.
    NoEndpoint = "no_endpoint",
    /// Dropped: the address, or the neighbour it claims to be, is not the sender's.
    Spoofed = "spoofed",
    /// Dropped: a known flow that is no longer allowed.
    Cut = "cut",
    /// Dropped: should go to the proxy, and there is no way there.
    NoProxy = "no_proxy",
    /// Dropped, or answered with a reset where it was no SYN: the proxy has no socket for it.
    NoSocket = "no_socket",
    /// Dropped: a reply that did not come from the proxy to a flow that it holds.
    NotFromProxy = "not_from_proxy",
    /// Dropped: a fragment whose first one did not pass, or of what does not go in fragments.
    Fragment = "fragment",
    /// Dropped: an `IPv6` extension header that is not looked behind, or an option that has no business between pods.
    Extension = "extension",
    /// Dropped: neither IPv4, IPv6 nor ARP.
    NotIp = "not_ip",
    /// Dropped: its headers contradict each other, its frame or their RFC.
    Malformed = "malformed",
    /// Dropped: a loopback, unspecified or group address where none may be.
    BadAddress = "bad_address",
    /// Dropped: a bridge flooded a frame for somebody else to this endpoint.
    NotMine = "not_mine",
    /// Dropped: from the proxy's namespace, but of no connection of a local endpoint.
    Stray = "stray",
    /// Dropped: the flow table refused the entry.
    FlowTable = "flow_table",
    /// Dropped: the endpoint has as many flows as it may have.
    FlowQuota = "flow_quota",
    /// Dropped: the endpoint opens, or is opened, more flows in a second than it may.
    OpenRate = "open_rate",
    /// Beside the reason: the packet was answered with a reset.
    ResetSent = "reset_sent",
    /// Beside the reason: the packet was answered with "administratively prohibited".
    UnreachableSent = "unreachable_sent",
    /// Beside the reason: an answer was due, and the endpoint had had as many as it may in a second.
    AnswerLimit = "answer_limit",
    /// Passed: a later fragment of a packet whose first one passed.
    FragmentPassed = "fragment_passed",
    /// Dropped: a fragment that would lie over the transport header that was judged, or one too short to judge.
    FragmentOverlap = "fragment_overlap",
    /// Dropped: an `IPv6` routing header, or IPv4 source routing: it would go where it does not say.
    SourceRoute = "source_route",
    /// Dropped: a VLAN tag; what is under it was never meant for this device.
    Vlan = "vlan",
    /// Dropped: a frame from another address than the pod's own.
    SpoofedMac = "spoofed_mac",
    /// Dropped: a pod speaks the node's own tunnel protocol, whose inside nobody would judge.
    Encapsulated = "encapsulated",
    /// To the proxy: an ICMP error about one of its connections.
    ErrorToProxy = "error_to_proxy",
    /// Beside the reason: the event was not written, the endpoint had had as many as it may in a second.
    EventLimit = "event_limit",
    /// Beside the reason: the event was not written, nobody had read the ones before.
    EventLost = "event_lost",
    /// Beside the reason: passed, and not remembered. The endpoint has as many flows as it may have, and its packets
    /// are judged one by one.
    Unremembered = "unremembered",
}

/// How many counters there are.
pub const COUNTERS: u32 = Counter::ALL.len() as u32;
