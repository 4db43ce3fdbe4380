//! The kernel: what it takes of our programs and maps, and how it runs them.
//!
//! Loads the very object that a node is run with, every map of its full size, and pins nothing. Called by `check`.

use super::{Finding, line};
use crate::attach::{self, Hooks};
use crate::node::{OBJECT, chain};
use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use aya::{Ebpf, EbpfLoader};
use rustix::time::{ClockId, clock_gettime};
use sluice_bpf_abi::{map, program};
use std::time::{Duration, SystemTime};

/// The oldest that the datapath is written for.
const OLDEST: (u32, u32) = (5, 15);
/// The kinds of maps that the object has, and since when there are such.
const MAPS: [(MapType, &str, &str); 7] = [
    (MapType::Hash, "hash", "3.19"),
    (MapType::Array, "array", "3.19"),
    (MapType::PerCpuArray, "per-CPU array", "4.6"),
    (MapType::LruHash, "LRU hash", "4.10"),
    (MapType::LpmTrie, "LPM trie", "4.11"),
    (MapType::ArrayOfMaps, "array of maps", "4.12"),
    (MapType::RingBuf, "ring buffer", "5.8"),
];
/// The helpers that the object calls, and since when tc programs have them.
const HELPERS: [(BpfHelper, &str, &str); 20] = [
    (BpfHelper::BPF_FUNC_map_lookup_elem, "bpf_map_lookup_elem", "3.19"),
    (BpfHelper::BPF_FUNC_map_update_elem, "bpf_map_update_elem", "3.19"),
    (BpfHelper::BPF_FUNC_map_delete_elem, "bpf_map_delete_elem", "3.19"),
    (BpfHelper::BPF_FUNC_ktime_get_ns, "bpf_ktime_get_ns", "4.1"),
    (BpfHelper::BPF_FUNC_skb_store_bytes, "bpf_skb_store_bytes", "4.1"),
    (BpfHelper::BPF_FUNC_l3_csum_replace, "bpf_l3_csum_replace", "4.1"),
    (BpfHelper::BPF_FUNC_l4_csum_replace, "bpf_l4_csum_replace", "4.1"),
    (BpfHelper::BPF_FUNC_redirect, "bpf_redirect", "4.4"),
    (BpfHelper::BPF_FUNC_skb_load_bytes, "bpf_skb_load_bytes", "4.5"),
    (BpfHelper::BPF_FUNC_csum_diff, "bpf_csum_diff", "4.6"),
    (BpfHelper::BPF_FUNC_skb_change_type, "bpf_skb_change_type", "4.8"),
    (BpfHelper::BPF_FUNC_skb_change_tail, "bpf_skb_change_tail", "4.9"),
    (BpfHelper::BPF_FUNC_sk_release, "bpf_sk_release", "4.20"),
    (BpfHelper::BPF_FUNC_skc_lookup_tcp, "bpf_skc_lookup_tcp", "5.2"),
    (BpfHelper::BPF_FUNC_sk_assign, "bpf_sk_assign", "5.7"),
    (BpfHelper::BPF_FUNC_ringbuf_reserve, "bpf_ringbuf_reserve", "5.8"),
    (BpfHelper::BPF_FUNC_ringbuf_submit, "bpf_ringbuf_submit", "5.8"),
    (BpfHelper::BPF_FUNC_ringbuf_query, "bpf_ringbuf_query", "5.8"),
    (BpfHelper::BPF_FUNC_redirect_neigh, "bpf_redirect_neigh", "5.10"),
    (BpfHelper::BPF_FUNC_ktime_get_coarse_ns, "bpf_ktime_get_coarse_ns", "5.11"),
];
/// The coarse clock advances with the kernel's tick: 10 ms at 100 Hz.
const COARSE: Duration = Duration::from_millis(50);
/// No node lives before this: 2024-01-01.
const EPOCH: Duration = Duration::from_secs(1_704_067_200);
const NEWER: &str =
    "boot a newer kernel: Linux 5.15 or later, with CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF";

/// What can be read without a right.
pub(super) fn look() -> Vec<Finding> {
    let release = line("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        self::release(&release),
        lockdown(line("/sys/kernel/security/lockdown").as_deref()),
        btf(),
        clock(),
        unprivileged(),
    ]
}

fn release(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let found = format!("Linux {release}");
    match version {
        Some(version) if version < OLDEST => {
            let (major, minor) = OLDEST;
            Finding::warn(
                "kernel.release",
                found,
                format!("it is written for {major}.{minor} and later; {NEWER}"),
            )
        }
        _ => Finding::ok("kernel.release", found),
    }
}

/// Lockdown (6.18: `include/linux/security.h`) forbids helpers that read the kernel's memory; none of ours does.
fn lockdown(state: Option<&str>) -> Finding {
    let mode = state.and_then(|state| state.split_once('[')?.1.split_once(']')).map(|(mode, _)| mode);
    Finding::ok(
        "kernel.lockdown",
        mode.map_or("none: no such file".to_owned(), |mode| format!("{mode}: forbids nothing of ours")),
    )
}

fn btf() -> Finding {
    let there = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
    let found = if there { "the kernel tells its types" } else { "none of the kernel's own; not needed" };
    Finding::ok("kernel.btf", found)
}

fn unprivileged() -> Finding {
    match line("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => Finding::warn(
            "kernel.unprivileged",
            "every process may load eBPF programs (kernel.unprivileged_bpf_disabled=0)",
            "sysctl -w kernel.unprivileged_bpf_disabled=2",
        ),
        Some(_) => Finding::ok("kernel.unprivileged", "only privileged processes load eBPF programs"),
        None => {
            Finding::ok("kernel.unprivileged", "no such sysctl: only privileged processes load eBPF programs")
        }
    }
}

/// The programs take flows' ages from the coarse clock, and events their time from the fine one, in every packet.
fn clock() -> Finding {
    let read = |id| Duration::try_from(clock_gettime(id)).unwrap_or_default();
    let (coarse, fine) = (read(ClockId::MonotonicCoarse), read(ClockId::Monotonic));
    let source = line("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default();
    let apart = fine.abs_diff(coarse);
    let today = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if today < EPOCH {
        return Finding::warn(
            "kernel.clock",
            format!("the time of day is {} s after 1970: records will be of another time", today.as_secs()),
            "set the clock: start chronyd or systemd-timesyncd",
        );
    }
    if apart > COARSE {
        return Finding::warn(
            "kernel.clock",
            format!("the coarse clock is {} ms behind: flows are forgotten late", apart.as_millis()),
            "the node is overloaded, or its host takes its CPUs away: look at steal time (`vmstat 1`)",
        );
    }
    if matches!(source.as_str(), "hpet" | "acpi_pm" | "jiffies" | "refined-jiffies") {
        return Finding::warn(
            "kernel.clock",
            format!("the clock is {source}, which takes a microsecond to read"),
            "boot with a stable TSC (`dmesg | grep -i tsc`), or as a guest with kvm-clock",
        );
    }
    Finding::ok("kernel.clock", format!("{source}, the coarse clock {} ms behind", apart.as_millis()))
}

/// What takes rights: maps, helpers, the programs.
pub(super) fn try_out(flows: u32, hooks: Hooks) -> Vec<Finding> {
    let mut findings = vec![attached(hooks)];
    findings.push(all("kernel.maps", &MAPS, |kind| is_map_supported(kind).map_err(|error| chain(&error))));
    let helper =
        |helper| is_helper_supported(ProgramType::SchedClassifier, helper).map_err(|error| chain(&error));
    findings.push(all("kernel.helpers", &HELPERS, helper));
    findings.extend(programs(flows));
    findings
}

fn attached(hooks: Hooks) -> Finding {
    let found = match hooks {
        Hooks::Clsact => "filters of clsact qdiscs (tcx links: Linux 6.6)",
        _ => "tcx links",
    };
    Finding::ok("kernel.hooks", found)
}

/// Each kind by trying; which are not had.
fn all<T: Copy>(
    check: &'static str,
    wanted: &[(T, &str, &str)],
    has: impl Fn(T) -> Result<bool, String>,
) -> Finding {
    let mut missing = Vec::new();
    for (kind, name, since) in wanted {
        match has(*kind) {
            Ok(true) => {}
            Ok(false) => missing.push(format!("no {name} (Linux {since})")),
            Err(error) => missing.push(format!("{name}: {error}")),
        }
    }
    match missing.is_empty() {
        true => Finding::ok(check, format!("all {} that are used", wanted.len())),
        false => Finding::fail(check, missing.join("; "), NEWER),
    }
}

fn programs(flows: u32) -> Vec<Finding> {
    const CHECK: &str = "kernel.programs";
    let loaded = EbpfLoader::new().map_max_entries(map::FLOWS, flows).load(OBJECT);
    let mut ebpf = match loaded {
        Ok(ebpf) => ebpf,
        Err(error) => {
            let remedy = "if it says ENOMEM or EPERM: free memory (the maps take some 70 MB), and allow bpf(2) in seccomp \
                          and the LSM; otherwise boot a newer kernel";
            return vec![Finding::fail(CHECK, format!("the maps: {}", chain(&error)), remedy)];
        }
    };
    let (mut verified, mut refused, mut interpreted) = (Vec::new(), Vec::new(), Vec::new());
    for name in program::ALL {
        match load(&mut ebpf, name) {
            Ok((instructions, compiled)) => {
                verified.push(format!("{name} {instructions}"));
                interpreted.extend((!compiled).then_some(name));
            }
            Err(error) => refused.push(format!("{name}: {error}")),
        }
    }
    if !refused.is_empty() {
        return vec![Finding::fail(CHECK, refused.join("; "), NEWER)];
    }
    let found = format!("the verifier takes all four: {} instructions", verified.join(", "));
    vec![Finding::ok(CHECK, found), jit(&interpreted)]
}

/// The instructions that the verifier looked at, and whether the program was compiled.
fn load(ebpf: &mut Ebpf, name: &str) -> Result<(u32, bool), String> {
    let classifier = attach::classifier(ebpf, name).map_err(|error| error.to_string())?;
    classifier.load().map_err(|error| match &error {
        ProgramError::LoadError { io_error, verifier_log } => refusal(io_error, &verifier_log.to_string()),
        other => chain(other),
    })?;
    let info = classifier.info().map_err(|error| chain(&error))?;
    Ok((info.verified_instruction_count().unwrap_or(0), info.size_jitted() > 0))
}

/// The last thing that the verifier said, after which it only counts.
fn refusal(error: &std::io::Error, log: &str) -> String {
    let says = |line: &&str| !line.trim().is_empty() && !line.starts_with("processed ");
    match log.lines().rev().find(says) {
        Some(line) => format!("the verifier says: {} ({error})", line.trim()),
        None => format!("{error}, without a word of the verifier"),
    }
}

fn jit(interpreted: &[&str]) -> Finding {
    const CHECK: &str = "kernel.jit";
    if !interpreted.is_empty() {
        let found = "the programs are interpreted, several times as slow as compiled";
        return Finding::warn(CHECK, found, "sysctl -w net.core.bpf_jit_enable=1");
    }
    match line("/proc/sys/net/core/bpf_jit_harden").as_deref() {
        Some("2") => Finding::warn(
            CHECK,
            "compiled with every constant blinded (net.core.bpf_jit_harden=2), which costs time in each packet",
            "sysctl -w net.core.bpf_jit_harden=1 blinds those of unprivileged processes alone",
        ),
        _ => Finding::ok(CHECK, "the programs are compiled"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_release_is_read_as_distributions_write_it() {
        for (text, status) in [
            ("6.1.0-56-cloud-amd64", Status::Ok),
            ("5.15.0", Status::Ok),
            ("5.4.0-190-generic", Status::Warn),
            ("4.18.0-553.el8.x86_64", Status::Warn),
            ("", Status::Ok),
            ("banana", Status::Ok),
        ] {
            assert_eq!(release(text).status, status, "{text}");
        }
        assert!(lockdown(Some("none [integrity] confidentiality")).found.starts_with("integrity"));
        assert!(lockdown(Some("garbage")).found.contains("no such file"));
    }

    #[test]
    fn the_verifiers_last_word_is_told() {
        let log = "0: R1=ctx()\n5: (85) call bpf_sk_assign#124\nunknown func bpf_sk_assign#124\nprocessed 5 insns\n\n";
        let error = std::io::Error::from_raw_os_error(22);
        let text = refusal(&error, log);
        assert!(text.starts_with("the verifier says: unknown func bpf_sk_assign#124 ("), "{text}");
        assert!(refusal(&error, "").contains("without a word"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_kernel() {
        let finding = all("a.b", &[(1, "one", "1.1"), (2, "two", "2.2")], |kind| Ok(kind == 1));
        assert_eq!((finding.status, finding.found.as_str()), (Status::Fail, "no two (Linux 2.2)"));
    }

    fn number(at: usize, bytes: usize) -> usize {
        OBJECT[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    }

    /// Each call in the object's code (ELF, `Elf64_Ehdr` and `Elf64_Shdr`) is of a helper in the table.
    #[test]
    fn the_table_has_every_helper_that_is_called() {
        let (sections, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
        let mut called = BTreeSet::new();
        for section in (0..count).map(|index| sections + index * size) {
            let code = number(section + 4, 4) == 1 && number(section + 8, 8) & 4 != 0;
            let (start, length) = (number(section + 0x18, 8), number(section + 0x20, 8));
            let calls = (start..start + if code { length } else { 0 }).step_by(8);
            let calls = calls.filter(|at| OBJECT[*at] == 0x85 && OBJECT[at + 1] >> 4 == 0);
            called.extend(calls.map(|at| number(at + 4, 4) as u32));
        }
        let known: BTreeSet<u32> = HELPERS.iter().map(|(helper, ..)| *helper as u32).collect();
        assert!(called.len() > 10, "the walk found {called:?}");
        assert!(called.is_subset(&known), "not in the table: {:?}", called.difference(&known));
    }
}
