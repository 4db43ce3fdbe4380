//! What each endpoint may take of the node's flow table, and of the kernel's answers and events.
//!
//! Knows nothing of how the kernel counts. Written by `node`, read by the programs.

use sluice_bpf_abi::Limits;

/// What each endpoint of a node may take. 0 is no limit.
///
/// The table has room for [`MAX_FLOWS`](sluice_bpf_abi::MAX_FLOWS) flows. With these defaults one endpoint's flood in
/// one direction fills an eighth of it at most; eight endpoints that flood at once fill it, and then what has not been
/// used for the longest goes first, which is their floods' own flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointLimits {
    /// Flows to the endpoint at once. Beyond it new ones pass, as the rows say, but are not remembered: their
    /// packets are judged one by one, and what the endpoint answers passes only where a row allows it too (TCP and
    /// SCTP: either way's). What goes to the proxy goes there: it answers a SYN without anything remembered, and the
    /// connection is remembered beyond this number once its client has answered, under the proxy's own limits. Before
    /// that such flows have half of it at most.
    pub ingress_flows: u32,
    /// Flows that the endpoint may have open at once. Beyond it new ones are refused.
    pub egress_flows: u32,
    /// Flows to the endpoint that may begin in a second, and what happens beyond is the same.
    pub ingress_opens: u32,
    /// Flows that the endpoint may begin in a second; a burst is one second's worth.
    pub egress_opens: u32,
    /// Resets and ICMP errors for its packets in a second. Linux answers with as many (`icmp_msgs_per_sec`).
    pub answers: u32,
    /// Events in a second of what is refused at its hooks. A flood beyond is counted, not told packet by packet.
    pub refusal_events: u32,
    /// Events in a second of its flows that pass.
    pub flow_events: u32,
}

impl Default for EndpointLimits {
    /// A UDP flow is remembered for 30 s, so 32,768 are some 1,100 lookups of names a second from ever new ports; a
    /// TCP connection only as long as it is open. 8,192 a second are more connections than one pod's CPUs open and
    /// use, and few enough that the table lasts for half a minute where nobody counts.
    fn default() -> Self {
        Self {
            ingress_flows: 32_768,
            egress_flows: 32_768,
            ingress_opens: 16_384,
            egress_opens: 8_192,
            answers: 1_000,
            refusal_events: 100,
            flow_events: 100,
        }
    }
}

impl EndpointLimits {
    /// As the programs read them.
    pub(crate) fn written(self) -> Limits {
        Limits {
            flows: [self.ingress_flows, self.egress_flows],
            opens: [self.ingress_opens, self.egress_opens],
            answers: self.answers,
            events: [self.refusal_events, self.flow_events],
        }
    }
}
