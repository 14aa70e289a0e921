//! Puts the programs on interfaces: by pinned TCX links, or as clsact filters where the kernel has
//! no TCX (before 6.6).

use std::{io, os::fd::AsFd as _, path::Path, thread, time::Duration};

use aya::{
    Ebpf,
    programs::{
        Program, ProgramError, SchedClassifier, TcAttachType,
        links::Link as _,
        tc::{
            NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
        },
    },
};

use super::pins;
use crate::{Error, sys};

/// Way of a frame through an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    Incoming,
    Outgoing,
}

pub(super) const DIRECTIONS: [Direction; 2] = [Direction::Incoming, Direction::Outgoing];

/// How programs are put on interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Pinned links; kernel 6.6 and newer.
    Tcx,
    /// Filters of the `clsact` queueing discipline, priority 1. They belong to the interface and
    /// need no pin.
    Clsact,
}

impl Hook {
    /// What this kernel has.
    pub(super) fn detect() -> Result<Self, Error> {
        // The loopback has number 1 in every network namespace.
        match sys::tcx_links(1, sys::TCX_INGRESS) {
            Ok(_) => Ok(Self::Tcx),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Self::Clsact),
            Err(error) => Err(Error::system(
                "asking for TCX links of",
                "the loopback",
                error,
            )),
        }
    }
}

/// What stands before the network header of an interface's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    Ethernet,
    None,
    Infiniband,
}

impl Header {
    /// By `ARPHRD_*`; None: nothing that can carry an IP address.
    fn of(hardware: u16) -> Result<Option<Self>, &'static str> {
        const ARPHRD_RAWIP: u16 = 519;
        const ARPHRD_IP6GRE: u16 = 823;
        // CAN, monitors of netlink and vsock, and raw radio.
        const NO_IP: [u16; 6] = [280, 824, 826, 801, 802, 803];
        Ok(match hardware {
            libc::ARPHRD_ETHER => Some(Self::Ethernet),
            libc::ARPHRD_INFINIBAND => Some(Self::Infiniband),
            libc::ARPHRD_PPP
            | ARPHRD_RAWIP
            | libc::ARPHRD_TUNNEL
            | libc::ARPHRD_TUNNEL6
            | libc::ARPHRD_SIT
            | libc::ARPHRD_IPGRE
            | ARPHRD_IP6GRE
            | libc::ARPHRD_NONE => Some(Self::None),
            libc::ARPHRD_LOOPBACK => return Err("the loopback needs no lease"),
            other if NO_IP.contains(&other) => None,
            _ => return Err("its kind of link header is not known to the lease"),
        })
    }

    fn program(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Self::Ethernet, Direction::Incoming) => "lease_ingress",
            (Self::Ethernet, Direction::Outgoing) => "lease_egress",
            (Self::None, Direction::Incoming) => "lease_raw_in",
            (Self::None, Direction::Outgoing) => "lease_raw_out",
            (Self::Infiniband, Direction::Incoming) => "lease_ib_in",
            (Self::Infiniband, Direction::Outgoing) => "lease_ib_out",
        }
    }
}

/// The verifier gives up when a signal waits, or when memory is short for a moment.
const LOAD_ATTEMPTS: u32 = 5;
const LOAD_PAUSE: Duration = Duration::from_millis(10);

fn passes(error: &ProgramError) -> bool {
    let ProgramError::LoadError { io_error, .. } = error else {
        return false;
    };
    matches!(
        io_error.raw_os_error(),
        Some(libc::EAGAIN | libc::EINTR | libc::ENOMEM)
    )
}

/// The program of the object, loaded at its first use.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, Error> {
    let Some(Program::SchedClassifier(program)) = ebpf.program_mut(name) else {
        return Err(Error::Object(name));
    };
    let mut attempts = 0;
    while program.fd().is_err() {
        attempts += 1;
        match program.load() {
            Err(error) if attempts < LOAD_ATTEMPTS && passes(&error) => {
                tracing::debug!(program = name, %error, "loading it again");
                thread::sleep(LOAD_PAUSE);
            }
            result => {
                result.map_err(|source| Error::Program {
                    name,
                    source: Box::new(source),
                })?;
            }
        }
    }
    Ok(program)
}

/// An interface of this network namespace.
pub(super) struct Interface {
    pub(super) ifindex: u32,
    pub(super) name: String,
}

impl Interface {
    pub(super) fn find(ifindex: u32) -> Result<Self, Error> {
        let name = sys::interface_name(ifindex).map_err(|error| {
            Error::system(
                "finding the interface with number",
                ifindex.to_string(),
                error,
            )
        })?;
        Ok(Self { ifindex, name })
    }

    fn error(&self, reason: &'static str) -> Error {
        Error::Interface {
            name: self.name.clone(),
            ifindex: self.ifindex,
            reason,
        }
    }

    fn system(&self, doing: &'static str, error: io::Error) -> Error {
        Error::system(
            doing,
            format!("{} (number {})", self.name, self.ifindex),
            error,
        )
    }

    /// None: nothing to guard on this kind of interface.
    pub(super) fn header(&self) -> Result<Option<Header>, Error> {
        let hardware = sys::hardware_type(&self.name)
            .map_err(|error| self.system("asking for the kind of interface", error))?;
        Header::of(hardware).map_err(|reason| self.error(reason))
    }

    /// Puts the program there, in the place of a predecessor's if there is one.
    pub(super) fn attach(
        &self,
        ebpf: &mut Ebpf,
        hook: Hook,
        dir: &Path,
        header: Header,
        direction: Direction,
    ) -> Result<(), Error> {
        let name = header.program(direction);
        let program = program(ebpf, name)?;
        match hook {
            Hook::Tcx => self.attach_tcx(program, name, dir, direction),
            Hook::Clsact => self.attach_clsact(program, name, direction),
        }
    }

    fn attach_tcx(
        &self,
        program: &SchedClassifier,
        name: &'static str,
        dir: &Path,
        direction: Direction,
    ) -> Result<(), Error> {
        let fd = program.fd().map_err(|source| Error::Program {
            name,
            source: Box::new(source),
        })?;
        let id = sys::program_id(fd.as_fd())
            .map_err(|error| Error::system("asking for the number of program", name, error))?;
        let path = pins::link_path(dir, self.ifindex, direction);
        if let Some(link) = self.own_link(&path, direction)? {
            let info = sys::link_info(link.as_fd())
                .map_err(|error| self.system("looking at the lease's link on", error))?;
            if info.program == id {
                return Ok(());
            }
            match sys::link_update(link.as_fd(), fd.as_fd()) {
                Ok(()) => return Ok(()),
                // Gone since we looked.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(self.system("replacing the lease's program on", error)),
            }
        }
        pins::unpin(&path)?;
        let link = sys::link_create(fd.as_fd(), self.ifindex, attach_type(direction))
            .map_err(|error| self.system("putting the lease's program on", error))?;
        // Closed, and so detached, if this fails.
        sys::obj_pin(link.as_fd(), &path)
            .map_err(|error| Error::system("pinning link", path.display().to_string(), error))
    }

    /// The pinned link, if it still is on this interface.
    fn own_link(
        &self,
        path: &Path,
        direction: Direction,
    ) -> Result<Option<std::os::fd::OwnedFd>, Error> {
        let link = match sys::obj_get(path) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Error::system(
                    "opening pin",
                    path.display().to_string(),
                    error,
                ));
            }
        };
        let info = sys::link_info(link.as_fd())
            .map_err(|error| self.system("looking at the lease's link on", error))?;
        let there = sys::tcx_links(self.ifindex, attach_type(direction))
            .map_err(|error| self.system("asking for TCX links of", error))?;
        if info.ifindex == self.ifindex && there.contains(&info.id) {
            return Ok(Some(link));
        }
        // The interface was made anew, or is in another namespace by now. Not being there is fine.
        let _ = sys::link_detach(link.as_fd());
        Ok(None)
    }

    /// Whether the program there, ours, is the first to see a frame. A program of somebody else
    /// before it could accept what the lease would drop.
    pub(super) fn is_first(
        &self,
        hook: Hook,
        dir: &Path,
        direction: Direction,
    ) -> Result<bool, Error> {
        // With clsact ours has the first priority.
        if hook == Hook::Clsact {
            return Ok(true);
        }
        let looking = |error| self.system("looking at the lease's link on", error);
        let link = sys::obj_get(&pins::link_path(dir, self.ifindex, direction)).map_err(looking)?;
        let info = sys::link_info(link.as_fd()).map_err(looking)?;
        let there = sys::tcx_links(self.ifindex, attach_type(direction)).map_err(looking)?;
        Ok(there.first() == Some(&info.id))
    }

    fn attach_clsact(
        &self,
        program: &mut SchedClassifier,
        name: &'static str,
        direction: Direction,
    ) -> Result<(), Error> {
        let refused = |source| Error::Program {
            name,
            source: Box::new(source),
        };
        match qdisc_add_clsact(&self.name) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(refused(error.into())),
        }
        let options = NlOptions {
            priority: PRIORITY,
            handle: HANDLE,
            classid: None,
        };
        let options = TcAttachOptions::Netlink(options);
        let id = match program.attach_with_options(&self.name, tc_type(direction), options) {
            Err(ProgramError::TcError(TcError::NetlinkError(error)))
                if error.raw_os_error() == Some(libc::EEXIST) =>
            {
                let link = self.clsact_link(direction)?;
                program.attach_to_link(link)
            }
            result => result,
        }
        .map_err(refused)?;
        // The filter belongs to the interface; aya would remove it on drop.
        std::mem::forget(program.take_link(id).map_err(refused)?);
        Ok(())
    }

    fn clsact_link(&self, direction: Direction) -> Result<SchedClassifierLink, Error> {
        SchedClassifierLink::attached(&self.name, tc_type(direction), PRIORITY, HANDLE, None)
            .map_err(|error| self.system("finding the lease's filter on", error))
    }

    /// Removes the filter; none is fine.
    pub(super) fn detach_clsact(&self, direction: Direction) -> Result<(), Error> {
        match self.clsact_link(direction)?.detach() {
            Ok(()) => Ok(()),
            Err(ProgramError::NetlinkError(error))
                if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) =>
            {
                Ok(())
            }
            Err(source) => Err(Error::Program {
                name: "clsact filter",
                source: Box::new(source),
            }),
        }
    }
}

/// Ends a pinned link and removes its pin.
pub(super) fn end_link(path: &Path) -> Result<(), Error> {
    match sys::obj_get(path) {
        // Its interface may be gone, and the link with it.
        Ok(link) => drop(sys::link_detach(link.as_fd())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            tracing::warn!(pin = %path.display(), %error, "a pinned link cannot be opened; removed");
        }
    }
    pins::unpin(path)
}

/// Whether the link of a pin is on no interface any longer.
pub(super) fn is_dead(path: &Path) -> bool {
    let Ok(link) = sys::obj_get(path) else {
        return false;
    };
    sys::link_info(link.as_fd()).is_ok_and(|info| info.ifindex == 0)
}

/// First of its chain, with a handle that nobody else takes by accident.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0xc7db);

fn attach_type(direction: Direction) -> u32 {
    match direction {
        Direction::Incoming => sys::TCX_INGRESS,
        Direction::Outgoing => sys::TCX_EGRESS,
    }
}

fn tc_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Incoming => TcAttachType::Ingress,
        Direction::Outgoing => TcAttachType::Egress,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::load;

    #[test]
    fn every_program_loads() {
        sys::raise_memlock();
        let mut ebpf = load(None).unwrap();
        for header in [Header::Ethernet, Header::None, Header::Infiniband] {
            for direction in DIRECTIONS {
                let name = header.program(direction);
                let loaded = program(&mut ebpf, name);
                assert!(loaded.is_ok(), "needs root: {}", loaded.unwrap_err());
            }
        }
    }

    #[test]
    fn kinds_of_interfaces() {
        assert_eq!(Header::of(1), Ok(Some(Header::Ethernet)));
        assert_eq!(Header::of(32), Ok(Some(Header::Infiniband)));
        assert_eq!(Header::of(65534), Ok(Some(Header::None)));
        assert_eq!(Header::of(280), Ok(None));
        assert!(Header::of(772).is_err());
        assert!(Header::of(4).is_err());
    }
}
