//! What nodes get over the real socket as the directory changes, and what becomes of their word.

mod common;

use common::{Control, DEADLINE, Node, WORLD, policy};
use sluice_policy::PathMatch;
use sluice_policy::Snapshot;
use sluice_wire::{WIRE_VERSION, hello, pb};
use std::fs;
use std::os::unix::fs::symlink;

fn prefix(snapshot: &Snapshot) -> Option<String> {
    let rule = snapshot.profiles.first()?.ingress.layers[1].allow.first()?;
    match rule.conditions.as_ref()?.http.first()?.path.as_ref()? {
        PathMatch::Prefix(prefix) => Some(prefix.to_string()),
        _ => None,
    }
}

#[tokio::test]
async fn a_change_reaches_the_node_it_concerns_and_is_reported_in_force() {
    let control = Control::start().await;
    let (mut a, mut b) = (control.node("node-a", 0).await, control.node("node-b", 0).await);
    let (first, other) = (a.next().await, b.next().await);
    assert_eq!((first.generation, other.generation), (100, 100));
    assert_eq!(prefix(&first).as_deref(), Some("/api"));
    assert_eq!(first.endpoints.len(), 1);
    assert_eq!(&*first.endpoints[0].workload.pod, "cart");
    assert_eq!(&*other.endpoints[0].workload.pod, "billing");
    a.applied(100, "shop/cart").await;
    assert!(!control.status()["inForce"].as_bool().expect("known"), "node-b has not spoken");
    b.applied(100, "shop/billing").await;
    let status = control.until(|status| status["inForce"] == true).await;
    assert_eq!(status["nodes"]["node-a"]["attached"][0], "shop/cart");
    assert_eq!(status["policies"][0]["policy"], "L7NetworkPolicy/shop/cart");
    assert_eq!(status["policies"][0]["effectiveMode"], "Enforce");
    assert_eq!(status["policies"][0]["selectedPods"][0], "shop/cart");

    control.write("policy.yaml", &policy("/v2"));
    let second = a.next().await;
    assert_eq!(prefix(&second).as_deref(), Some("/v2"));
    assert_eq!(second.generation, 101);
    let waiting = control.status();
    assert_eq!(waiting["inForce"], false, "sent is not in force");
    a.applied(101, "shop/cart").await;
    let status = control.until(|status| status["inForce"] == true).await;
    assert_eq!(status["nodes"]["node-a"]["acked"], 101);
    control.stop().await;
}

#[tokio::test]
async fn a_node_without_a_change_is_sent_nothing() {
    let control = Control::start().await;
    let mut b = control.node("node-b", 0).await;
    assert_eq!(b.next().await.generation, 100);
    // A comment changes the file and nothing else; a label that nothing reads likewise.
    control.write("policy.yaml", &format!("# again\n{}", policy("/api")));
    let reads = control.until(|status| status["reads"].as_u64() >= Some(2)).await;
    assert_eq!(reads["generation"], 100);
    // What node-b is sent next is the change after it.
    control.write("world.yaml", &WORLD.replace("10.0.2.2", "10.0.2.3"));
    let next = b.next().await;
    assert_eq!(next.endpoints[0].addresses, ["10.0.2.3".parse::<std::net::IpAddr>().expect("an address")]);
    control.stop().await;
}

#[tokio::test]
async fn a_node_that_does_not_read_holds_up_nobody_and_gets_the_newest() {
    // Larger than the window that the client here gives, so that not reading is felt.
    let large = |version: usize| {
        let item = |at| format!("{{ path: {{ type: Exact, value: /{at}{} }} }}, ", "x".repeat(900));
        let many: String = (0..120).map(item).collect();
        policy(&format!("/v{version}")).replace("http: [ ", &format!("http: [ {many}"))
    };
    let version = |snapshot: &Snapshot| {
        let rule = &snapshot.profiles[0].ingress.layers[1].allow[0];
        let last = rule.conditions.as_ref().and_then(|c| c.http.last()?.path.clone());
        last.map(|path| path.to_string()).expect("a path")
    };
    let control = Control::start().await;
    control.write("policy.yaml", &large(0));
    control.until(|status| status["reads"].as_u64() >= Some(2)).await;
    let mut slow = control.node("node-a", 0).await;
    let mut quick = control.node("node-a", 0).await;
    const CHANGES: usize = 20;
    for change in 1..=CHANGES {
        control.write("policy.yaml", &large(change));
        while version(&quick.next().await) != format!("PathPrefix /v{change}") {}
    }
    let mut before = 0;
    while version(&slow.next().await) != format!("PathPrefix /v{CHANGES}") {
        before += 1;
    }
    assert!(before < CHANGES / 2, "it was sent {before} of {CHANGES} old ones");
    control.stop().await;
}

#[tokio::test]
async fn a_refusal_and_a_missing_endpoint_are_shown_and_are_not_in_force() {
    let control = Control::start().await;
    let mut a = control.node("node-a", 0).await;
    let generation = a.next().await.generation;
    a.send(pb::Ack { generation, rejected: "classes: bits".into(), ..pb::Ack::default() }).await;
    let status = control.until(|status| status["nodes"]["node-a"]["rejected"] == "classes: bits").await;
    assert_eq!((&status["inForce"], &status["nodes"]["node-a"]["acked"]), (&false.into(), &().into()));
    let missing = pb::MissingEndpoint { endpoint: "shop/cart".into(), reason: "no interface".into() };
    a.send(pb::Ack { generation, applied: true, missing: vec![missing], ..pb::Ack::default() }).await;
    let status = control.until(|status| status["nodes"]["node-a"]["missing"][0].is_object()).await;
    assert_eq!(status["nodes"]["node-a"]["missing"][0]["reason"], "no interface");
    assert_eq!(status["inForce"], false);
    drop(a);
    control.until(|status| status["nodes"]["node-a"]["connected"] == false).await;
    control.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_shown_with_its_place_and_the_rest_stays_in_force() {
    let control = Control::start().await;
    let mut a = control.node("node-a", 0).await;
    a.next().await;
    control.write("broken.yaml", "apiVersion: v1\nkind: [unclosed\n");
    let status = control.until(|status| status["problems"].as_array().is_some_and(|p| !p.is_empty())).await;
    let problem = &status["problems"][0];
    assert!(problem["file"].as_str().expect("a file").ends_with("objects/broken.yaml"), "{problem}");
    assert!(problem["line"].as_u64() > Some(0), "{problem}");
    assert!(!problem["remedy"].as_str().expect("a remedy").is_empty(), "{problem}");
    assert_eq!(status["policies"][0]["accepted"], true);
    fs::remove_file(control.path("objects/broken.yaml")).expect("removed");
    control.until(|status| status["problems"] == serde_json::json!([])).await;
    assert_eq!(control.status()["generation"], 100, "the broken file changed nothing");
    control.stop().await;
}

#[tokio::test]
async fn a_directory_that_vanishes_changes_nothing_until_it_is_back() {
    let control = Control::start().await;
    let mut a = control.node("node-a", 0).await;
    a.next().await;
    fs::rename(control.path("objects"), control.path("away")).expect("renamed");
    let status = control.until(|status| status["problems"].as_array().is_some_and(|p| !p.is_empty())).await;
    assert!(
        status["problems"][0]["remedy"].as_str().expect("a remedy").contains("stays in force"),
        "{status}"
    );
    assert_eq!(status["generation"], 100);
    assert_eq!(status["policies"][0]["policy"], "L7NetworkPolicy/shop/cart");
    // A node that comes now gets what is in force.
    assert_eq!(prefix(&control.node("node-a", 0).await.next().await).as_deref(), Some("/api"));
    fs::write(control.path("away/policy.yaml"), policy("/back")).expect("written");
    fs::rename(control.path("away"), control.path("objects")).expect("renamed");
    assert_eq!(prefix(&a.next().await).as_deref(), Some("/back"));
    // The directory is another one to the kernel; it is followed like the first.
    control.until(|status| status["problems"] == serde_json::json!([])).await;
    control.write("policy.yaml", &policy("/again"));
    assert_eq!(prefix(&a.next().await).as_deref(), Some("/again"));
    control.stop().await;
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_as_kubelet_swaps_it() {
    let home = tempfile::tempdir().expect("a directory");
    let objects = home.path().join("objects");
    let version = |name: &str, path: &str| {
        fs::create_dir_all(objects.join(name)).expect("a directory");
        fs::write(objects.join(name).join("world.yaml"), WORLD).expect("written");
        fs::write(objects.join(name).join("policy.yaml"), policy(path)).expect("written");
    };
    version("..one", "/one");
    symlink("..one", objects.join("..data")).expect("linked");
    for file in ["world.yaml", "policy.yaml"] {
        symlink(format!("..data/{file}"), objects.join(file)).expect("linked");
    }
    let control = Control::over(home, 1).await;
    let mut a = control.node("node-a", 0).await;
    assert_eq!(prefix(&a.next().await).as_deref(), Some("/one"));
    version("..two", "/two");
    symlink("..two", objects.join("..data_tmp")).expect("linked");
    fs::rename(objects.join("..data_tmp"), objects.join("..data")).expect("swapped");
    fs::remove_dir_all(objects.join("..one")).expect("removed");
    assert_eq!(prefix(&a.next().await).as_deref(), Some("/two"));
    control.stop().await;
}

#[tokio::test]
async fn generations_grow_across_restarts_and_for_a_node_that_is_ahead() {
    let control = Control::start().await;
    let mut a = control.node("node-a", 0).await;
    let generation = a.next().await.generation;
    let home = control.stop().await;
    let told = a.message().await.expect_err("the stream ended with control");
    assert_eq!(told.code(), tonic::Code::Unavailable, "{told}");
    // The clock was put back: control starts below what the node has.
    let control = Control::over(home, generation - 50).await;
    let mut a = control.node("node-a", generation).await;
    assert_eq!(a.next().await.generation, generation + 1);
    // The same again while control knows the node.
    let mut again = control.node("node-a", generation + 10).await;
    assert_eq!(again.next().await.generation, generation + 11);
    control.stop().await;
}

#[tokio::test]
async fn a_stranger_to_the_protocol_is_told_why_it_gets_nothing() {
    let control = Control::start().await;
    let socket = control.path("control.sock");
    let other = pb::Hello { node: "node-a".into(), wire_version: WIRE_VERSION + 1, last_generation: 0 };
    let other = pb::FromNode { message: Some(pb::from_node::Message::Hello(other)) };
    let refused = |first| async { Node::subscribe(&socket, first).await.err().expect("refused") };
    let status = refused(other).await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("run one release of both"), "{status}");
    assert_eq!(refused(hello("", 0)).await.code(), tonic::Code::InvalidArgument);
    assert_eq!(refused(sluice_wire::ack(pb::Ack::default())).await.code(), tonic::Code::InvalidArgument);
    assert_eq!(control.status()["nodes"], serde_json::json!({}));
    control.stop().await;
}

#[tokio::test]
async fn reports_are_counted_with_what_was_dropped() {
    let control = Control::start().await;
    let a = control.node("node-a", 0).await;
    let report = pb::Report { records: vec![pb::FlowRecord::default(); 3], dropped: 2, kernel: None };
    let message = pb::FromNode { message: Some(pb::from_node::Message::Report(report)) };
    a.to_control.send(message).await.expect("open");
    let status = control.until(|status| status["nodes"]["node-a"]["records"] == 3).await;
    assert_eq!(status["nodes"]["node-a"]["recordsDropped"], 2);
    control.stop().await;
}

fn map(name: &str, used: u64, max: u64, warning: &str) -> pb::MapFill {
    pb::MapFill { map: name.into(), used, max, warning: warning.into() }
}

#[tokio::test]
async fn what_a_node_knows_of_its_kernel_is_shown_with_its_age() {
    let control = Control::start().await;
    let mut a = control.node("node-a", 0).await;
    let generation = a.next().await.generation;
    a.send(pb::Ack { generation, applied: true, ..pb::Ack::default() }).await;
    let status = control.until(|status| status["inForce"] == true).await;
    assert_eq!(status["nodes"]["node-a"]["kernel"], serde_json::Value::Null, "nothing is known yet");
    let kernel = pb::Kernel {
        generation,
        packets: vec![pb::Packets { reason: "denied".into(), count: 3 }],
        maps: vec![map("ROWS", 9, 262_144, ""), map("FLOWS", 92, 100, "map FLOWS is 92 % full: close some")],
        drift: vec![pb::Drift {
            what: "rp_filter was 1".into(),
            times: 2,
            age_seconds: 4,
            ..pb::Drift::default()
        }],
        repaired: 2,
        trouble: String::new(),
    };
    a.to_control.send(sluice_wire::kernel(kernel)).await.expect("open");
    let status = control.until(|status| status["nodes"]["node-a"]["kernel"]["packets"]["denied"] == 3).await;
    let node = &status["nodes"]["node-a"];
    assert_eq!((&node["stale"], &node["inForce"]), (&false.into(), &true.into()), "{node:#}");
    assert_eq!(node["warnings"], serde_json::json!(["map FLOWS is 92 % full: close some"]));
    let kernel = &node["kernel"];
    assert_eq!(kernel["maps"]["ROWS"], serde_json::json!({"used": 9, "max": 262_144}));
    assert_eq!((&kernel["drift"][0]["repaired"], &kernel["drift"][0]["times"]), (&true.into(), &2.into()));
    assert!(kernel["ageSeconds"].as_u64() <= Some(4) && kernel["drift"][0]["ageSeconds"].as_u64() >= Some(4));
    // Nothing comes any more, and the status says so without anybody asking.
    control.until(|status| status["nodes"]["node-a"]["kernel"]["ageSeconds"].as_u64() >= Some(5)).await;
    control.stop().await;
}

#[tokio::test]
async fn what_could_not_be_put_right_on_a_node_is_not_in_force() {
    let control = Control::start().await;
    let mut a = control.node("node-a", 0).await;
    let generation = a.next().await.generation;
    let drift =
        pb::Drift { what: "a hook of eth0 was gone".into(), stays: "busy".into(), ..pb::Drift::default() };
    let ack = pb::Ack { generation, applied: true, ..pb::Ack::default() };
    a.send(pb::Ack { drift: vec![drift], ..ack.clone() }).await;
    let status = control.until(|status| status["nodes"]["node-a"]["acked"] == generation).await;
    assert_eq!(status["inForce"], false);
    assert_eq!(status["nodes"]["node-a"]["warnings"][0], "not as it must be: a hook of eth0 was gone: busy");
    a.send(ack).await;
    control.until(|status| status["inForce"] == true).await;
    control.stop().await;
}

/// A node that lies costs its own line in the status, and nobody else anything.
#[tokio::test]
async fn a_node_that_lies_hurts_nobody() {
    let control = Control::start().await;
    let mut honest = control.node("node-b", 0).await;
    let generation = honest.next().await.generation;
    honest.applied(generation, "shop/billing").await;

    // Some 4 MB of nothing would be some 600 MB of records.
    let liar = control.node("node-a", 0).await;
    let records = vec![pb::FlowRecord::default(); 1_000_000];
    let report = pb::Report { records, ..pb::Report::default() };
    let message = pb::FromNode { message: Some(pb::from_node::Message::Report(report)) };
    liar.to_control.send(message).await.expect("open");
    control.until(|status| status["nodes"]["node-a"]["connected"] == false).await;
    let status = control.until(|status| status["nodes"]["node-b"]["inForce"] == true).await;
    assert_eq!(status["nodes"]["node-a"]["records"], 0, "it was refused whole");

    let liar = control.node("node-a", 0).await;
    let packets = |at: u64| pb::Packets { reason: format!("reason_{at}"), count: u64::MAX };
    let drift = pb::Drift {
        what: "\u{1b}[2J\u{202e}all is well\n".into(),
        stays: String::new(),
        times: u64::MAX,
        age_seconds: u64::MAX,
    };
    let kernel = pb::Kernel {
        generation: u64::MAX,
        packets: (0..5_000).map(packets).chain([pb::Packets { reason: "x\u{7}".into(), count: 1 }]).collect(),
        maps: vec![map("ROWS", u64::MAX, 0, "\u{9b}31mfine\r"); 1_000],
        drift: vec![drift; 1_000],
        repaired: u64::MAX,
        trouble: "\0".repeat(100_000),
    };
    liar.to_control.send(sluice_wire::kernel(kernel)).await.expect("open");
    let status = control.until(|status| !status["nodes"]["node-a"]["kernel"].is_null()).await;
    let kernel = &status["nodes"]["node-a"]["kernel"];
    assert_eq!(kernel["packets"].as_object().expect("an object").len(), sluice_wire::limits::COUNTERS);
    assert_eq!(kernel["drift"].as_array().expect("a list").len(), sluice_wire::limits::DRIFTS);
    assert_eq!(kernel["drift"][0]["ageSeconds"], u64::MAX);
    let text = fs::read_to_string(control.path("status.json")).expect("a status");
    assert!(text.len() < 100_000, "{}", text.len());
    // JSON writes control characters as escapes: they must not be there in that form either.
    assert!(!text.contains("\\u00") && !text.contains("\\r") && !text.contains('\u{202e}'), "{text}");
    assert_eq!(status["nodes"]["node-b"]["inForce"], true);

    let socket = control.path("control.sock");
    let refused = Node::subscribe(&socket, hello("node\u{1b}c", 0)).await.err().expect("refused");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    control.stop().await;
}

#[tokio::test]
async fn a_directory_that_never_falls_quiet_is_read_all_the_same() {
    let home = tempfile::tempdir().expect("a directory");
    let timing = sluice_control::follow::Timing {
        // Only the bound on the burst can end the waiting.
        quiet: DEADLINE * 2,
        rescan: DEADLINE * 2,
        ..Default::default()
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let mut changes = sluice_control::follow::follow(home.path(), timing, stop.clone());
    changes.recv().await.expect("the first comes at once");
    let file = home.path().join("busy.yaml");
    let writer = tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        for count in 0_u64.. {
            fs::write(&file, count.to_string()).expect("written");
            tokio::task::yield_now().await;
        }
    }));
    let told = tokio::time::timeout(DEADLINE, changes.recv()).await;
    assert_eq!(told.expect("told although the writer goes on"), Some(()));
    assert!(!writer.is_finished());
    stop.cancel();
}
