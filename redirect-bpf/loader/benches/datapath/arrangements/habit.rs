//! What is compared: where the proxy's sockets are, which ends are pods of the node, and what the node is like.
//!
//! Knows nothing of how a stage is built. Called by the trial of the arrangements.

/// What is for the proxy's sockets, where they are in the node's namespace.
pub(super) const LOCAL_MARK: u32 = 0x5102;

/// Where the proxy's sockets are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sockets {
    /// There is no proxy.
    Nowhere,
    /// In the node's network namespace.
    Within,
    /// In a network namespace of the proxy's own.
    Apart,
    /// The same with the programs that ship.
    Shipped,
}

impl Sockets {
    /// As the table names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nowhere => "no proxy",
            Self::Within => "N, the node's namespace",
            Self::Apart => "P, a namespace of its own",
            Self::Shipped => "P, as it ships",
        }
    }
}

/// Which of the two is a pod of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ends {
    /// Both.
    Local,
    /// The server: the client is elsewhere.
    Ingress,
    /// The client: the server is elsewhere.
    Egress,
}

impl Ends {
    /// All.
    pub(crate) const ALL: [Self; 3] = [Self::Local, Self::Ingress, Self::Egress];

    /// As the table names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Local => "both pods here",
            Self::Ingress => "client elsewhere",
            Self::Egress => "server elsewhere",
        }
    }
}

/// What the node is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Habit {
    /// Nothing special.
    Plain,
    /// Connection tracking, and what is invalid is not forwarded, as kube-proxy has it.
    Conntrack,
    /// Connection tracking, and what is invalid goes no way at all, as a host's firewall may have it.
    Strict,
    /// Reverse paths are checked on every device.
    ReversePath,
    /// The same, and marks count (`src_valid_mark`), as wg-quick sets it.
    ValidMark,
    /// The kernel looks sockets up before it routes, as it does everywhere.
    EarlyDemux,
    /// Elsewhere is behind VXLAN.
    Vxlan,
    /// The same, and what is invalid is not forwarded.
    VxlanConntrack,
}

impl Habit {
    /// All.
    pub(crate) const ALL: [Self; 8] = [
        Self::Plain,
        Self::Conntrack,
        Self::Strict,
        Self::ReversePath,
        Self::ValidMark,
        Self::EarlyDemux,
        Self::Vxlan,
        Self::VxlanConntrack,
    ];

    /// As the table names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "nothing special",
            Self::Conntrack => "`ct state invalid drop` in forward",
            Self::Strict => "`ct state invalid drop` in every hook",
            Self::ReversePath => "`rp_filter=1` everywhere",
            Self::ValidMark => "the same and `src_valid_mark=1`",
            Self::EarlyDemux => "`tcp_early_demux=1`, as by default",
            Self::Vxlan => "elsewhere behind VXLAN",
            Self::VxlanConntrack => "the same and `ct state invalid drop` in forward",
        }
    }

    pub(crate) const fn tunnels(self) -> bool {
        matches!(self, Self::Vxlan | Self::VxlanConntrack)
    }

    /// The sysctls of the node. Those of `within` stand on their own.
    pub(super) fn sysctls(self, sockets: Sockets) -> String {
        let reverse = u8::from(matches!(self, Self::ReversePath | Self::ValidMark));
        let mut text =
            format!("for i in /proc/sys/net/ipv4/conf/*/rp_filter; do echo {reverse} > $i; done\n");
        if self == Self::ValidMark {
            text += "for i in /proc/sys/net/ipv4/conf/*/src_valid_mark; do echo 1 > $i; done\n";
        }
        if sockets == Sockets::Within {
            let early = u8::from(self == Self::EarlyDemux);
            text += &format!("echo {early} > /proc/sys/net/ipv4/tcp_early_demux\n");
            // Its connections leave TIME_WAIT behind, and no other port range is the node's own.
            text += "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range\n";
            text += "echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse\n";
        }
        text
    }

    pub(super) fn nft(self, sockets: Sockets) -> String {
        let hooks: &[&str] = match self {
            Self::Conntrack | Self::VxlanConntrack => &["forward"],
            Self::Strict => &["prerouting", "input", "forward", "output", "postrouting"],
            _ => return String::new(),
        };
        let mut text = "table ip filter {\n".to_owned();
        for hook in hooks {
            text += &format!(
                "chain {hook} {{ type filter hook {hook} priority 0; policy accept; ct state invalid drop; }}\n"
            );
        }
        // Only half of its connections' packets come by: what conntrack would call invalid.
        if sockets == Sockets::Within {
            text += &format!(
                "chain raw {{ type filter hook prerouting priority raw; meta mark {LOCAL_MARK} notrack; }}\n"
            );
        }
        text + "}\n"
    }
}
