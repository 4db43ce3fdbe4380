//! `sluice check`: what can run passes, each thing that is broken has its finding and its exit code, and nothing that
//! is there is changed.

use anyhow::{Context, Result, ensure};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType, links::LinkOrder};
use libtest_mimic::Trial;
use serde_json::Value;
use sluice_redirect::check::{self, Status};
use sluice_redirect::{ABI_VERSION, Node, NodeConfig, absent};
use sluice_tests::harness::{self, Need};
use sluice_tests::world::{Netns, binary};
use sluice_tests::{NodeSpec, PodSpec, World};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub(crate) fn tests() -> Vec<Trial> {
    let needs = || [Need::Bpf, Need::Binary("sluice-proxy"), Need::Binary("sluice")];
    vec![
        harness::test("check: a node that can run", needs(), can_run),
        harness::test("check: beside a node that runs, which it leaves alone", needs(), beside),
        harness::test("check: sysctls and devices that are in the way", needs(), node),
        harness::test("check: pins and bpffs", needs(), pins),
        harness::test("check: without the rights it says what it could not look at", needs(), rights),
        harness::test(
            "check: programs of others on a pod's veth",
            [&needs()[..], &[Need::Tcx]].concat(),
            programs,
        ),
        harness::test("check: a kernel without IPv6", needs(), without_ipv6),
        harness::test("check: the table", needs(), table),
    ]
}

/// `r0 = 0; exit` as `pass`.
static PASS: &[u8] = aya::include_bytes_aligned!("../datapath/pass.bpf.o");

fn world(node: NodeSpec) -> Result<World> {
    World::builder().node(node).pod(PodSpec::new("n1", "a/one")).pod(PodSpec::new("n1", "a/two")).build()
}

/// What came out of it.
struct Checked {
    code: i32,
    report: Value,
    /// By check.
    statuses: BTreeMap<String, String>,
}

impl Checked {
    /// How a check came out.
    fn status(&self, check: &str) -> &str {
        self.statuses.get(check).map_or("", String::as_str)
    }

    fn found(&self, check: &str) -> String {
        let findings = self.report["findings"].as_array().into_iter().flatten();
        let found =
            findings.filter(|finding| finding["check"] == check).map(|finding| finding["found"].to_string());
        found.collect()
    }

    /// That it came out so, and that there is a remedy where one is due.
    fn expect(&self, code: i32, check: &str, status: &str, word: &str) -> Result<()> {
        let all = || format!("{:#}", self.report);
        ensure!(
            self.status(check) == status,
            "{check} is {:?} and not {status}: {}",
            self.status(check),
            all()
        );
        ensure!(self.found(check).contains(word), "{check} does not say {word:?}: {}", self.found(check));
        ensure!(self.code == code, "exit code {} and not {code}: {}", self.code, all());
        Ok(())
    }
}

/// Runs a check in a namespace; `around` stands before the program.
fn run(netns: &Netns, around: &[&str], arguments: &[&str]) -> Result<Checked> {
    let program = binary("sluice-proxy")?;
    run_as(netns, around, &program, arguments)
}

fn run_as(netns: &Netns, around: &[&str], program: &Path, arguments: &[&str]) -> Result<Checked> {
    let program = program.display().to_string();
    let argv = [around, &[&program, "check", "-o", "json"], arguments].concat();
    let output = netns.output(&argv)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_str(&text).with_context(|| format!("{argv:?}: {text}{errors}"))?;
    let mut statuses = BTreeMap::new();
    for finding in report["findings"].as_array().context("no findings")? {
        let field = |name: &str| finding[name].as_str().with_context(|| format!("{name} of {finding}"));
        let (check, status) = (field("check")?, field("status")?);
        ensure!(!field("found")?.is_empty(), "{finding}");
        ensure!((status == "ok") == finding["remedy"].is_null(), "a remedy where one is due: {finding}");
        let twice = statuses.insert(check.to_owned(), status.to_owned());
        ensure!(twice.is_none(), "{check} comes twice: {report:#}");
    }
    let code = output.status.code().context("it was killed")?;
    // The contract of docs/check.md: one follows from the other.
    let able = match code {
        0 => Value::Bool(true),
        1 => Value::Bool(false),
        _ => Value::Null,
    };
    ensure!(report["able"] == able && report["schema"] == 1 && report["scope"] == "node", "{report:#}");
    Ok(Checked { code, report, statuses })
}

/// What a check must leave as it is.
fn state(netns: &Netns) -> Result<String> {
    // Of IPv6 the kernel goes on by itself for a while after a world was made.
    let mut all = netns.run(&["ip", "-br", "link"])?;
    for command in [&["ip", "rule"][..], &["ip", "-4", "route", "show", "table", "all"], &["tc", "qdisc"]] {
        all += &netns.run(command)?;
    }
    let names = fs::read_dir("/run/netns")?.flatten().map(|entry| entry.file_name());
    let own = names.filter(|name| name.to_string_lossy().starts_with("check")).count();
    Ok(format!("{all}{own}"))
}

/// The findings that docs/check.md explains.
fn documented() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(sluice_tests::cluster::repository().join("docs/check.md"))?;
    let names =
        text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name);
    let names = names.filter(|name| name.contains('.') && !name.contains("[]"));
    let families = |name: &str| match name.strip_suffix('*') {
        Some(stem) => ["ipv4", "ipv6"].map(|family| format!("{stem}{family}")).to_vec(),
        None => vec![name.to_owned()],
    };
    Ok(names.flat_map(families).collect())
}

fn can_run() -> Result<()> {
    let world = world(NodeSpec::routed("n1"))?;
    let n1 = &world.node("n1").netns;
    let bpffs = world.node("n1").bpffs.join("sluice").display().to_string();
    let before = state(n1)?;
    for hooks in [None, Some("--clsact")] {
        let arguments = [&["--bpffs", &bpffs][..], hooks.as_slice()].concat();
        let checked = run(n1, &[], &arguments)?;
        checked.expect(0, "pins.bpffs", "ok", &bpffs)?;
        for family in ["ipv4", "ipv6"] {
            for packet in ["direct", "deny", "reject", "proxy-egress", "proxy-ingress"] {
                checked.expect(0, &format!("packets.{packet}-{family}"), "ok", "")?;
            }
        }
        checked.expect(0, "pods.devices", "ok", "veths to pods")?;
        let told: BTreeSet<&str> = checked.statuses.keys().map(String::as_str).collect();
        let documented = documented()?;
        ensure!(
            told == documented.iter().map(String::as_str).collect(),
            "docs/check.md: {documented:?}\n{told:?}"
        );
        let by =
            if hooks.is_some() { "clsact" } else { checked.report["hooks"].as_str().unwrap_or_default() };
        ensure!(checked.report["hooks"] == by, "{:#}", checked.report);
        ensure!(state(n1)? == before, "something is left:\n{before}\n{}", state(n1)?);
        ensure!(!Path::new(&bpffs).exists(), "a directory is left on the node's bpffs");
    }
    Ok(())
}

/// A node that is checked while it runs: its own hooks are no others', and nothing of it drifts.
fn beside() -> Result<()> {
    let world = world(NodeSpec::routed("n1"))?;
    let (n1, bpffs) = (world.node("n1").netns.clone(), world.node("n1").bpffs.clone());
    let config = NodeConfig::new("sl-n1", &bpffs, 15_001);
    let mut node = n1.inside(|| Node::open(config))??;
    let before = state(&n1)?;
    let bpffs = bpffs.display().to_string();
    let checked = run(&n1, &[], &["--bpffs", &bpffs, "--device", "sl-n1"])?;
    checked.expect(0, "node.agent", "ok", "one runs here")?;
    checked.expect(0, "pins.versions", "ok", &format!("BPF ABI {ABI_VERSION}, this build's own"))?;
    checked.expect(0, "pods.programs", "ok", "no other program")?;
    ensure!(state(&n1)? == before, "something is left:\n{before}\n{}", state(&n1)?);
    let drift = node.verify();
    ensure!(drift.is_empty(), "the node that runs was changed: {drift:?}");
    Ok(())
}

fn node() -> Result<()> {
    let world = world(NodeSpec::bridged("n1"))?;
    let n1 = &world.node("n1").netns;
    let bpffs = world.node("n1").bpffs.display().to_string();
    let check = || run(n1, &[], &["--bpffs", &bpffs]);
    n1.sysctl(&[("net.ipv6.conf.all.forwarding", "0")])?;
    n1.run(&["nft", "add", "table", "inet", "somebodys"])?;
    let checked = check()?;
    checked.expect(0, "node.netfilter", "ok", "inet somebodys")?;
    checked.expect(0, "node.ipv6", "warn", "does not forward")?;
    if Path::new("/proc/sys/net/bridge").exists() {
        checked.expect(0, "node.bridges", "warn", "cni0")?;
    }
    n1.sysctl(&[("net.ipv6.conf.all.disable_ipv6", "1")])?;
    check()?.expect(0, "node.ipv6", "ok", "IPv4 alone")?;
    // All that is wrong is told at once.
    n1.sysctl(&[("net.ipv4.ip_forward", "0")])?;
    n1.run(&["ip", "link", "add", "sluiceo", "type", "bridge"])?;
    for id in 0..5 {
        let (name, port) = (format!("vx{id}"), (4_000 + id).to_string());
        let id = id.to_string();
        n1.run(&["ip", "link", "add", &name, "type", "vxlan", "id", &id, "dstport", &port, "dev", "eth0"])?;
    }
    let checked = check()?;
    checked.expect(1, "node.forwarding", "fail", "does not forward IPv4")?;
    checked.expect(1, "node.agent", "fail", "sluiceo")?;
    checked.expect(1, "node.tunnels", "fail", "4000, 4001, 4002, 4003, 4004")
}

fn pins() -> Result<()> {
    let world = world(NodeSpec::routed("n1"))?;
    let n1 = &world.node("n1").netns;
    let bpffs = world.node("n1").bpffs.clone();
    let text = bpffs.display().to_string();
    // No bpffs there: it runs, and its pins are not the node's.
    let plain = world.dir().join("plain").display().to_string();
    let checked = run(n1, &[], &["--bpffs", &plain])?;
    checked.expect(0, "pins.bpffs", "warn", &plain)?;
    checked.expect(0, "pins.versions", "ok", "nothing is pinned")?;
    for kind in ["links", "maps"] {
        fs::create_dir_all(bpffs.join("v1").join(kind))?;
    }
    run(n1, &[], &["--bpffs", &text])?.expect(0, "pins.versions", "ok", "BPF ABI 1 of an earlier version")?;
    fs::create_dir_all(bpffs.join("v99/links"))?;
    run(n1, &[], &["--bpffs", &text])?.expect(1, "pins.versions", "fail", "BPF ABI 99")?;
    run(n1, &[], &["--bpffs", &text, "--roll-back"])?.expect(0, "pins.versions", "ok", "--roll-back")?;
    // In mounts of its own the node's bpffs is gone, and nothing can be made in its place.
    let gone = format!("umount {text} && mount -t tmpfs -o ro check {text} && exec \"$@\"");
    let around = ["unshare", "--mount", "sh", "-c", &gone, "sh"];
    run(n1, &around, &["--bpffs", &format!("{text}/sluice")])?.expect(
        1,
        "pins.bpffs",
        "fail",
        "cannot be written",
    )
}

/// A copy that a user without any right may start.
fn copy(directory: &tempfile::TempDir) -> Result<std::path::PathBuf> {
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    let copy = directory.path().join("sluice-proxy");
    fs::copy(binary("sluice-proxy")?, &copy)?;
    Ok(copy)
}

fn rights() -> Result<()> {
    let world = world(NodeSpec::routed("n1"))?;
    let n1 = &world.node("n1").netns;
    let directory = tempfile::tempdir()?;
    let copy = copy(&directory)?;
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let checked = run_as(n1, &nobody, &copy, &[])?;
    checked.expect(2, "rights.capabilities", "unknown", "CAP_SYS_ADMIN")?;
    for check in ["kernel.programs", "pods.programs", "pods.devices", "packets.setup"] {
        checked.expect(2, check, "unknown", "without CAP_SYS_ADMIN")?;
    }
    // What can be looked at is.
    for check in ["kernel.release", "node.forwarding", "node.mtu", "node.agent"] {
        checked.expect(2, check, "ok", "")?;
    }
    for (without, missing, may_look) in
        [("-net_admin", "CAP_NET_ADMIN is missing", true), ("-sys_admin", "CAP_SYS_ADMIN is missing", false)]
    {
        let around = ["setpriv", &format!("--bounding-set={without}"), "--"];
        let checked = run(n1, &around, &[])?;
        checked.expect(1, "rights.capabilities", "fail", missing)?;
        checked.expect(1, "packets.setup", "unknown", missing.split(' ').next().unwrap_or_default())?;
        checked.expect(1, "pods.devices", if may_look { "ok" } else { "unknown" }, "")?;
    }
    // CAP_SYS_ADMIN stands for the two others, for the kernel too.
    let around = ["setpriv", "--bounding-set=-bpf,-perfmon", "--"];
    let bpffs = world.node("n1").bpffs.display().to_string();
    run(n1, &around, &["--bpffs", &bpffs])?.expect(0, "packets.proxy-egress-ipv4", "ok", "")?;
    // Another's user namespace has every capability, and none that bpf(2) asks for.
    let around = ["unshare", "--user", "--map-root-user"];
    run(n1, &around, &[])?.expect(1, "rights.capabilities", "fail", "user namespace")
}

fn programs() -> Result<()> {
    let world = world(NodeSpec::routed("n1"))?;
    let n1 = &world.node("n1").netns;
    let bpffs = world.node("n1").bpffs.display().to_string();
    let veth = world.pod("a/one").veth.clone();
    let mut ebpf = aya::EbpfLoader::new().load(PASS)?;
    let program: &mut SchedClassifier = ebpf.program_mut("pass").context("pass")?.try_into()?;
    program.load()?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    n1.inside(|| program.attach_with_options(&veth, TcAttachType::Egress, options))??;
    let wanted = format!("tcx pass on 1 (as {veth})");
    run(n1, &[], &["--bpffs", &bpffs])?.expect(0, "pods.programs", "warn", &wanted)
}

/// Here as a library: the filter that takes the family away is one thread's.
fn without_ipv6() -> Result<()> {
    let world = world(NodeSpec::routed("n1"))?;
    let config = NodeConfig::new("sluice", &world.node("n1").bpffs, 15_001);
    let report = world.node("n1").netns.inside(|| absent::ipv6().map(|()| check::run(&config)))??;
    ensure!(!report.ipv6 && report.worst() <= Status::Warn, "{report:?}");
    let of = |family: &str| report.findings.iter().filter(|found| found.check.ends_with(family)).count();
    ensure!((of("-ipv4"), of("-ipv6")) == (5, 0), "{report:?}");
    let node = report.findings.iter().find(|found| found.check == "node.ipv6");
    ensure!(node.is_some_and(|node| node.found.contains("the kernel has none")), "{node:?}");
    Ok(())
}

fn table() -> Result<()> {
    let world = world(NodeSpec::routed("n1"))?;
    let n1 = &world.node("n1").netns;
    n1.sysctl(&[("net.ipv4.ip_forward", "0")])?;
    // By the CLI, which starts its neighbour.
    let output = n1.output(&[&binary("sluice")?.display().to_string(), "check"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{text}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(text.lines().all(|line| line.chars().count() <= 80), "wider than 80 columns:\n{text}");
    ensure!(text.contains("sysctl -w net.ipv4.ip_forward=1"), "no remedy:\n{text}");
    ensure!(text.contains("\nThis node cannot run the datapath: 1 fail,"), "{text}");
    ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let wrong = n1.output(&[&binary("sluice")?.display().to_string(), "check", "--nonsense"])?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    let help = n1.output(&[&binary("sluice")?.display().to_string(), "check", "--help"])?;
    let help = String::from_utf8_lossy(&help.stdout);
    for word in ["--bpffs", "--device", "--roll-back", "--clsact", "--output", "Exit code"] {
        ensure!(help.contains(word), "no {word} in\n{help}");
    }
    Ok(())
}
