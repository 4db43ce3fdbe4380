//! The verdict by example: order, layers, isolation, conditions, audit, and what cannot be known.

mod common;

use common::{allow, conditions, connection, deny, get, isolate, policy, side};
use sluice_policy::{
    ClassId, ClassSet, Decision, Facts, Kind, Mode, Outcome, PathMatch, Protocol, Reason, RowAction, Side,
};

const FRIEND: ClassId = ClassId(1);
const STRANGER: ClassId = ClassId(2);

/// K lets the friend connect to 8080 and 9090; L lets it say GET /items on 8080.
fn shop(mode: Mode) -> Side {
    let np = policy(0, Kind::NetworkPolicy, Mode::Enforce);
    let l7 = policy(1, Kind::L7NetworkPolicy, mode);
    let mut side = side();
    side.layers[0].isolation.push(isolate(&np));
    side.layers[0].allow.push(allow(&np, [FRIEND], &[8080, 9090], None));
    side.layers[1].isolation.push(isolate(&l7));
    side.layers[1].allow.push(allow(
        &l7,
        [FRIEND],
        &[8080],
        Some(conditions("GET", PathMatch::prefix("/items"))),
    ));
    side
}

#[test]
fn nothing_isolates_everything_passes() {
    let verdict = side().judge(&connection(STRANGER, 80), Facts::Connection);
    assert_eq!((verdict.decision, verdict.reason), (Decision::Allow, Reason::NotIsolated));
    assert_eq!(side().row(&connection(ClassId::MISSING, 80)).action, RowAction::Allow);
}

#[test]
fn both_layers_must_agree() {
    let side = shop(Mode::Enforce);
    let get_items = get("/items/7");
    let allowed = side.judge(&connection(FRIEND, 8080), Facts::Request(&get_items));
    assert_eq!((allowed.decision, allowed.reason), (Decision::Allow, Reason::RuleMatched));
    assert_eq!(allowed.origin().map(ToString::to_string).as_deref(), Some("L7NetworkPolicy/shop/p1"));
    // K allows 9090, L isolates it and names only 8080.
    let other_port = side.judge(&connection(FRIEND, 9090), Facts::Connection);
    assert_eq!((other_port.decision, other_port.reason), (Decision::Deny, Reason::DefaultDeny));
    // K does not know the stranger, whatever L says.
    let stranger = side.judge(&connection(STRANGER, 8080), Facts::Request(&get_items));
    assert_eq!(stranger.origin().map(ToString::to_string).as_deref(), Some("NetworkPolicy/shop/p0"));
}

#[test]
fn a_refused_request_names_its_nearest_miss() {
    let side = shop(Mode::Enforce);
    let mut head = get("/items");
    head.method = "HEAD";
    let verdict = side.judge(&connection(FRIEND, 8080), Facts::Request(&head));
    assert_eq!(verdict.reason, Reason::NoRuleMatched);
    assert_eq!(
        verdict.nearest_miss.map(|miss| miss.to_string()).as_deref(),
        Some("method HEAD not in [GET]")
    );
}

#[test]
fn what_cannot_be_known_meets_denies_and_no_allow() {
    let mut side = shop(Mode::Enforce);
    let unknown = side.judge(&connection(FRIEND, 8080), Facts::Unknown);
    assert_eq!((unknown.decision, unknown.reason), (Decision::Deny, Reason::ParseError));
    side.layers[1] = sluice_policy::Layer::default();
    assert_eq!(side.judge(&connection(FRIEND, 8080), Facts::Unknown).decision, Decision::Allow);
    let l7 = policy(1, Kind::L7NetworkPolicy, Mode::Enforce);
    side.deny.push(deny(&l7, [FRIEND], &[8080], Some(conditions("DELETE", PathMatch::prefix("/")))));
    assert_eq!(side.judge(&connection(FRIEND, 8080), Facts::Unknown).reason, Reason::DenyRule);
    assert_eq!(side.row(&connection(FRIEND, 8080)).action, RowAction::ToProxy);
}

#[test]
fn a_deny_beats_every_allow() {
    let mut side = shop(Mode::Enforce);
    let l7 = policy(2, Kind::L7NetworkPolicy, Mode::Enforce);
    side.deny.push(deny(&l7, [FRIEND], &[8080], Some(conditions("GET", PathMatch::prefix("/items/secret")))));
    let verdict = |path| side.judge(&connection(FRIEND, 8080), Facts::Request(&get(path))).reason;
    assert_eq!(verdict("/items"), Reason::RuleMatched);
    assert_eq!(verdict("/items/secret"), Reason::DenyRule);
    assert_eq!(verdict("/items/x/..%2fsecret"), Reason::DenyRule);
    assert_eq!(verdict("/items/secrets"), Reason::RuleMatched);
}

#[test]
fn nobody_knows_a_missing_identity() {
    let mut side = shop(Mode::Enforce);
    let np = policy(0, Kind::NetworkPolicy, Mode::Enforce);
    let mut everyone = allow(&np, [], &[], None);
    everyone.scopes[0].peers = ClassSet::All;
    side.layers[0].allow.push(everyone);
    let verdict = side.judge(&connection(ClassId::MISSING, 8080), Facts::Connection);
    assert_eq!((verdict.decision, verdict.reason), (Decision::Deny, Reason::IdentityMissing));
    side.deny.push(deny(&np, [STRANGER], &[8080], None));
    assert_eq!(
        side.judge(&connection(ClassId::MISSING, 8080), Facts::Connection).reason,
        Reason::DenyRule,
        "every peer deny takes it"
    );
}

#[test]
fn conditions_allow_nothing_but_tcp() {
    let side = shop(Mode::Enforce);
    for protocol in [Protocol::Udp, Protocol::Sctp, Protocol::Icmp, Protocol::Other] {
        let connection = sluice_policy::Connection { protocol, ..connection(FRIEND, 8080) };
        assert_eq!(side.row(&connection).action, RowAction::Deny, "{protocol}");
    }
}

#[test]
fn a_deny_with_conditions_denies_what_cannot_carry_them() {
    let l7 = policy(1, Kind::L7NetworkPolicy, Mode::Enforce);
    let mut side = side();
    let mut rule = deny(&l7, [FRIEND], &[], Some(conditions("GET", PathMatch::prefix("/"))));
    rule.scopes[0].ports = sluice_policy::PortSet::All;
    side.deny.push(rule);
    let udp = sluice_policy::Connection { protocol: Protocol::Udp, ..connection(FRIEND, 443) };
    assert_eq!(side.row(&udp).action, RowAction::Deny);
    assert_eq!(side.row(&connection(FRIEND, 443)).action, RowAction::ToProxy);
}

#[test]
fn rows_send_only_what_a_request_can_decide_to_the_proxy() {
    let side = shop(Mode::Enforce);
    assert_eq!(side.row(&connection(FRIEND, 8080)).action, RowAction::ToProxy);
    assert_eq!(side.row(&connection(FRIEND, 9090)).action, RowAction::Deny);
    assert_eq!(side.row(&connection(STRANGER, 8080)).action, RowAction::Deny);
}

#[test]
fn audit_says_and_does_not_do() {
    let side = shop(Mode::Audit);
    let row = side.row(&connection(FRIEND, 8080));
    assert_eq!((row.action, row.fail_open), (RowAction::ToProxy, true));
    // Audited L3/L4: 9090 passes and is counted.
    let other = side.row(&connection(FRIEND, 9090));
    assert_eq!((other.action, other.audit), (RowAction::Allow, true));

    let post = sluice_policy::Request { method: "POST", ..get("/items") };
    let verdict = side.judge(&connection(FRIEND, 8080), Facts::Request(&post));
    assert_eq!(verdict.outcome(), Outcome::Audit);
    assert_eq!(verdict.audit.would_deny.len(), 1);
    assert_eq!(verdict.audit.would_deny[0].reason, Reason::NoRuleMatched);
    let unreadable = side.judge(&connection(FRIEND, 8080), Facts::Unknown);
    assert_eq!(unreadable.outcome(), Outcome::Audit, "audit fails open");
    let fine = side.judge(&connection(FRIEND, 8080), Facts::Request(&get("/items")));
    assert_eq!(fine.outcome(), Outcome::Allow);
}
