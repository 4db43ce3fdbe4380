//! The system calls that the worker may make, and what becomes of the others.
//!
//! What no code of ours ever calls and who has broken in wants first (other programs, other processes, other namespaces,
//! the kernel's larger doors) kills the process; all else that is not listed fails with `EPERM`, since a library may look
//! for a file and live without it. Called by [`confine`](crate::confine) alone, when nothing but sockets is left to do.

use anyhow::Context as _;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;

/// What serving connections takes, whatever the arguments are.
const ALLOWED: &[c_long] = &[
    // Sockets that are there. What they may be made of is below.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_write,
    libc::SYS_writev,
    // Between two of them without a copy.
    libc::SYS_pipe2,
    libc::SYS_splice,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    // Memory, but none that is run: see below.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, their signals and their end.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
];

/// The same, where an architecture has an older form of them as well.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// What kills.
const DEADLY: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsopen,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_memfd_create,
    libc::SYS_mount,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

#[cfg(target_arch = "x86_64")]
const DEADLY_HERE: &[c_long] = &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_ioperm, libc::SYS_iopl];
#[cfg(not(target_arch = "x86_64"))]
const DEADLY_HERE: &[c_long] = &[];

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// From here on this thread, and those that it starts, make no other calls. For good.
///
/// # Errors
/// If the kernel takes no filter (`CONFIG_SECCOMP_FILTER`), or this is another architecture than was thought of.
pub fn apply() -> anyhow::Result<()> {
    // Of several filters the strictest word counts; the one that lets least through must come last, since it lets no
    // other through.
    let numbers = |lists: &[&[c_long]]| -> Rules {
        lists.iter().flat_map(|list| list.iter()).map(|number| (*number, Vec::new())).collect()
    };
    let deadly = numbers(&[DEADLY, DEADLY_HERE]);
    filter(deadly, SeccompAction::Allow, SeccompAction::KillProcess).context("what kills")?;
    // Its arguments are behind a pointer, which nobody can look at: glibc takes the older call then.
    let absent = numbers(&[&[libc::SYS_clone3]]);
    filter(absent, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.cast_unsigned()))
        .context("what is not there")?;
    let mut allowed = numbers(&[ALLOWED, ALLOWED_HERE, &[libc::SYS_clone3]]);
    allowed.extend(by_argument().context("what is looked at")?);
    filter(allowed, SeccompAction::Errno(libc::EPERM.cast_unsigned()), SeccompAction::Allow)
        .context("what is allowed")
}

fn filter(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> anyhow::Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).context("no system calls are known of it")?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch).context("make a filter")?;
    let program = BpfProgram::try_from(filter).context("make a filter's program")?;
    apply_filter(&program).context("set a seccomp filter: the kernel needs CONFIG_SECCOMP_FILTER")
}

/// What may be called with some arguments.
fn by_argument() -> anyhow::Result<Rules> {
    let number = |value: libc::c_int| u64::from(value.cast_unsigned());
    let is = |argument, value: libc::c_int| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number(value))
    };
    let bits = |argument, mask: libc::c_int, value: libc::c_int| {
        let all = SeccompCmpOp::MaskedEq(number(mask));
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, all, number(value))
    };
    // Streams alone: what is left of capabilities opens raw sockets too.
    let stream = |family| SeccompRule::new(vec![is(0, family)?, bits(1, SOCKET_TYPE, libc::SOCK_STREAM)?]);
    let none_run = || SeccompRule::new(vec![bits(2, libc::PROT_EXEC, 0)?]);
    let spaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let pid = i32::try_from(std::process::id()).context("a process's number")?;
    Ok([
        (libc::SYS_socket, vec![stream(libc::AF_INET)?, stream(libc::AF_INET6)?]),
        // By which signals wake the runtime.
        (libc::SYS_socketpair, vec![stream(libc::AF_UNIX)?]),
        (libc::SYS_ioctl, vec![SeccompRule::new(vec![is(1, FIONBIO)?])?]),
        (libc::SYS_prctl, vec![SeccompRule::new(vec![is(0, libc::PR_SET_NAME)?])?]),
        (libc::SYS_mmap, vec![none_run()?]),
        (libc::SYS_mprotect, vec![none_run()?]),
        // Threads, and no processes.
        (
            libc::SYS_clone,
            vec![SeccompRule::new(vec![bits(0, libc::CLONE_THREAD | spaces, libc::CLONE_THREAD)?])?],
        ),
        // Its own end, as by an assertion of the allocator.
        (libc::SYS_tgkill, vec![SeccompRule::new(vec![is(0, pid)?])?]),
    ]
    .into())
}

/// What of `socket`'s type is its type, and not a flag.
const SOCKET_TYPE: libc::c_int = 0xf;
/// Whether a descriptor waits (`asm-generic/ioctls.h`).
const FIONBIO: libc::c_int = 0x5421;
