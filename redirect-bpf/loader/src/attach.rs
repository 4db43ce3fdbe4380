//! Hooks A and B on the endpoints' veths, as pinned tcx links: they outlive the loader, and a new loader
//! replaces their program without a gap.

use crate::bpffs::{self, Pins};
use crate::crash;
use crate::error::SetupError;
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{SchedClassifier, TcAttachType};
use sluice_bpf_abi::program;
use std::collections::HashSet;
use std::path::Path;

/// The two hooks of an endpoint: program and side.
const HOOKS: [(&str, TcAttachType); 2] =
    [(program::FROM_POD, TcAttachType::Ingress), (program::TO_POD, TcAttachType::Egress)];

/// The classifier of this name.
pub(crate) fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier, SetupError> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| SetupError::Object { what: "program", name: name.to_owned() })
}

/// Attaches a program that goes with the loader. The thread must be in the device's namespace.
pub(crate) fn attach_unpinned(ebpf: &mut Ebpf, name: &'static str, device: &str) -> Result<(), SetupError> {
    let classifier = classifier(ebpf, name)?;
    classifier
        .attach_with_options(device, TcAttachType::Ingress, TcAttachOptions::TcxOrder(LinkOrder::first()))
        .map_err(|error| attach_error(name, device, &error))?;
    verify(classifier, name, device, TcAttachType::Ingress)
}

/// Gives the programs of this loader to every link that an earlier one pinned. Links of devices that are
/// gone are forgotten.
pub(crate) fn take_over(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), SetupError> {
    for path in Pins::list(&pins.links())? {
        let Some(pin) = parse(&path) else { continue };
        match replace(classifier(ebpf, pin.hook)?, &path) {
            // One that died between pinning a link and giving it its name.
            Ok(()) if pin.staged => bpffs::rename(&path, &pins.link(pin.device, pin.hook))?,
            Ok(()) => {}
            Err(error) if is_gone(&*error) => bpffs::remove_file(&path)?,
            // The endpoint keeps the program it has: to let the link go would let the endpoint go.
            Err(error) => return Err(attach_error(pin.hook, &path.display().to_string(), &error)),
        }
        crash::point("take a link over");
    }
    Ok(())
}

/// The devices that have links.
pub(crate) fn devices(pins: &Pins) -> Result<HashSet<u32>, SetupError> {
    Ok(Pins::list(&pins.links())?.iter().filter_map(|path| parse(path)).map(|pin| pin.device).collect())
}

/// Attaches both hooks to a device, if they are not there yet, and asks the kernel whether they are. The
/// thread must be in the node's namespace.
pub(crate) fn attach(ebpf: &mut Ebpf, pins: &Pins, index: u32, device: &str) -> Result<(), SetupError> {
    for (hook, side) in HOOKS {
        let (path, staged) = (pins.link(index, hook), pins.staged_link(index, hook));
        let classifier = classifier(ebpf, hook)?;
        if path.exists() && verify(classifier, hook, device, side).is_ok() {
            continue;
        }
        // What an attempt before left half done. Its link is not the only one: the old pin is there still.
        bpffs::remove_link(&staged)?;
        let id = classifier
            .attach_with_options(device, side, TcAttachOptions::TcxOrder(LinkOrder::first()))
            .map_err(|error| attach_error(hook, device, &error))?;
        let link = classifier.take_link(id).map_err(|error| attach_error(hook, device, &error))?;
        let link = FdLink::try_from(link).map_err(|error| attach_error(hook, device, &error))?;
        crash::point("attach a hook");
        link.pin(&staged).map_err(|error| attach_error(hook, device, &error))?;
        crash::point("pin a hook");
        // Over the pin of a link that does not hold any more, if there is one: until here both of them judged.
        bpffs::rename(&staged, &path)?;
        crash::point("name a hook");
        verify(classifier, hook, device, side)?;
    }
    Ok(())
}

/// Takes both hooks off a device.
pub(crate) fn detach(pins: &Pins, index: u32) -> Result<(), SetupError> {
    for (hook, _) in HOOKS {
        for path in [pins.staged_link(index, hook), pins.link(index, hook)] {
            bpffs::remove_link(&path)?;
        }
        crash::point("detach a hook");
    }
    Ok(())
}

fn replace(classifier: &mut SchedClassifier, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let link = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(path)?))?;
    let id = classifier.attach_to_link(link)?;
    // The pin keeps it; this process need not.
    drop(classifier.take_link(id)?);
    Ok(())
}

/// Whether a link cannot be given a program because its device is gone.
fn is_gone(error: &(dyn std::error::Error + 'static)) -> bool {
    let no_link = Some(rustix::io::Errno::NOLINK.raw_os_error());
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.raw_os_error() == no_link) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the kernel says that this very program is attached.
fn verify(
    classifier: &SchedClassifier,
    name: &'static str,
    device: &str,
    side: TcAttachType,
) -> Result<(), SetupError> {
    let own = classifier.info().map_err(|error| attach_error(name, device, &error))?.id();
    let (_, there) =
        SchedClassifier::query_tcx(device, side).map_err(|error| attach_error(name, device, &error))?;
    if there.iter().any(|program| program.id() == own) {
        return Ok(());
    }
    Err(attach_error(name, device, &"the kernel does not list it"))
}

fn attach_error(program: &'static str, device: &str, reason: &dyn std::fmt::Display) -> SetupError {
    SetupError::Attach { program, device: device.to_owned(), reason: reason.to_string() }
}

/// What the name of a link's pin says.
struct Pin {
    device: u32,
    hook: &'static str,
    /// Not yet in the place of the one before.
    staged: bool,
}

fn parse(path: &Path) -> Option<Pin> {
    let (device, rest) = path.file_name()?.to_str()?.split_once('-')?;
    let hook = rest.strip_suffix(bpffs::STAGED).unwrap_or(rest);
    let (hook, _) = HOOKS.iter().find(|(known, _)| *known == hook)?;
    Some(Pin { device: device.parse().ok()?, hook, staged: rest.ends_with(bpffs::STAGED) })
}
