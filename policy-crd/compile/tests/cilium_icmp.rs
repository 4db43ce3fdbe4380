//! `icmps`: types of ICMP and of `ICMPv6`, allowed and denied.

mod common;

use common::Ask;
use common::cilium::{ALLOW, DENY, ask, errors, policy, world};
use serde_json::json;
use sluice_policy::Protocol;
use sluice_policy::port::icmp_port;

#[test]
fn icmp_is_by_type_and_family() {
    let echo = |v6: bool| icmp_port(v6, if v6 { 128 } else { 8 });
    for (fields, [v4, v6, other]) in [
        (json!([{"type": 8}]), [true, false, false]),
        (json!([{"type": "8", "family": "IPv4"}]), [true, false, false]),
        (json!([{"type": "EchoRequest"}]), [true, false, false]),
        (json!([{"type": "Echo", "family": ""}]), [true, false, false]),
        (json!([{"type": "EchoRequest", "family": "IPv6"}]), [false, true, false]),
        (json!([{"type": 8, "family": "IPv6"}]), [false, false, false]),
        (json!([{"type": 128, "family": "IPv6"}, {"type": 3}]), [false, true, true]),
        (json!([{"type": "DestinationUnreachable"}]), [false, false, true]),
    ] {
        let rule = json!([{"fromEndpoints": [{}], "icmps": [{"fields": fields.clone()}]}]);
        let said = |named: bool| if named { ALLOW } else { DENY };
        for (spec, flip) in [
            (json!({"endpointSelector": {"matchLabels": {"app": "server"}}, "ingress": rule}), false),
            (
                json!({"endpointSelector": {"matchLabels": {"app": "server"}},
                    "ingress": [{"fromEntities": ["all"]}], "ingressDeny": rule}),
                true,
            ),
        ] {
            let (cluster, problems) = world(&[policy(spec.clone())]);
            assert!(errors(&problems).is_empty(), "{problems:#?}");
            for (port, named) in [(echo(false), v4), (echo(true), v6), (icmp_port(false, 3), other)] {
                let asked = Ask::new("a/client", "a/server", port, "").over(Protocol::Icmp);
                assert_eq!(asked.decide(&cluster), said(named != flip), "{port} {spec}");
                let stranger = Ask::new("b/client", "a/server", port, "").over(Protocol::Icmp);
                assert_eq!(stranger.decide(&cluster), said(flip), "{port} {spec}");
            }
            assert_eq!(ask(&cluster, "a/client", 8), said(flip), "TCP: {spec}");
        }
    }
}
